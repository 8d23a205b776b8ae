"""Pruner against an independent simulation: exact counts at every step, masks that only grow, patterns, scopes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training import ENTRIES, SHAPES, Model, blocks_of, loss_of, sgd, train, weights

from pruneops import PruningCriterion, register_criterion
from pruneops.criteria import CRITERIA
from pruneops.groups import LayerGroup
from pruneops.layers import find_layers
from pruneops.pruner import Pruner
from pruneops.recipe import Rule
from pruneops.schedules import Schedule

ALPHA = np.float32(0.9)


def grow(score, live, count):
    """Prune the lowest of the live units, later ones first among equals, until ``count`` are pruned."""
    order = np.lexsort((-np.arange(score.size), score))
    order = order[live[order]]
    live[order[: count - (~live).sum()]] = False


class Simulation:
    """SNIP momentum, global scope, in NumPy: watches weights and gradients, and keeps its own scores and masks."""

    def __init__(self, model, optimizer, block, schedule):
        self.model, self.block, self.schedule = model, block, schedule
        self.score = self.live = None
        self.step = 0
        self.reached = None
        optimizer.register_step_pre_hook(self.before)

    def values(self):
        parameters = (self.model.conv.weight, self.model.fc.weight, self.model.mlp.weight)
        grads = dict(zip(SHAPES, (p.grad for p in parameters), strict=True))
        grads["mlp"] = grads["mlp"].t()
        for name, weight in weights(self.model).items():
            if self.block is None:
                yield np.abs(weight.detach().numpy() * grads[name].numpy()).reshape(-1)
            else:
                w, g = blocks_of(weight, self.block), blocks_of(grads[name], self.block)
                yield np.abs(w * g).astype(np.float64).mean(-1).astype(np.float32).reshape(-1)

    def before(self, *_):
        self.step += 1
        value = np.concatenate(list(self.values()))
        self.score = value if self.score is None else ALPHA * self.score + value
        target = self.schedule.at(self.step)
        if target is not None and target != self.reached:
            self.live = np.ones(value.size, bool) if self.live is None else self.live
            grow(self.score, self.live, int(target * value.size))
            self.reached = target


def units(pruner, block):
    """The pruner's masks as one flat array of units."""
    found = []
    for name, mask in pruner.masks.items():
        mask = mask.t() if name == "mlp" else mask
        blocks = blocks_of(mask, block or (1, 1)) if block else mask.reshape(-1, 1).numpy()
        assert (blocks.min(-1) == blocks.max(-1)).all()
        found.append(blocks.reshape(-1, blocks.shape[-1])[:, 0].astype(bool))
    return np.concatenate(found)


@pytest.mark.parametrize("kind", ["linear", "cubic", "cosine", "exponential", "one_shot"])
@pytest.mark.parametrize(("pattern", "block"), [("1x1", None), ("4x1", (4, 1)), ("channelx1", (-1, 1))])
def test_every_step_against_the_simulation(kind, pattern, block):
    model = Model()
    optimizer = sgd(model)
    schedule = Schedule(kind, 0.8, 2, 11, 2)
    simulation = Simulation(model, optimizer, block, schedule)
    pruner = Pruner(
        model, optimizer, pattern=pattern, sparsity=0.8, schedule=kind, start_step=2, end_step=11, frequency=2
    )

    def check(step):
        target = schedule.at(step)
        got = units(pruner, block)
        if target is None:
            assert got.all()
            return
        np.testing.assert_array_equal(got, simulation.live)
        assert (~got).sum() == int(target * got.size)
        for name, mask in pruner.masks.items():
            assert (model.get_submodule(name).weight[~mask] == 0).all()

    train(model, optimizer, 14, check)
    assert pruner.step == 14
    report = pruner.detach()
    assert report.total == ENTRIES
    assert (report.pattern, report.criterion, report.scope) == (pattern, "snip_momentum", "global")


@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "snip", "snip_momentum"])
@pytest.mark.parametrize("scope", ["global", "local", "row"])
def test_counts_and_growth(criterion, scope):
    model = Model()
    optimizer = sgd(model)
    pruner = Pruner(
        model, optimizer, criterion=criterion, pattern="1x1", sparsity=0.7, scope=scope, end_step=10, frequency=3
    )
    before = pruner.masks

    def check(step):
        nonlocal before
        now = pruner.masks
        assert not any((now[name] & ~before[name]).any() for name in now)
        before = now

    train(model, optimizer, 12, check)
    for name, shape in SHAPES.items():
        mask = before[name].t() if name == "mlp" else before[name]
        if scope == "row":
            assert ((~mask).flatten(1).sum(1) == int(0.7 * np.prod(shape[1:]))).all()
        elif scope == "local":
            assert (~mask).sum() == int(0.7 * np.prod(shape))
    if scope == "global":
        assert sum((~mask).sum() for mask in before.values()) == int(0.7 * ENTRIES)


