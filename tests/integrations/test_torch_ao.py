"""The sparsifier in the flow of ``torch.ao.pruning``: prepare, schedule, step, squash."""

import copy

import pytest
import torch
from modules import Conv1D
from torch import nn
from torch.ao.pruning import CubicSL, LambdaSL, WeightNormSparsifier

from pruneops import select_masks
from pruneops.integrations.torch_ao import Sparsifier


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 8))


def layers(model):
    return [module for module in model if hasattr(module, "weight")]


def sparsity(model):
    weights = [module.weight for module in layers(model)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def train(model, sparsifier, scheduler=None, steps=6):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    reached = []
    for _ in range(steps):
        model(torch.randn(4, 16)).square().mean().backward()
        sparsifier.step()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler:
            scheduler.step()
        reached.append(sparsity(model))
    return reached


@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "snip", "snip_momentum"])
@pytest.mark.parametrize("scope", ["local", "global", "row"])
def test_any_criterion_and_scope_reach_the_level(criterion, scope, model):
    sparsifier = Sparsifier(0.5, criterion=criterion, scope=scope)
    sparsifier.prepare(model, None)
    train(model, sparsifier)
    sparsifier.squash_mask()
    assert sparsity(model) == 0.5
    assert all(type(module) is nn.Linear and isinstance(module.weight, nn.Parameter) for module in layers(model))
    if scope == "local":
        assert all((module.weight == 0).float().mean() == 0.5 for module in layers(model))


@pytest.mark.parametrize("criterion", ["snip_momentum", "snip_momentum_block", "retrain_free"])
def test_blocks(criterion, model):
    sparsifier = Sparsifier(0.5, criterion=criterion, pattern="4x1", scope="global")
    sparsifier.prepare(model, None)
    train(model, sparsifier)
    assert sparsifier.criterion.scores["0.weight"].shape == (8, 16)
    sparsifier.squash_mask()
    assert sparsity(model) == 0.5
    for module in layers(model):
        kept = (module.weight != 0).view(-1, 4, module.in_features)
        assert torch.equal(kept.all(1), kept.any(1))


@pytest.mark.parametrize("schedule", [LambdaSL, CubicSL])
def test_schedulers_of_torch(schedule, model):
    sparsifier = Sparsifier(0.8, scope="global")
    sparsifier.prepare(model, None)
    if schedule is LambdaSL:
        scheduler = LambdaSL(sparsifier, lambda epoch: min(1.0, epoch / 4))
    else:
        scheduler = CubicSL(sparsifier, init_sl=0.0, init_t=0, delta_t=1, total_t=4)
    reached = train(model, sparsifier, scheduler)
    assert reached == sorted(reached)
    assert reached[0] < 0.1
    assert reached[-1] == pytest.approx(0.8, abs=1e-3)


def test_groups_thin_out_with_the_level(model):
    sparsifier = Sparsifier(0.5, pattern="2:4")
    sparsifier.prepare(model, None)
    scheduler = LambdaSL(sparsifier, lambda epoch: min(1.0, epoch / 3))
    assert train(model, sparsifier, scheduler, steps=5) == [0, 0, 0.25, 0.5, 0.5]


def test_levels_of_layers(model):
    sparsifier = Sparsifier(0.5, scope="global")
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight", "sparsity_level": 0.25}])
    sparsifier.step()
    assert [float((module.weight == 0).float().mean()) for module in layers(model)] == [0.5, 0.25, 0]


def test_masks_are_those_of_select_masks(model):
    weights = {f"{i}.weight": model[i].weight.detach().clone() for i in (0, 2, 3)}
    sparsifier = Sparsifier(0.3, scope="global")
    sparsifier.prepare(model, None)
    sparsifier.step()
    expected = select_masks(dict(sorted(weights.items(), reverse=True)), sparsity=0.3)
    for name, mask in expected.items():
        fake = model[int(name[0])].parametrizations.weight[0]
        assert torch.equal(fake.mask, mask)
        assert fake.mask is sparsifier.state[name]["mask"]


def test_like_torchs_own_sparsifier(model):
    theirs = copy.deepcopy(model)
    for net, sparsifier in (
        (model, Sparsifier(0.5)),
        (theirs, WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 1))),
    ):
        sparsifier.prepare(net, None)
        sparsifier.step()
        sparsifier.squash_mask()
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(layers(model), layers(theirs), strict=True))


def test_weights_stored_in_by_out():
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(8, 6))
    sparsifier = Sparsifier(0.5, criterion="snip", pattern="4x1")
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    model(torch.randn(3, 6)).square().sum().backward()
    sparsifier.step()
    sparsifier.squash_mask()
    kept = (model[0].weight != 0).view(6, 2, 4)
    assert torch.equal(kept.all(-1), kept.any(-1))
    assert int(kept.any(-1).sum()) == 6


def test_state_goes_on(model):
    twin = copy.deepcopy(model)
    first, second = (Sparsifier(0.5, criterion="snip_momentum") for _ in range(2))
    first.prepare(model, None)
    second.prepare(twin, None)
    train(model, first, steps=2)
    state = copy.deepcopy(first.state_dict())
    twin.load_state_dict(model.state_dict(), strict=False)  # torch keeps the masks in the sparsifier
    second.load_state_dict(state)
    for net, sparsifier in ((model, first), (twin, second)):
        torch.manual_seed(1)
        train(net, sparsifier, steps=2)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(layers(model), layers(twin), strict=True))


def test_disabled_updates_change_nothing(model):
    sparsifier = Sparsifier(0.5)
    sparsifier.prepare(model, None)
    sparsifier.enable_mask_update = False
    sparsifier.step()
    assert sparsity(model) == 0


def test_one_mask_alone(model):
    sparsifier = Sparsifier(0.5)
    sparsifier.prepare(model, None)
    sparsifier.step()
    group = next(group for group in sparsifier.groups if group["tensor_fqn"] == "0.weight")
    group["sparsity_level"] = 0.75
    sparsifier.update_mask(**group)
    assert [float((module.weight == 0).float().mean()) for module in layers(model)] == [0.75, 0.5, 0.5]


class TestErrors:
    def test_settings(self):
        with pytest.raises(ValueError, match="scope must be one of"):
            Sparsifier(scope="everywhere")
        with pytest.raises(ValueError, match="unknown criterion 'sniff'"):
            Sparsifier(criterion="sniff")

    def test_indivisible(self, model):
        with pytest.raises(ValueError, match=r"'3x1' does not divide '.*weight' \["):
            Sparsifier(pattern="3x1").prepare(model, None)

    def test_no_gradient(self, model):
        sparsifier = Sparsifier(criterion="snip")
        sparsifier.prepare(model, None)
        with pytest.raises(ValueError, match=r"gradient of '0\.weight', which has none"):
            sparsifier.step()
