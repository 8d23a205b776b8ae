"""The adapter of ``torch.nn.utils.prune`` against torch itself."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from pruneops.integrations import torch_prune


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(50, 60), nn.Conv2d(3, 8, 3), nn.Linear(7, 5))


def parameters(model):
    return [(module, "weight") for module in model]


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.weight_mask, other.weight_mask)
        assert mine.weight_mask.dtype == other.weight_mask.dtype
        assert torch.equal(mine.weight, other.weight)
        assert torch.equal(mine.weight_orig, other.weight_orig)


@pytest.mark.parametrize("method", [prune.L1Unstructured, torch_prune.L1Unstructured])
@pytest.mark.parametrize("amounts", [(0.2,), (1000,), (0,), (0.5, 0.5, 100)])
def test_global_pruning_is_that_of_torch(method, amounts):
    ours = model()
    theirs = copy.deepcopy(ours)
    for amount in amounts:
        torch_prune.global_unstructured(parameters(ours), method, amount=amount)
        prune.global_unstructured(parameters(theirs), prune.L1Unstructured, amount=amount)
        assert_same(ours, theirs)


def test_importance_scores_are_ranked_in_place_of_the_weights():
    ours = model()
    theirs = copy.deepcopy(ours)
    scores = [torch.randn_like(module.weight) for module in ours]
    for _ in range(2):
        for net, function in ((ours, torch_prune.global_unstructured), (theirs, prune.global_unstructured)):
            named = dict(zip(parameters(net), scores, strict=True))
            function(parameters(net), prune.L1Unstructured, importance_scores=named, amount=0.3)
        assert_same(ours, theirs)


def test_ties_go_last_first():
    net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False))
    for module in net:
        nn.init.ones_(module.weight)
    torch_prune.global_unstructured(parameters(net), prune.L1Unstructured, amount=5)
    assert net[0].weight_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert net[1].weight_mask.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]


def test_other_methods_are_torchs():
    net = model()
    torch_prune.global_unstructured(parameters(net), prune.RandomUnstructured, amount=100)
    assert sum(int((module.weight_mask == 0).sum()) for module in net) == 100


def test_torch_can_go_on_and_remove():
    net = model()
    torch_prune.global_unstructured(parameters(net), prune.L1Unstructured, amount=0.5)
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    net[0](torch.randn(2, 50)).sum().backward()
    assert torch.equal(net[0].weight_orig.grad != 0, net[0].weight_mask.bool())
    zeros = net[0].weight == 0
    prune.remove(net[0], "weight")
    assert torch.equal(net[0].weight == 0, zeros)
    assert isinstance(net[0].weight, nn.Parameter)


@pytest.mark.parametrize("amounts", [(0.3,), (40, 0.5)])
def test_one_layer_is_pruned_as_by_torch(amounts):
    ours = model()[0]
    theirs = copy.deepcopy(ours)
    for amount in amounts:
        torch_prune.l1_unstructured(ours, "weight", amount)
        prune.l1_unstructured(theirs, "weight", amount)
        assert_same([ours], [theirs])


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_groups_keep_n_of_m(pattern):
    layer = torch_prune.l1_pattern(nn.Linear(16, 6), "weight", pattern)
    assert (layer.weight_mask.view(6, 4, 4).sum(-1) == int(pattern[0])).all()
    torch_prune.l1_pattern(layer, "weight", pattern)
    assert (layer.weight_mask.view(6, 4, 4).sum(-1) == int(pattern[0])).all()


def test_blocks_of_lowest_mean_go_first_and_amounts_count_what_is_left():
    layer = nn.Linear(6, 8)
    means = layer.weight.detach().abs().view(2, 4, 6).mean(1)
    torch_prune.l1_pattern(layer, "weight", "4x1", 0.5)
    kept = layer.weight_mask.view(2, 4, 6)
    assert torch.equal(kept.amax(1), kept.amin(1))
    assert torch.equal(kept.amax(1).flatten().nonzero().flatten(), means.flatten().topk(6).indices.sort().values)
    torch_prune.l1_pattern(layer, "weight", "4x1", 0.5)
    assert torch.equal(
        layer.weight_mask.view(2, 4, 6).amax(1).flatten().nonzero().flatten(),
        means.flatten().topk(3).indices.sort().values,
    )


def test_blocks_of_a_conv():
    layer = torch_prune.l1_pattern(nn.Conv2d(3, 8, 3), "weight", "1xchannel", 3)
    assert int(layer.weight_mask.flatten(1).amax(1).sum()) == 5
    assert torch.equal(layer.weight_mask.flatten(1).amax(1), layer.weight_mask.flatten(1).amin(1))


class TestErrors:
    def test_amount(self):
        net = model()
        for amount in (10**6, 1.5):
            with pytest.raises(ValueError, match="amount"):
                torch_prune.global_unstructured(parameters(net), prune.L1Unstructured, amount=amount)
        assert not prune.is_pruned(net)

    def test_shape_of_a_score(self):
        net = model()
        with pytest.raises(ValueError, match=r"has shape \[2, 2\], the parameter \[60, 50\]"):
            torch_prune.global_unstructured(
                parameters(net), prune.L1Unstructured, {(net[0], "weight"): torch.ones(2, 2)}, amount=1
            )

    @pytest.mark.parametrize(("pattern", "amount"), [("1x1", 3), ("2:4", 3), ("4x1", None)])
    def test_pattern(self, pattern, amount):
        with pytest.raises(ValueError, match=r"amount|blocks"):
            torch_prune.L1Pattern(pattern, amount)