@pytest.mark.parametrize("criterion", ["snip_momentum_block", "retrain_free"])
def test_criteria_over_block_masks(criterion):
    model = Model()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, criterion=criterion, pattern="2x2", sparsity=0.75, end_step=6)
    train(model, optimizer, 6)
    assert (~units(pruner, (2, 2))).sum() == int(0.75 * ENTRIES / 4)
    assert {score.shape for score in pruner.scores.values()} == {(4, 8), (8, 4)}


def test_n_of_m_prunes_one_more_of_each_group_at_a_time():
    model = Model()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, pattern="2:4", schedule="linear", end_step=8)
    counts = []

    def check(step):
        counts.append({int(count) for name, mask in pruner.masks.items() for count in groups(name, mask).sum(-1)})

    def groups(name, mask):
        mask = mask.movedim(1, -1) if mask.dim() > 2 else (mask.t() if name == "mlp" else mask)
        return mask.reshape(-1, 4)

    train(model, optimizer, 9, check)
    assert counts == [{4}] * 3 + [{3}] * 4 + [{2}] * 2
    assert pruner.detach().sparsity == 0.5


@register_criterion("test_constant")
class Constant(PruningCriterion):
    """The worst case of ties: at first the first units are the lowest, then all are equal."""

    known_settings = PruningCriterion.known_settings | {"value"}
    steps = 0

    def on_before_optimizer_step(self):
        self.steps += 1
        self.update_scores("magnitude")
        for score in self.scores.values():
            rising = torch.arange(score.numel(), dtype=score.dtype).view(score.shape)
            score.copy_(rising) if self.steps < 3 else score.fill_(self.config["value"])


