"""A criterion made from a metric behaves like a written one, by its name and everywhere."""

import copy

import pytest
import torch
from torch import nn

from pruneops import CRITERIA, get_criterion, prune
from pruneops.criteria import criterion_from_metric
from pruneops.pruner import Pruner


@pytest.fixture(autouse=True)
def registry():
    before = dict(CRITERIA)
    yield
    CRITERIA.clear()
    CRITERIA.update(before)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = nn.Linear(12, 8)
    layer.weight.grad = torch.randn(8, 12)
    return layer


def values(metric, w, g):
    return {
        "magnitude": w.abs(),
        "gradient": g.abs(),
        "snip": (w * g).abs(),
        "taylor": (w * g) * (w * g),
        "fisher": g * g,
    }[metric].detach()


@pytest.mark.parametrize("metric", ["magnitude", "gradient", "snip", "taylor", "fisher"])
def test_score_is_the_momentum_of_the_metric(metric, layer):
    criterion_from_metric("mine", metric=metric, alpha=0.5, beta=2.0)
    criterion = get_criterion({"criterion_type": "mine"}, {"fc": layer})
    expected = torch.zeros(8, 12)
    for _ in range(3):
        criterion.on_step_begin()
        criterion.on_before_optimizer_step()
        expected = 0.5 * expected + 2.0 * values(metric, layer.weight, layer.weight.grad)
        assert torch.equal(criterion.scores["fc"], expected)


def test_without_memory_there_is_no_score_before_the_first_step(layer):
    criterion = criterion_from_metric("mine", metric="taylor")({"fc": layer}, {})
    assert criterion.memoryless
    assert criterion.scores == {}
    criterion.on_before_optimizer_step()
    assert torch.equal(criterion.scores["fc"], values("taylor", layer.weight, layer.weight.grad))


def test_config_overrides_the_factors(layer):
    criterion = criterion_from_metric("mine", metric="snip", alpha=0.5)({"fc": layer}, {"alpha": 0.25, "beta": 3.0})
    assert (criterion.alpha, criterion.beta) == (0.25, 3.0)


@pytest.mark.parametrize(("metric", "of_sum"), [("mask_gradient", torch.abs), ("mask_fisher", torch.square)])
def test_block_metrics_score_blocks(metric, of_sum, layer):
    criterion = criterion_from_metric("mine", metric=metric)({"fc": layer}, {"pattern": "4x1"})
    criterion.on_before_optimizer_step()
    sums = (layer.weight * layer.weight.grad).detach().view(2, 4, 12).sum(1)
    torch.testing.assert_close(criterion.scores["fc"], of_sum(sums))


def test_magnitude_needs_no_gradient():
    criterion = criterion_from_metric("mine", metric="magnitude", alpha=0.9)({"fc": nn.Linear(4, 4)}, {"end_step": 0})
    criterion.on_step_begin()
    criterion.on_before_optimizer_step()


def test_prune_by_name(layer):
    twin = copy.deepcopy(layer)
    twin.weight.grad = layer.weight.grad.clone()
    criterion_from_metric("mine", metric="snip")
    prune(layer, 0.5, criterion="mine")
    prune(twin, 0.5, criterion="snip")
    assert torch.equal(layer.weight, twin.weight)


@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
def test_pruner_by_name(pattern):
    criterion_from_metric("mine", metric="snip", alpha=0.9)
    ends = []
    for name in ("mine", "snip_momentum"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 4))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        pruner = Pruner(model, optimizer, criterion=name, pattern=pattern, sparsity=0.5, end_step=5)
        for _ in range(6):
            model(torch.randn(2, 12)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert pruner.detach().sparsity == 0.5
        ends.append(model[0].weight)
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "mine", "metric": "sniff"}, ValueError, "metric must be one of .*'sniff'"),
        ({"name": 3, "metric": "snip"}, TypeError, "name must be a string, got int"),
        ({"name": "mine", "metric": "snip", "alpha": "much"}, TypeError, "alpha must be a number, got str"),
    ],
)
def test_errors(arguments, error, message):
    before = dict(CRITERIA)
    with pytest.raises(error, match=message):
        criterion_from_metric(**arguments)
    assert before == CRITERIA
