"""A run that was stopped and resumed has the bits of one that was not."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import Model, same_state, train

from pruneops import PruningCriterion, register_criterion
from pruneops.pruner import Pruner

STEPS = 9


@register_criterion("test_counting")
class Counting(PruningCriterion):
    """A criterion with a memory that does not allocate its scores at the start."""

    def on_before_optimizer_step(self):
        self.update_scores("snip", 0.5, 1.0)


def settings(criterion, pattern):
    sparsity = None if pattern == "2:4" else 0.7
    return {"criterion": criterion, "pattern": pattern, "sparsity": sparsity, "start_step": 2, "end_step": 7,
            "frequency": 2}  # fmt: skip


def start(options, **more):
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, Pruner(model, optimizer, **options, **more)


@pytest.mark.parametrize("stop", range(STEPS + 1))
@pytest.mark.parametrize(
    ("criterion", "pattern"),
    [
        ("snip_momentum", "1x1"), ("snip_momentum", "4x1"), ("snip_momentum", "2:4"), ("magnitude", "1x1"),
        ("gradient", "4x1"), ("snip_momentum_block", "4x1"), ("retrain_free", "4x1"), ("test_counting", "1x1"),
        ("test_entries", "4x1"),
    ],
)  # fmt: skip
def test_stopped_at_any_step(criterion, pattern, stop, tmp_path):
    options = settings(criterion, pattern)
    model, optimizer, pruner = start(options)
    train(model, optimizer, STEPS)

    first, early, half = start(options)
    train(first, early, stop)
    save_file(half.state_dict(), tmp_path / "pruner.safetensors")
    torch.save([first.state_dict(), early.state_dict()], tmp_path / "rest.pt")

    resumed, late, rest = start(options)
    weights, moments = torch.load(tmp_path / "rest.pt")
    resumed.load_state_dict(weights)
    late.load_state_dict(moments)
    rest.load_state_dict(load_file(tmp_path / "pruner.safetensors"))
    train(resumed, late, STEPS - stop, first=stop)

    assert same_state(model, resumed)
    assert same_state(pruner, rest)
    assert all(torch.equal(pruner.masks[name], rest.masks[name]) for name in pruner.masks)


def test_a_state_is_a_copy():
    model, optimizer, pruner = start(settings("snip_momentum", "1x1"))
    train(model, optimizer, 4)
    state = pruner.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    train(model, optimizer, 3, first=4)
    assert same_state(state, before)
    other = start(settings("snip_momentum", "1x1"))[2]
    other.load_state_dict(state)
    train(*start(settings("snip_momentum", "1x1"))[:2], 1)
    assert same_state(state, before)


def test_a_later_state_can_be_left_for_an_earlier_one():
    model, optimizer, pruner = start(settings("snip_momentum", "1x1"))
    state = pruner.state_dict()
    train(model, optimizer, 5)
    pruner.load_state_dict(state)
    assert pruner.step == 0
    assert all(mask.all() for mask in pruner.masks.values())


def test_masks_of_a_higher_sparsity_than_the_end_are_refused():
    """They would have to shrink."""
    model, optimizer, pruner = start(settings("snip_momentum", "1x1"))
    train(model, optimizer, 7)
    state = pruner.state_dict()
    lower = settings("snip_momentum", "1x1") | {"sparsity": 0.5}
    fresh, early, other = start(lower)
    train(fresh, early, 7)
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"have reached sparsity 0\.7, above the 0\.5 of the end here"):
        other.load_state_dict(state)
    assert same_state(other.state_dict(), before)
    resumed, late, regrowing = start(lower, regrow=True)
    regrowing.load_state_dict(state)
    train(resumed, late, 1, first=7)
    assert regrowing.report().sparsity == 0.5


def test_masks_wait_for_a_schedule_that_is_behind_them():
    model, optimizer, pruner = start(settings("snip_momentum", "1x1"))
    train(model, optimizer, 4)
    slow = settings("snip_momentum", "1x1") | {"schedule": "linear", "start_step": 3, "end_step": 12}
    resumed, late, rest = start(slow)
    rest.load_state_dict(pruner.state_dict())
    before = rest.masks
    assert rest._groups[0].schedule.at(5) < rest._groups[0].reached
    for step in range(4, 12):
        train(resumed, late, 1, first=step)
        now = rest.masks
        assert not any((now[name] & ~before[name]).any() for name in now)
        before = now
    assert rest.detach().sparsity == int(0.7 * 384) / 384


def test_a_state_of_something_else_is_refused_and_changes_nothing():
    model, optimizer, pruner = start(settings("snip_momentum", "1x1"))
    train(model, optimizer, 5)
    state = pruner.state_dict()
    for key, bad, message in [
        ("scores.fc", torch.zeros(3), r"'scores.fc' has shape \[3\], here it is \[16, 8\]"),
        ("masks.fc", torch.zeros(3, dtype=torch.uint8), r"'masks.fc' has shape \[3\], here it is \[16\]"),
        ("masks.gone", torch.zeros(3), "entries for other layers or settings: masks.gone"),
        ("masks.fc", None, "'masks.fc' is missing"),
        ("step", None, "'step' is missing"),
        ("reached", torch.zeros(2), "2 groups of layers, here 1"),
    ]:
        wrong = {k: v for k, v in state.items() if k != key} | ({} if bad is None else {key: bad})
        with pytest.raises(ValueError, match=message):
            pruner.load_state_dict(wrong)
        assert same_state(pruner.state_dict(), state)
    other = start(settings("magnitude", "1x1"))[2]
    with pytest.raises(ValueError, match=r"other layers or settings: scores\.conv"):
        other.load_state_dict(state)
