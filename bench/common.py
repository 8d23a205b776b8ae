"""What a benchmark is, and how time, bandwidth and memory are measured.

A file ``bench_<op>.py`` has a function ``cases(config)`` that yields :class:`Case`, and one test::

    def test_speed(timed, case, contender):
        timed(case, contender)

A case names its contenders, pruneops first; each is called with what ``data()`` returned, and all of them share it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .memory import available, peak_extra
from .shapes import Shape

OURS = "pruneops"
#: Each contender runs for about PATIENCE_S, within the bounds on its rounds; one slower than SLOW_S runs once,
#: cold, and of one shorter than SHORT_S a single call says little.
PATIENCE_S, SLOW_S, SHORT_S = 0.5, 3.0, 1e-3
ROUNDS = (3, 25)

Contenders = Mapping[str, Callable[[Any], object]]


@dataclass(frozen=True)
class Config:
    """Where the benchmarks run, and how large they are."""

    device: str = "cpu"
    size: str = "default"

    @property
    def n(self) -> int:
        """Entries of the large cases: far beyond the last-level cache."""
        if self.device == "cuda" and self.size != "smoke":
            return 2**30
        return {"smoke": 2**16, "default": 2**26, "full": 2**28}[self.size]

    @property
    def smoke(self) -> bool:
        return self.size == "smoke"

    @property
    def gpu(self) -> bool:
        """Whether the shapes that only a GPU can time in reasonable time are wanted."""
        return self.device == "cuda" and not self.smoke

    @property
    def thorough(self) -> bool:
        """Whether every contender is timed: always, but for a run on the CPU that is to end within ten minutes."""
        return self.device == "cuda" or self.size != "default"

    def peers(self, contenders: Contenders, *chosen: str) -> Contenders:
        """Ours and the chosen peers, or where a run is thorough all of them."""
        return {name: call for name, call in contenders.items() if self.thorough or name in (OURS, *chosen)}

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device=self.device).to(dtype)

    def noise(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random values that repeat after some millions: quick to make, for what does not depend on the values."""
        numel = torch.Size(shape).numel()
        some = self.randn(min(numel, 2**22 - 1), dtype=dtype)
        values = torch.empty(numel, dtype=dtype, device=self.device)
        for part in values.split(some.numel()):
            part.copy_(some[: part.numel()])
        return values.reshape(shape)


@dataclass(frozen=True)
class Case:
    """One operator on one input, beside its peers."""

    op: str
    name: str
    #: Entries that the figures count: weights of an update, scores of a selection.
    entries: int
    #: Bytes per entry at the floor: each input byte read once, each output byte written once.
    floor: float
    data: Callable[[], Any]
    contenders: Contenders
    #: A main case, run first; the first one of an operator may be in the short table and in the picture.
    headline: bool = False
    #: Whether contenders may be called in any order: what one leaves behind in the data is not in the way of another.
    in_turns: bool = True
    #: Bytes that data and peers need at their peak, where that may be more than a machine has.
    needs: int = 0


