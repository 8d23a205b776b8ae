"""Pruning in a loop with Hugging Face Accelerate."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator, DistributedType
from torch import nn
from torch.optim import Optimizer

from ..pruner import Pruner

_HIDDEN = {DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM}


def prepare_pruner(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, **settings: Any) -> Pruner:
    """A pruner for a prepared model and optimizer, saved and loaded with the accelerator's checkpoints.

    Args:
        accelerator: ``save_state`` and ``load_state`` then include the pruner.
        model: what ``accelerator.prepare`` has returned.
        optimizer: the same.
        settings: those of :class:`pruneops.Pruner`; ``recipe`` is that of :meth:`pruneops.Pruner.from_recipe`.

    Returns:
        The pruner, hooked into the optimizer. With gradient accumulation it acts when the optimizer really steps.

    Raises:
        ValueError: the accelerator hides the gradients (DeepSpeed, FSDP, Megatron-LM), or as in
            :class:`pruneops.Pruner`.

    Example:
        >>> model, optimizer, data = accelerator.prepare(model, optimizer, data)  # doctest: +SKIP
        >>> pruner = prepare_pruner(accelerator, model, optimizer, sparsity=0.8, end_step=900)  # doctest: +SKIP
    """
    if accelerator.distributed_type in _HIDDEN:
        raise ValueError(
            f"prepare_pruner: {accelerator.distributed_type.value} is not supported: the gradients and weights of a "
            "step are not visible to the model's own optimizer"
        )
    pruner = Pruner.from_recipe(
        accelerator.unwrap_model(model), optimizer, settings.pop("recipe", None) or {}, **settings
    )
    accelerator.register_for_checkpointing(pruner)
    return pruner