@pytest.mark.parametrize("value", [0.0, float("nan"), float("-inf"), float("inf"), -1e30])
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_ties_and_values_that_are_no_numbers_never_shrink_a_mask(value, pattern):
    """Among equal scores the earlier unit would be kept: without care the first pruned ones would come back."""
    model = Model()
    optimizer = sgd(model)
    settings = {"criterion": "test_constant", "criterion_config": {"value": value}, "frequency": 1, "end_step": 6}
    settings["schedule"] = "linear"
    sparsity = None if pattern == "2:4" else 0.6
    pruner = Pruner(model, optimizer, pattern=pattern, sparsity=sparsity, **settings)
    before = pruner.masks
    for step in range(7):
        train(model, optimizer, 1, first=step)
        now = pruner.masks
        assert not any((now[name] & ~before[name]).any() for name in now)
        before = now
    n = ENTRIES // (4 if pattern == "4x1" else 1)
    expected = int((sparsity or 0.5) * n) * (ENTRIES // n)
    assert sum(int((~mask).sum()) for mask in before.values()) == expected


def test_live_weights_that_are_zero_do_not_bring_pruned_ones_back():
    """Magnitude scores pruned weights and dead live ones 0 alike."""
    model = Model()
    with torch.no_grad():
        model.mlp.weight.zero_()
        model.fc.weight[8:] = 0
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(model, frozen, criterion="magnitude", pattern="1x1", sparsity=0.6, end_step=10, frequency=1)
    before = pruner.masks
    for step in range(10):
        train(model, frozen, 1, first=step)
        now = pruner.masks
        assert not any((now[name] & ~before[name]).any() for name in now)
        before = now
    assert sum(int((~mask).sum()) for mask in before.values()) == int(0.6 * ENTRIES)


def test_a_gradient_that_is_no_number_does_not_poison_the_masks():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(model, optimizer, pattern="1x1", sparsity=0.5, end_step=8, frequency=1)
    before = pruner.masks
    for step in range(8):
        loss_of(model, step).backward()
        if step == 4:
            model.fc.weight.grad[0] = torch.nan
            model.conv.weight.grad[1] = torch.inf
        optimizer.step()
        optimizer.zero_grad()
        now = pruner.masks
        assert not any((now[name] & ~before[name]).any() for name in now)
        before = now
    assert sum(int((~mask).sum()) for mask in before.values()) == int(0.5 * ENTRIES)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize(("pattern", "block"), [("4x1", (4, 1)), ("1x4", (1, 4)), ("2x2", (2, 2))])
def test_scores_of_entries_that_a_criterion_assigns_are_reduced_to_blocks(pattern, block, reduce):
    model = Model()
    optimizer = sgd(model)
    config = {"criterion_reduce_type": reduce}
    settings = {"pattern": pattern, "sparsity": 0.6, "end_step": 6, "frequency": 2, "criterion_config": config}
    pruner = Pruner(model, optimizer, criterion="test_entries", **settings)
    live = np.ones(ENTRIES // 4, bool)
    for step in range(7):
        train(model, optimizer, 1, first=step)
        scores = pruner.scores | {"mlp": pruner.scores["mlp"].t()}
        units_of = [getattr(blocks_of(scores[name], block), reduce)(-1).reshape(-1) for name in SHAPES]
        target = Schedule("cubic", 0.6, 0, 6, 2).at(step + 1)
        grow(np.concatenate(units_of), live, int(target * live.size))
        np.testing.assert_array_equal(units(pruner, block), live)


def test_regrow_lets_units_come_back():
    model = Model()
    optimizer = sgd(model)
    settings = {"criterion": "gradient", "pattern": "1x1", "sparsity": 0.5, "end_step": 8, "frequency": 1}
    pruner = Pruner(model, optimizer, regrow=True, initial_sparsity=0.4, **settings)
    before, came_back = pruner.masks, 0
    for step in range(8):
        train(model, optimizer, 1, first=step)
        now = pruner.masks
        came_back += sum(int((now[name] & ~before[name]).sum()) for name in now)
        before = now
    assert came_back > 0
    assert sum(int((~mask).sum()) for mask in before.values()) == int(0.5 * ENTRIES)


@given(data=st.data())
def test_masks_grow_within_bounds_whatever_the_scores(data):
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    final = data.draw(st.floats(0.05, 0.95))
    low, high = data.draw(st.floats(0, final)), data.draw(st.floats(final, 1))
    model = nn.Sequential(*(nn.Linear(size, 3, bias=False) for size in sizes))
    settings = {"pattern": "1x1", "sparsity": final, "schedule": "linear", "end_step": 6, "frequency": 1}
    rule = Rule(criterion="magnitude", min_sparsity=low, max_sparsity=high, **settings)
    try:
        group = LayerGroup(rule, find_layers(model), model)
    except ValueError as error:
        assert "bounds" in str(error)  # noqa: PT017  an impossible wish is refused at once
        return
    before = torch.ones(3 * sum(sizes), dtype=torch.bool)
    for step in range(1, 7):
        for layer in group.layers:
            values = st.lists(st.integers(0, 3), min_size=layer.parameter.numel(), max_size=layer.parameter.numel())
            score = torch.tensor(data.draw(values), dtype=torch.float32).view(layer.parameter.shape)
            group.criterion.scores[layer.name] = score
        group.select(step)
        now = torch.cat([group.mask(layer).flatten() for layer in group.layers])
        assert not (now & ~before).any()
        assert (~now).sum() == int(group.schedule.at(step) * now.numel())
        before = now
    for layer in group.layers:
        assert low <= float((~group.mask(layer)).float().mean(dtype=torch.float64)) <= high


@pytest.mark.parametrize("bounds", [(0.3, 0.85), (0.0, 0.75), (0.65, None)])
def test_bounds_of_each_layer(bounds):
    low, high = bounds
    model = Model()
    with torch.no_grad():
        model.fc.weight.mul_(100)
        model.conv.weight.mul_(0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(
        model, optimizer, criterion="magnitude", pattern="1x1", sparsity=0.7, min_sparsity=low, max_sparsity=high,
        end_step=20, frequency=1,
    )  # fmt: skip
    before = pruner.masks
    for step in range(20):
        train(model, optimizer, 1, first=step)
        now = pruner.masks
        assert not any((now[name] & ~before[name]).any() for name in now)
        assert all(layer.sparsity <= (high or 1) for layer in pruner.report().layers)
        before = now
    report = pruner.detach()
    assert report.total - report.kept == int(0.7 * ENTRIES)
    assert all(low <= layer.sparsity for layer in report.layers)
    assert len({layer.sparsity for layer in report.layers}) > 1


def test_groups_have_their_own_pattern_and_budget():
    model = Model()
    optimizer = sgd(model)
    pruner = Pruner(
        model, optimizer, sparsity=0.5, end_step=6,
        rules=[
            {"targets": "fc", "pattern": "2:4"},
            {"targets": "re:^(fc|mlp)$", "pattern": "2x2", "sparsity": 0.75, "criterion": "magnitude"},
            {"ignore": "lm_head", "pattern": "1x1", "scope": "local", "end_step": 3},
        ],
    )  # fmt: skip
    assert [layer.name for layer in pruner.layers] == ["fc", "mlp", "conv"]
    train(model, optimizer, 6)
    report = pruner.detach()
    assert {layer.name: layer.sparsity for layer in report.layers} == {"fc": 0.5, "mlp": 0.75, "conv": 0.5}
    assert report.pattern == "2:4, 2x2, 1x1"
    assert (model.fc.weight.reshape(-1, 4) == 0).sum(1).eq(2).all()


def test_a_memoryless_criterion_is_scored_only_when_masks_are_selected():
    model = Model()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, criterion="snip", pattern="1x1", sparsity=0.5, end_step=6, frequency=3)
    seen = []

    def watch(step):
        seen.append({name: score.clone() for name, score in pruner.scores.items()})

    train(model, optimizer, 8, watch)
    # Progress 0 at step 0 gives 0: the first selection; then 3 and 6.
    changed = [i + 1 for i in range(1, 8) if any(not torch.equal(seen[i][n], seen[i - 1].get(n)) for n in seen[i])]
    assert changed == [3, 6]


def test_the_registry_is_open():
    assert CRITERIA["test_constant"] is Constant
