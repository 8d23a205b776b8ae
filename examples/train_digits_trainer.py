"""Prune the vision transformer of train_digits.py inside a transformers.Trainer, interrupted and resumed.

    python examples/train_digits_trainer.py

One run goes through; another is stopped half-way, as by a crash, and resumed from its last checkpoint. Both end with
the same masks and the same weights, bit for bit. Needs `pip install 'pruneops[examples]'`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from train_digits import VisionTransformer, accuracy, load_data
from transformers import Trainer, TrainerCallback, TrainingArguments

from pruneops.integrations.transformers import PruningCallback

STEPS, STOP = 300, 170


class Classifier(nn.Module):
    """The model as the Trainer wants it: it returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = VisionTransformer()

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.body(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Crash(TrainerCallback):
    """Ends the process's patience after some steps."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == STOP:
            raise KeyboardInterrupt


def make(folder: Path, data: list[dict], *more: TrainerCallback) -> tuple[Trainer, PruningCallback]:
    """A Trainer that prunes 80 % of the blocks' weights in groups of 4 x 1."""
    torch.manual_seed(0)
    # No layer may vanish altogether: a global selection alone would take all of the perceptrons.
    callback = PruningCallback(
        sparsity=0.8, pattern="4x1", max_sparsity=0.95, include="body.blocks.*", start_step=100, end_step=200,
        frequency=5,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=64, learning_rate=3e-3, save_steps=60,
        lr_scheduler_type="cosine", seed=0, use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=10**6,
    )  # fmt: skip
    return Trainer(Classifier(), arguments, train_dataset=data, callbacks=[callback, *more]), callback


def main() -> None:
    images, labels, test_images, test_labels = load_data(0)
    data = [{"images": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        whole, first = make(Path(folder) / "whole", data)
        whole.train()
        stopped, _ = make(Path(folder) / "stopped", data, Crash())
        try:
            stopped.train()
        except KeyboardInterrupt:
            print(f"stopped after step {STOP}")
        resumed, second = make(Path(folder) / "stopped", data)
        resumed.train(resume_from_checkpoint=True)
    masks = all(torch.equal(mask, second.report.masks[name]) for name, mask in first.report.masks.items())
    weights = all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    print(first.report)
    print(f"test accuracy {accuracy(whole.model.body, test_images, test_labels):.1f} %")
    print(f"interrupted and resumed: masks {'identical' if masks else 'DIFFER'}, "
          f"weights {'identical' if weights else 'DIFFER'}")  # fmt: skip
    raise SystemExit(not (masks and weights))


if __name__ == "__main__":
    main()
