"""Pruner against an independent simulation: exact counts at every step, masks that only grow, patterns, scopes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import ENTRIES, SHAPES, Model, blocks_of, loss_of, train, weights

from pruneops import PruningCriterion, register_criterion
from pruneops.criteria import CRITERIA
from pruneops.groups import LayerGroup
from pruneops.layers import find_layers
from pruneops.pruner import Pruner
from pruneops.recipe import Rule
from pruneops.schedules import Schedule

ALPHA = np.float32(0.9)


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **settings)


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
        group = LayerGroup(rule, find_layers(model), dict(model.named_children()))
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


def test_by_hand_gives_the_bits_of_the_hooks():
    first, second = Model(), Model()
    settings = {"pattern": "4x1", "sparsity": 0.6, "end_step": 8, "frequency": 2}
    hooked = sgd(first)
    Pruner(first, hooked, **settings)
    train(first, hooked, 10)
    optimizer = sgd(second)
    pruner = Pruner(second, **settings)
    for step in range(10):
        pruner.on_step_begin()
        loss_of(second, step).backward()
        pruner.on_before_optimizer_step()
        optimizer.step()
        pruner.on_after_optimizer_step()
        optimizer.zero_grad()
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters(), strict=True))


def test_detach_leaves_a_plain_model_with_zeros():
    model = Model()
    plain = set(model.state_dict())
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, pattern="1x1", sparsity=0.5, end_step=4)
    train(model, optimizer, 4)
    report = pruner.detach()
    assert set(model.state_dict()) == plain
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    zeros = sum(int((weight == 0).sum()) for weight in weights(model).values())
    assert zeros == report.total - report.kept == int(0.5 * ENTRIES)
    train(model, optimizer, 1, first=4)
    assert sum(int((weight == 0).sum()) for weight in weights(model).values()) < zeros


def test_detach_warns_when_the_schedule_has_not_ended():
    model = Model()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, pattern="1x1", sparsity=0.5, schedule="linear", end_step=4)
    train(model, optimizer, 2)
    with pytest.warns(UserWarning, match=r"after step 2 of 4, at the scheduled sparsity 0\.25 instead of 0\.5"):
        report = pruner.detach()
    assert report.sparsity == 0.25


@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
def test_a_step_without_a_selection_is_two_calls_for_all_layers(pattern):
    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.extend([function.name()] if function.namespace == "pruneops" else [])
            return function(*args, **(kwargs or {}))

    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    pruner = Pruner(model, pattern=pattern, sparsity=0.5, schedule="one_shot", end_step=1)
    model(torch.randn(3, 8)).square().sum().backward()
    for _ in range(2):
        names: list[str] = []
        with Calls():
            pruner.on_before_optimizer_step()
            pruner.on_after_optimizer_step()
    assert names == [f"pruneops::update_{'block_' if pattern == '4x1' else ''}scores_", "pruneops::apply_masks_"]


def test_masks_are_packed_and_block_scores_are_small():
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, pattern="4x1", sparsity=0.5, end_step=2)
    for _ in range(2):
        model(torch.randn(3, 64)).square().sum().backward()
        optimizer.step()
    (group,) = pruner._groups
    assert group.stored_masks[0].dtype == torch.uint8
    assert group.stored_masks[0].numel() == 64 * 64 // 8
    assert group.masks["0"].numel() == 64 * 64 // 4 // 8
    assert pruner.scores["0"].shape == (16, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"end_step": None}, "end_step is missing"),
        ({"criterion": "snipp"}, "unknown criterion 'snipp'"),
        ({"pattern": "4x"}, "got '4x'"),
        ({"sparsity": 1.0}, "sparsity must be at least 0 and below 1, got 1.0"),
        ({"scope": "globl"}, "scope must be one of global, local, row, got 'globl'"),
        ({"schedule": "cube"}, "schedule must be one of"),
        ({"include": "encoder.*"}, "'encoder.*' matches no layer"),
        ({"min_sparsity": 0.9}, "outside of min_sparsity=0.9"),
        (
            {"pattern": "1x1", "sparsity": 0.503, "min_sparsity": 0.501, "max_sparsity": 0.505},
            "no whole number of them",
        ),
        ({"pattern": "3x1"}, "no layer is left"),
        ({"criterion": "snip_momentum_block", "pattern": "1x1"}, "pattern '1x1' has none"),
        ({"pattern": "2:4", "sparsity": 0.75}, "'2:4' gives sparsity 0.5, got sparsity=0.75"),
        ({"rules": []}, "rules must be"),
        ({"rules": [{"target": "fc"}]}, r"rules\[0\] has an unknown setting 'target'"),
        ({"rules": [{"targets": "fc", "include": "mlp"}]}, "'include' is another name of it"),
    ],
)
@pytest.mark.filterwarnings("ignore:Pruner. pattern")
def test_errors_before_the_first_step(settings, message):
    model = Model()
    optimizer = sgd(model)
    with pytest.raises(ValueError, match=message):
        Pruner(model, optimizer, **{"pattern": "4x1", "sparsity": 0.5, "end_step": 5} | settings)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_layer_that_the_pattern_does_not_divide():
    model = Model()
    settings = {"include": ["fc", "lm_head"], "pattern": "4x1", "sparsity": 0.5, "end_step": 5}
    with pytest.warns(UserWarning, match=r"does not divide 1 layers: lm_head \[3, 8\]"):
        pruner = Pruner(model, **settings)
    assert pruner.report().skipped == ("lm_head",)
    with pytest.raises(ValueError, match="does not divide"):
        Pruner(model, on_indivisible="error", **settings)


def test_the_optimizer_must_hold_what_is_pruned():
    model = Model()
    copies = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    with pytest.raises(ValueError, match=r"does not hold the weight of 'conv'.*DeepSpeed"):
        Pruner(model, torch.optim.SGD(copies, lr=0.1), end_step=5)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got list"):
        Pruner(model, [], end_step=5)
    # Parameters that are exchanged later are noticed before they are trained.
    optimizer = sgd(model)
    Pruner(model, optimizer, end_step=5)
    optimizer.param_groups[0]["params"] = copies
    with pytest.raises(ValueError, match="does not hold the weight of 'conv'"):
        optimizer.step()


def test_frozen_layers_can_be_pruned_by_magnitude():
    model = Model()
    model.fc.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    pruner = Pruner(model, optimizer, criterion="magnitude", pattern="1x1", sparsity=0.5, end_step=3)
    train(model, optimizer, 3)
    assert pruner.detach().sparsity == 0.5


def test_a_missing_gradient_is_named():
    model = Model()
    model.mlp.weight.requires_grad_(False)
    optimizer = sgd(model)
    Pruner(model, optimizer, end_step=3)
    loss_of(model, 0).backward()
    before = model.conv.weight.detach().clone()
    with pytest.raises(ValueError, match=r"'mlp.weight', which is frozen"):
        optimizer.step()
    assert torch.equal(model.conv.weight, before)


def test_a_closure_hides_the_gradients():
    model = Model()
    optimizer = sgd(model)
    Pruner(model, optimizer, end_step=3)
    with pytest.raises(ValueError, match="with a closure"):
        optimizer.step(lambda: loss_of(model, 0))


def test_the_registry_is_open():
    assert CRITERIA["test_constant"] is Constant


def test_block_scores_of_a_weight_stored_in_by_out_are_those_of_its_transpose():
    """Such weights are read as they lie, with the blocks turned over."""
    for pattern, block in (("4x1", (4, 1)), ("2x4", (2, 4)), ("channelx1", (-1, 1)), ("1xchannel", (1, -1))):
        model = Model()
        pruner = Pruner(model, include="mlp", pattern=pattern, sparsity=0.5, schedule="one_shot", end_step=9)
        loss_of(model, 0).backward()
        pruner.on_before_optimizer_step()
        w, g = blocks_of(model.mlp.weight.t(), block), blocks_of(model.mlp.weight.grad.t(), block)
        np.testing.assert_allclose(pruner.scores["mlp"].numpy(), np.abs(w * g).mean(-1), rtol=1e-5)
        assert pruner.state_dict()["scores.mlp"].is_contiguous()
