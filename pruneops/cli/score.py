"""``pruneops score``: scores of a language model from text, to prune it at any sparsity."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from .._checks import listed
from ..checkpoint import Checkpoint
from ..planning import make_plan
from ..score_files import save_scores
from ..scoring import CRITERIA, load_model, sample_tokens, score_checkpoint
from ..staging import check_target
from . import console

_ABOUT = """
Run a causal language model over random pieces of a text and save what pruning ranks by: 'wanda' saves the norms of
the inputs of each layer (a few kilobytes), 'gradient', 'snip', 'taylor' and 'fisher' save one float32 for each weight.
'pruneops prune --scores FILE' then prunes at any sparsity without another pass over the text. Needs transformers.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("score", help="score a language model from text", description=_ABOUT)
    parser.add_argument("checkpoint", metavar="MODEL", type=Path, help="a model directory with a tokenizer")
    parser.add_argument("--data", metavar="TEXT", type=Path, required=True, help="a text file, in UTF-8")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="the .safetensors file to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file when the new is complete")
    parser.add_argument("--criterion", choices=CRITERIA, default="wanda", help="what is scored (default: wanda)")
    parser.add_argument("--samples", type=_positive, default=128, help="pieces of the text (default: 128)")
    parser.add_argument("--length", type=_positive, help="tokens of each (default: 512, or what the model can take)")
    parser.add_argument("--batch-size", type=_positive, default=4, help="pieces at a time (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the places in the text (default: 0)")
    parser.add_argument("--include", metavar="NAME", action="append", help="only these, as in 'pruneops prune'")
    parser.add_argument("--exclude", metavar="NAME", action="append", help="not these, as in 'pruneops prune'")
    console.add_json(parser)
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text!r}")
    return int(text)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text in UTF-8: {error}") from error


def run(args: argparse.Namespace) -> None:
    """Score the model and save the scores."""
    check_target(args.output, args.overwrite)  # before the long reading
    start = time.perf_counter()
    text = _read_text(args.data)
    checkpoint = Checkpoint(args.checkpoint)
    plan = make_plan(checkpoint, "1x1", include=args.include, exclude=args.exclude)
    model, tokenizer = load_model(args.checkpoint)
    longest = getattr(model.config, "max_position_embeddings", None)
    length = args.length or min(512, longest or 512)
    if longest and length > longest:
        raise ValueError(f"--length is {length}, the model takes at most {longest} tokens")
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    pieces = sample_tokens(tokens, args.samples, length, args.seed)
    with console.progress() as bars:
        batches = bars.track(pieces.split(args.batch_size), description="Scoring")
        scores = score_checkpoint(model, checkpoint, plan.names, batches, args.criterion)
    save_scores(args.output, args.criterion, scores, overwrite=args.overwrite)
    left_out = sorted(set(plan.names) - scores.keys())
    document = {
        "checkpoint": str(args.checkpoint), "output": str(args.output), "criterion": args.criterion,
        "tensors": len(scores), "tokens": pieces.numel(), "left_out": left_out,
        "bytes": args.output.stat().st_size, "seconds": time.perf_counter() - start,
    }  # fmt: skip
    if args.json:
        console.print_json(document)
        return
    out = console.output()
    out.print(f"{args.criterion}: {len(scores)} tensors scored on {pieces.numel():,} tokens")
    if left_out:
        names = listed(left_out, 3)
        out.print(f"not scored, the loaded model has no linear layer of the name: {names}", soft_wrap=True)
        out.print("to prune by these scores, leave them out with --exclude", soft_wrap=True)
    out.print(f"written to {args.output}, {console.size_text(document['bytes'])}, {document['seconds']:.1f} s")
