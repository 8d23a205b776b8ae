"""Pruning in a ``transformers.Trainer``: a callback."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..pruner import Pruner
from ..recipe import read_recipe, renamed
from ..report import PruneReport

#: The file in each checkpoint of the Trainer.
STATE_FILE = "pruner.safetensors"


class PruningCallback(TrainerCallback):
    """Prunes the model that a Trainer trains.

    The optimizer's own hooks do the work, after the Trainer has clipped the gradients and only when a step really
    happens. Each checkpoint of the Trainer gets a ``pruner.safetensors``, from which a resumed run goes on to the bit.

    Args:
        recipe: a YAML file or a mapping, see :meth:`pruneops.Pruner.from_recipe`; None is ``settings`` alone.
        resume_from: the checkpoint directory that ``train(resume_from_checkpoint=...)`` is given, where that is not
            the one of this run's ``output_dir``.
        settings: those of :class:`pruneops.Pruner`. ``end_step`` is by default at four fifths of the training, so
            that the last fifth adapts the weights that are left.

    Attributes:
        pruner: the pruner of the current or last training; None before.
        report: what was pruned, when the training has ended; None before.

    Raises:
        ValueError: at the beginning of the training: a setting is out of range, the checkpoint lacks the pruner's
            state, or the framework hides the gradients (DeepSpeed steps inside its backward pass, FSDP shards).

    Example:
        >>> callback = PruningCallback(sparsity=0.8, pattern="4x1")  # doctest: +SKIP
        >>> Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()  # doctest: +SKIP
        >>> print(callback.report)  # doctest: +SKIP
    """

    def __init__(
        self,
        recipe: str | Path | Mapping[str, Any] | None = None,
        *,
        resume_from: str | Path | None = None,
        **settings: Any,
    ) -> None:
        content = recipe if isinstance(recipe, Mapping) else read_recipe(recipe) if recipe else {}
        self.settings = renamed(content) | settings
        self.resume_from = resume_from
        self.pruner: Pruner | None = None
        self.report: PruneReport | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook the pruner into the optimizer, and load its state where the training is resumed."""
        _refuse_hidden_gradients(args)
        if args.load_best_model_at_end:
            warnings.warn(
                "PruningCallback: with load_best_model_at_end the best checkpoint may come from before the end of the "
                "pruning schedule; the final masks are applied to it without further training",
                UserWarning,
                stacklevel=2,
            )
        if self.pruner is not None:
            self.pruner.remove_hooks()
        adapted = {"end_step": max(1, state.max_steps * 4 // 5)}
        self.pruner = Pruner(kwargs["model"], kwargs["optimizer"], **adapted | self.settings)
        self.report = None
        if state.global_step:
            self.pruner.load_state_dict(load_file(self._saved(args, state)))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the pruner's state in the Trainer's checkpoint."""
        if self.pruner is not None and args.should_save:
            save_file(self.pruner.state_dict(), _folder(args, state) / STATE_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave a plain model with zeros."""
        if self.pruner is not None:
            self.report = self.pruner.detach()

    def _saved(self, args: TrainingArguments, state: TrainerState) -> Path:
        """The saved state of the step at which the training goes on."""
        given = self.resume_from or args.resume_from_checkpoint
        file = Path(given or _folder(args, state)) / STATE_FILE
        if not file.is_file():
            raise ValueError(
                f"PruningCallback: the training goes on at step {state.global_step}, but there is no {file}; give the "
                "checkpoint directory as resume_from, or start a new training from its weights"
            )
        return file


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def _refuse_hidden_gradients(args: TrainingArguments) -> None:
    for name in ("deepspeed", "fsdp"):
        if getattr(args, name, None):
            raise ValueError(
                f"PruningCallback: training with {name} is not supported: the gradients and weights of a step are not "
                "visible to the model's own optimizer"
            )
