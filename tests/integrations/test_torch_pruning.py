"""Channel importance against Torch-Pruning's own, and its pruner with it."""

import pytest
import torch
from torch import nn

tp = pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed")
from pruneops.integrations.torch_pruning import ChannelImportance  # noqa: E402


class Net(nn.Module):
    """Convolutions of all kinds, a linear layer and norms."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 32, 3, groups=4)
        self.transposed = nn.ConvTranspose2d(32, 24, 3)
        self.linear = nn.Linear(24, 20)
        self.layer_norm = nn.LayerNorm(20)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.grouped(self.norm(self.first(x)).tanh()).tanh()
        return self.head(self.layer_norm(self.linear(self.transposed(x).mean((2, 3)))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()  # With batch statistics a filter before the batch norm has a w·g sum of zero.


@pytest.fixture
def example():
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def groups(net, example):
    net(example).square().sum().backward()
    graph = tp.DependencyGraph().build_dependency(net, example)
    return list(graph.get_all_groups(ignored_layers=[net.head]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("metric", "multivariable"), [("snip", False), ("mask_gradient", True)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "first"])
def test_taylor_is_that_of_torch_pruning(metric, multivariable, bias, reduction, groups):
    theirs = tp.importance.GroupTaylorImportance(reduction, multivariable=multivariable, bias=bias)
    ours = ChannelImportance(metric, reduction, bias=bias)
    assert len(groups) == 4
    for group in groups:
        torch.testing.assert_close(ours(group), theirs(group), rtol=2e-5, atol=2e-6)


def test_other_metrics(groups):
    layer = groups[-1][0].dep.target.module
    part = ChannelImportance("fisher", "first", normalizer=None)(groups[-1])
    torch.testing.assert_close(part, layer.weight.grad.square().flatten(1).sum(1))


def test_magnitude_needs_no_gradient(net, example):
    graph = tp.DependencyGraph().build_dependency(net, example)
    group = graph.get_pruning_group(net.first, tp.prune_conv_out_channels, idxs=list(range(16)))
    importance = ChannelImportance("magnitude", "first", normalizer=None)(group)
    torch.testing.assert_close(importance, net.first.weight.detach().abs().flatten(1).sum(1))


def test_groups_without_parameters_have_none(groups):
    assert ChannelImportance(target_types=[nn.Embedding])(groups[0]) is None


def test_a_missing_gradient_is_named(net, example):
    graph = tp.DependencyGraph().build_dependency(net, example)
    group = graph.get_pruning_group(net.first, tp.prune_conv_out_channels, idxs=[0])
    with pytest.raises(ValueError, match="gradient of first"):
        ChannelImportance()(group)


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric must be one of"):
        ChannelImportance("sniff")


@pytest.mark.parametrize("global_pruning", [False, True])
def test_the_pruner_ends_with_the_same_network(global_pruning, example):
    outputs = []
    for importance in (ChannelImportance("snip"), tp.importance.GroupTaylorImportance()):
        torch.manual_seed(0)
        net = Net()
        pruner = tp.pruner.MetaPruner(
            net,
            example,
            importance=importance,
            pruning_ratio=0.5,
            iterative_steps=2,
            global_pruning=global_pruning,
            ignored_layers=[net.head],
        )
        for _ in range(2):
            net(example).square().sum().backward()
            pruner.step()
            net.zero_grad()
        outputs.append(net(example))
    assert sum(x.numel() for x in net.parameters()) < sum(x.numel() for x in Net().parameters()) / 2
    assert torch.equal(*outputs)
