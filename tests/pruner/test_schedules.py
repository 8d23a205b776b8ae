"""Schedules: published formulas, the grid of steps, exact ends, and errors."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneops.schedules import SCHEDULES, Schedule


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.9])
def test_formulas(progress):
    initial, final, steps = 0.1, 0.9, 100
    step = int(progress * steps)
    got = {kind: Schedule(kind, final, 0, steps, 1, initial).at(step) for kind in SCHEDULES}
    if step == 0:
        assert set(got.values()) == {None}
        return
    t = step / steps
    assert got["linear"] == pytest.approx(initial + t * (final - initial))
    assert got["cubic"] == pytest.approx(final + (initial - final) * (1 - t) ** 3)
    assert got["cosine"] == pytest.approx(final + 0.5 * (initial - final) * (1 + math.cos(math.pi * t)))
    density = 0.9 * (0.1 / 0.9) ** t
    assert got["exponential"] == pytest.approx(1 - density)
    assert got["one_shot"] == final


@given(
    kind=st.sampled_from(sorted(SCHEDULES)),
    final=st.floats(0, 0.999),
    share=st.floats(0, 1),
    start=st.integers(0, 20),
    length=st.integers(0, 50),
    frequency=st.none() | st.integers(1, 60),
)
def test_rises_from_start_to_exactly_the_end(kind, final, share, start, length, frequency):
    schedule = Schedule(kind, final, start, start + length, frequency, final * share)
    values = [schedule.at(step) for step in range(1, start + length + 5)]
    assert all(value is None for value in values[: max(start - 1, 0)])
    given_values = [value for value in values if value is not None]
    assert given_values == sorted(given_values)
    assert schedule.at(max(start + length, 1)) == schedule.at(10**9) == final
    assert all(final * share <= value <= final for value in given_values)


def test_changes_only_on_the_grid_and_at_the_end():
    schedule = Schedule("linear", 0.7, start_step=10, end_step=25, frequency=4)
    changes = [step for step in range(11, 40) if schedule.at(step) != schedule.at(step - 1)]
    assert changes == [14, 18, 22, 25]
    assert schedule.at(9) is None
    assert schedule.at(10) == 0


def test_a_hundred_changes_by_default():
    schedule = Schedule("cubic", 0.7, start_step=0, end_step=5000)
    assert len({schedule.at(step) for step in range(1, 6000)}) == 101


def test_one_shot_prunes_at_the_start():
    schedule = Schedule("one_shot", 0.7, start_step=3, end_step=10)
    assert [schedule.at(step) for step in (2, 3, 4, 11)] == [None, 0.7, 0.7, 0.7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cube"}, "one of linear, cubic.*'cube'"),
        ({"start_step": 7, "end_step": 6}, "got 7 and 6"),
        ({"start_step": -1}, "got -1"),
        ({"sparsity": 1.0}, "got 0.0 and 1.0"),
        ({"sparsity": 0.3, "initial_sparsity": 0.4}, "got 0.4 and 0.3"),
        ({"frequency": 0}, "frequency must be at least 1, got 0"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"kind": "cubic", "sparsity": 0.5, "start_step": 0, "end_step": 10} | settings)


@pytest.mark.parametrize("name", ["start_step", "end_step", "frequency"])
def test_steps_are_integers(name):
    with pytest.raises(TypeError, match=f"{name} must be an integer, got 2.5"):
        Schedule(**{"kind": "cubic", "sparsity": 0.5, "start_step": 0, "end_step": 10} | {name: 2.5})
