"""Training on with the masks that a model was pruned by."""

import copy

import pytest
import torch
from torch import nn
from training import ENTRIES, Conv1D, Model, loss_of, same_state, sgd, train, weights

from pruneops import prune
from pruneops.mask_files import load_masks, save_masks
from pruneops.pruner import Pruner


def zeros(model):
    return sum(int((weight == 0).sum()) for weight in weights(model).values())


def pruned(pattern="1x1"):
    model = Model()
    return model, prune(model, 0.5, pattern=pattern).masks


@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_zeros_stay_and_the_rest_is_trained(pattern, tmp_path):
    model, masks = pruned(pattern)
    before = {name: weight.detach().clone() for name, weight in weights(model).items()}
    save_masks(masks, tmp_path / "masks.safetensors")
    optimizer = sgd(model)
    pruner = Pruner.from_masks(model, optimizer, load_masks(tmp_path / "masks.safetensors"))
    train(model, optimizer, 4)
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert torch.equal(weight == 0, ~mask)
        assert not torch.equal(weights(model)[name], before[name])
        assert torch.equal(pruner.masks[name], mask)
    report = pruner.detach()
    assert (report.sparsity, report.criterion, report.pattern) == (0.5, "given masks", "1x1")
    assert report.kept == ENTRIES // 2
    train(model, optimizer, 1, first=4)
    assert zeros(model) < ENTRIES // 2


def test_without_masks_the_zeros_that_are_there_are_kept():
    model, masks = pruned()
    optimizer = sgd(model)
    pruner = Pruner.from_masks(model, optimizer)
    assert all(torch.equal(pruner.masks[name], mask) for name, mask in masks.items())
    train(model, optimizer, 3)
    assert zeros(model) == ENTRIES // 2


def test_a_dense_model_has_the_zeros_at_once():
    _, masks = pruned()
    model = Model()
    by_hand = Pruner.from_masks(model, None, {"fc": masks["fc"], "mlp": masks["mlp"]})
    assert not torch.equal(masks["fc"], torch.ones_like(masks["fc"]))
    assert torch.equal(model.fc.weight == 0, ~masks["fc"])
    assert isinstance(model.mlp, Conv1D)
    assert torch.equal(model.mlp.weight == 0, ~masks["mlp"])
    assert (model.conv.weight != 0).all()
    optimizer = sgd(model)
    loss_of(model, 0).backward()
    by_hand.on_before_optimizer_step()
    optimizer.step()
    assert (model.fc.weight != 0).all()
    by_hand.on_after_optimizer_step()
    assert torch.equal(model.fc.weight == 0, ~masks["fc"])


def test_nothing_is_kept_but_bits():
    model, masks = pruned("4x1")
    pruner = Pruner.from_masks(model, None, masks)
    assert pruner.scores == {}
    assert sum(mask.numel() for mask in pruner._groups[0].stored_masks) == ENTRIES // 8


class Stacked(nn.Module):
    """Two experts in one parameter, stored in x out as transformers does, beside an attention."""

    is_transposed = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Parameter(torch.randn(2, 8, 4))
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.attention(x, x, x)[0] @ self.up


@pytest.mark.parametrize("given", [True, False])
def test_matrices_that_are_stacked_in_one_parameter(given):
    model = Stacked()
    masks = dict(prune(model, 0.5).masks)
    assert masks.keys() == {"up.0", "up.1", "attention.in_proj_weight", "attention.out_proj"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    pruner = Pruner.from_masks(model, optimizer, masks if given else None, mask_optimizer_state=True)
    model(torch.randn(2, 3, 8)).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.up == 0, ~torch.stack([masks["up.0"], masks["up.1"]]))
    assert torch.equal(model.attention.in_proj_weight == 0, ~masks["attention.in_proj_weight"])
    assert torch.equal(optimizer.state[model.up]["exp_avg"] == 0, model.up == 0)
    assert pruner.detach().sparsity == 0.5
    assert all(torch.equal(pruner.masks[name], mask) for name, mask in masks.items())


def test_frozen_weights_and_states_of_the_optimizer():
    model, masks = pruned()
    model.fc.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    Pruner.from_masks(model, optimizer, masks, mask_gradients=True, mask_optimizer_state=True)
    train(model, optimizer, 2)
    assert zeros(model) == ENTRIES // 2
    assert not optimizer.state[model.conv.weight]["exp_avg"][~masks["conv"]].any()
    assert optimizer.state[model.conv.weight]["exp_avg"][masks["conv"]].all()


def test_stopped_and_resumed():
    straight, masks = pruned()
    optimizer = sgd(straight)
    pruner = Pruner.from_masks(straight, optimizer, masks)
    train(straight, optimizer, 4)

    first, _ = pruned()
    early = sgd(first)
    half = Pruner.from_masks(first, early, masks)
    train(first, early, 2)
    resumed = Model(seed=3)
    late = sgd(resumed)
    rest = Pruner.from_masks(resumed, late)  # dense as yet
    resumed.load_state_dict(first.state_dict())
    late.load_state_dict(early.state_dict())
    rest.load_state_dict(half.state_dict())
    train(resumed, late, 2, first=2)
    assert same_state(straight, resumed)
    assert same_state(pruner, rest)
    assert rest.detach().sparsity == 0.5


def test_a_copy_keeps_them_too():
    model, masks = pruned()
    optimizer = sgd(model)
    twin, twin_optimizer, _ = copy.deepcopy((model, optimizer, Pruner.from_masks(model, optimizer, masks)))
    train(twin, twin_optimizer, 2)
    assert zeros(twin) == ENTRIES // 2


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"fc": torch.ones(16, 9, dtype=torch.bool)}, ValueError, r"masks\['fc'\] has shape \[16, 9\]"),
        ({"fc": torch.ones(16, 8)}, TypeError, r"masks\['fc'\] must be torch.bool, got torch.float32"),
        ({"fc": [True]}, TypeError, r"masks\['fc'\] must be a tensor, got list"),
        ({"fcc": torch.ones(16, 8, dtype=torch.bool)}, ValueError, "pattern 'fcc' matches no layer"),
        ({"again": torch.ones(16, 8, dtype=torch.bool)}, ValueError, r"masks\['again'\] must have the name"),
        ({"fc.weight": torch.ones(16, 8, dtype=torch.bool)}, ValueError, r"masks\['fc.weight'\] must have the name"),
        ({}, ValueError, "no layer is left to prune"),
    ],
)
def test_masks_that_do_not_fit(masks, error, message):
    model = Model()
    optimizer = sgd(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        Pruner.from_masks(model, optimizer, masks)
    assert not optimizer._optimizer_step_pre_hooks
    assert same_state(model.state_dict(), before)


def test_an_optimizer_of_other_weights():
    model = Model()
    with pytest.raises(ValueError, match="does not hold the weight of 'fc'"):
        Pruner.from_masks(model, sgd(nn.Linear(2, 2)), {"fc": model.fc.weight > 0})
    assert (model.fc.weight != 0).all()
