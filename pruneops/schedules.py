"""Schedules: the sparsity to have reached at each step of a training run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def linear(progress: float, initial: float, final: float) -> float:
    """Equal parts of the weights in equal times."""
    return initial + (final - initial) * progress


def cubic(progress: float, initial: float, final: float) -> float:
    """Fast while much is redundant, slow towards the end (Zhu and Gupta, 2017)."""
    return final + (initial - final) * (1 - progress) ** 3


def cosine(progress: float, initial: float, final: float) -> float:
    """Half a cosine: slow at both ends."""
    return final + (initial - final) * (1 + math.cos(math.pi * progress)) / 2


def exponential(progress: float, initial: float, final: float) -> float:
    """An equal share of the weights that are left in equal times."""
    return 1 - (1 - initial) * ((1 - final) / (1 - initial)) ** progress


def one_shot(progress: float, initial: float, final: float) -> float:
    """Everything at the first step."""
    return final


#: Name -> sparsity by progress (0 to 1), initial and final sparsity; a function that is added here can be named too.
SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "linear": linear,
    "cubic": cubic,
    "cosine": cosine,
    "exponential": exponential,
    "one_shot": one_shot,
}


@dataclass(frozen=True)
class Schedule:
    """Sparsity by the number of optimizer steps, in steps of its own.

    The sparsity changes at ``start_step``, every ``frequency`` steps after it, and at ``end_step``, where it is
    exactly ``sparsity``, for good. Steps are counted from 1: what the schedule gives for step 1 holds after the
    first optimizer step.

    Attributes:
        kind: a name in ``SCHEDULES``; ``one_shot`` reaches the sparsity at ``start_step``.
        sparsity: what to reach, 0 <= sparsity < 1.
        start_step: the last step without pruning beyond ``initial_sparsity``.
        end_step: when the sparsity is reached.
        frequency: steps between two changes; None is a hundredth of the way, and at least 1.
        initial_sparsity: that at ``start_step``.

    Raises:
        ValueError: a value is out of range; the message names it.

    Example:
        >>> schedule = Schedule("linear", 0.8, start_step=0, end_step=4)
        >>> [schedule.at(step) for step in (1, 2, 4, 9)]
        [0.2, 0.4, 0.8, 0.8]
    """

    kind: str
    sparsity: float
    start_step: int
    end_step: int
    frequency: int | None = None
    initial_sparsity: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.kind!r}")
        for name in ("start_step", "end_step", "frequency"):
            value = getattr(self, name)
            if value is None and name == "frequency":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        if not 0 <= self.start_step <= self.end_step:
            raise ValueError(
                "start_step and end_step must be 0 <= start_step <= end_step, "
                f"got {self.start_step} and {self.end_step}"
            )
        if self.frequency is not None and self.frequency < 1:
            raise ValueError(f"frequency must be at least 1, got {self.frequency}")
        if not 0 <= self.initial_sparsity <= self.sparsity < 1:
            raise ValueError(
                "initial_sparsity and sparsity must be 0 <= initial_sparsity <= sparsity < 1, "
                f"got {self.initial_sparsity} and {self.sparsity}"
            )

    def at(self, step: int) -> float | None:
        """The sparsity after optimizer step ``step``; None where nothing is pruned yet."""
        if step < self.start_step or step < 1:
            return None
        if step >= self.end_step:
            return self.sparsity
        length = self.end_step - self.start_step
        frequency = self.frequency or max(1, length // 100)
        passed = (step - self.start_step) // frequency * frequency
        # Rounding must neither overshoot nor step back.
        sparsity = SCHEDULES[self.kind](passed / length, self.initial_sparsity, self.sparsity)
        return min(max(sparsity, self.initial_sparsity), self.sparsity)