def parts(buffer: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Tensors that lie in a buffer one after the other."""
    pieces = buffer.split([prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def as_one(tensors: Sequence[Tensor], shape: Shape) -> list[Tensor]:
    """All :func:`parts` of a buffer as one tensor, so that the same memory is read as many and as one."""
    return [tensors[0].as_strided((prod(shape),), (1,)).view(shape)]


def beside(case: Case, name: str, other: Callable[[Any], Any], needs: int = 0) -> Case:
    """A case with ours on other data, made from its own, as a peer, so that the two are timed in turns: the speed of a
    machine that others share changes from one case to the next.

    ``needs``: bytes of the other data, where it does not lie in the same memory.
    """

    def both() -> tuple[Any, Any]:
        data = case.data()
        return data, other(data)

    def on(part: int, call: Callable[[Any], object]) -> Callable[[Any], object]:
        return wraps(call)(lambda both: call(both[part]))

    return replace(
        case,
        data=both,
        contenders={
            **{peer: on(0, call) for peer, call in case.contenders.items()},
            name: on(1, case.contenders[OURS]),
        },
        needs=case.needs + needs,
    )


class DoesNotFitError(Exception):
    """A case needs more memory than the device has free."""


def warmed(contender: Callable[[Any], object]) -> Callable[[Any], object]:
    """Mark a contender whose first call on new data prepares something that users pay once, such as compilation."""
    contender.warmed = True  # type: ignore[attr-defined]
    return contender


def element_size(*dtypes: torch.dtype) -> int:
    return sum(dtype.itemsize for dtype in dtypes)


def seconds_of(fn: Callable[[], object], device: str) -> float:
    """Seconds of one call; on CUDA between two events on an idle stream, with all that the host does first."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        fn()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    began = time.perf_counter()
    fn()
    return time.perf_counter() - began


def queued_seconds(fn: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each of several calls on CUDA that are queued one behind another, as ``triton.testing.do_bench``
    takes them: what the device takes, or where the host takes longer to launch a call than the device to run it, that.
    """
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in events:
        start.record()
        fn()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def probe(fn: Callable[[], object], device: str) -> tuple[float, int]:
    """Seconds and peak extra bytes of the first call."""
    taken: list[float] = []
    peak = peak_extra(lambda: taken.append(seconds_of(fn, device)), device)
    return taken[0], peak


def is_slow(seconds: float) -> bool:
    return seconds > SLOW_S


def rounds_for(seconds: float) -> tuple[int, int]:
    """Rounds, and calls within a round, for a contender whose warm call takes so long."""
    calls = max(1, round(2e-4 / max(seconds, 1e-7)))
    fewest, most = ROUNDS
    return min(most, max(fewest, int(PATIENCE_S / (seconds * calls)))), calls


def settled(fn: Callable[[], object], device: str, warm: float) -> float:
    """Seconds of what took ``warm`` seconds once: less in a row, on CUDA in a queue, where that time is short."""
    if warm >= SHORT_S:
        return warm
    if device == "cuda":
        return min(warm, *queued_seconds(fn, ROUNDS[0]))
    return min(warm, *(seconds_of(fn, device) for _ in range(ROUNDS[0])))


def repeat(fn: Callable[[], object], device: str, warm: float) -> list[float]:
    """Seconds per call, over several rounds, of what took about ``warm`` seconds once it was warm."""
    rounds, calls = rounds_for(settled(fn, device, warm))

    def several() -> None:
        for _ in range(calls):
            fn()

    times = (
        queued_seconds(several, rounds) if device == "cuda" else [seconds_of(several, device) for _ in range(rounds)]
    )
    return [seconds / calls for seconds in times]


class Turns:
    """A call that takes turns with the rounds of another, so that both see the machine at the same speeds."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._times: list[float] = []

    def __call__(self) -> None:
        self._times.append(seconds_of(self._call, "cpu"))

    def at_best_of(self, times: Sequence[float]) -> float | None:
        """Seconds of the call at the speed that the best of the other's rounds saw, each of which came right after one.

        It is the median round that says how the two compare: the speed may change between a call and its round.
        """
        if not self._times:
            return None
        return min(times) * median(mine / other for mine, other in zip(self._times, times, strict=True))


class CopyBandwidth:
    """Bytes read and written per second by ``dst.copy_(src)``, beyond the caches."""

    def __init__(self, config: Config) -> None:
        self.device = config.device
        n = 2**20 if config.smoke else 2**28 if config.device == "cuda" else 2**26
        self.source = torch.ones(n, device=self.device)
        self.target = torch.zeros_like(self.source)

    def copy(self) -> None:
        self.target.copy_(self.source)

    def of(self, seconds: float) -> float:
        return 2 * self.source.nbytes / seconds

    def measure(self) -> float:
        """The best of several copies."""
        return self.of(min(repeat(self.copy, self.device, PATIENCE_S / 5)))


class Bench:
    """One run: the current case's data, built once for all its contenders, and the copy bandwidth beside each of them,
    since the speed of a machine that others share changes by half within a minute."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._copy = CopyBandwidth(config)
        self._last_copy = 0.0
        self._case: Case | None = None
        self._data: Any = None

    def call(self, case: Case, contender: str) -> Callable[[], object]:
        """The contender as a call without arguments.

        Raises:
            DoesNotFitError: the case is too large for the device.
        """
        if self._case is not case:
            self._prepare(case)
        data, function = self._data, case.contenders[contender]
        if getattr(function, "warmed", False):
            function(data)
        return lambda: function(data)

    def _prepare(self, case: Case) -> None:
        self._case = self._data = None
        gc.collect()
        device = self.config.device
        if device == "cuda":
            torch.cuda.empty_cache()
        if case.needs > available(device):
            raise DoesNotFitError(f"needs {case.needs / 2**30:.0f} GiB, {available(device) / 2**30:.0f} GiB are free")
        torch.manual_seed(0)
        self._data = case.data()
        self._case = case
        self._last_copy = self._copy.measure()

    def turns(self, case: Case, contender: str, seconds: float) -> Turns | None:
        """What a contender that takes so long is held against: ours against the copy, a peer against ours.

        Short calls would find the caches as the other left them, and see no change of the machine's speed.
        """
        if seconds < SHORT_S or is_slow(seconds):
            return None
        if contender == OURS:
            return Turns(self._copy.copy)
        return Turns(self.call(case, OURS)) if case.in_turns else None

    def facts(self, case: Case, contender: str, peak: int, in_turns: float | None = None) -> dict[str, object]:
        """What a record says beside its times, once these have been taken; ``in_turns``: what :meth:`turns` took."""
        before, self._last_copy = self._last_copy, self._copy.measure()
        beside, ours_beside = max(before, self._last_copy), None
        if in_turns is not None and contender == OURS:
            beside = self._copy.of(in_turns)
        elif in_turns is not None:
            ours_beside = in_turns
        return {
            "op": case.op,
            "case": case.name,
            "contender": contender,
            "entries": case.entries,
            "floor_bytes": case.floor * case.entries,
            "headline": case.headline,
            "peak_extra_bytes": peak,
            "copy_bandwidth": beside,
            "ours_beside": ours_beside,
            "device": self.config.device,
            "size": self.config.size,
        }

    def run(self, case: Case, contender: str) -> dict[str, object]:
        """A record of one contender, in the form of pytest-benchmark."""
        record: dict[str, object] = {"name": f"{case.op}-{case.name}-{contender}", "group": case.op}
        device = self.config.device
        try:
            call = self.call(case, contender)
            seconds, peak = probe(call, device)
            times = [seconds]
            if not is_slow(seconds):
                seconds, peak = probe(call, device)
                times = repeat(call, device, seconds)
        except DoesNotFitError:
            raise
        except Exception as error:  # one broken contender does not end a run of many
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return {**record, "stats": None, "extra_info": {**self.facts(case, contender, 0), "error": reason}}
        stats = {"min": min(times), "max": max(times), "median": median(times), "rounds": len(times)}
        # A single call, for which the device waits while the host prepares it.
        return {**record, "stats": stats, "extra_info": {**self.facts(case, contender, peak), "alone": seconds}}
