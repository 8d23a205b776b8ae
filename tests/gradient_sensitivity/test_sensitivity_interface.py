"""A model that is known only by Neural Compressor's interface, in NumPy arrays and in tensors."""

import numpy as np
import pytest
import torch

from pruneops.gradient_sensitivity import GradientSensitivityPruner

WEIGHT, BIAS = "layer.0.query.weight", "layer.0.query.bias"


class Recorded:
    """Weights and gradients by name, as arrays or as tensors; ``calls`` are the hooks."""

    def __init__(self, convert):
        random = np.random.default_rng(0)
        shapes = {WEIGHT: (8, 6), BIAS: (8,), "layer.0.output.weight": (6, 8)}
        self.convert = convert
        self.weights = {name: random.integers(-9, 9, shape).astype(np.float32) for name, shape in shapes.items()}
        self.gradients = {name: random.integers(-9, 9, shape).astype(np.float32) for name, shape in shapes.items()}
        self.mask_gradient = random.standard_normal((1, 4)).astype(np.float32)
        self.calls = []

    def get_all_weight_names(self):
        return list(self.weights)

    def get_weight(self, name):
        return self.convert(self.weights[name]) if name in self.weights else None

    def get_inputs(self, input_name=None):
        assert "watch" in self.calls
        return input_name

    def get_gradient(self, name):
        return self.convert(self.mask_gradient if name == "head_mask" else self.gradients[name])

    def update_weights(self, name, value):
        assert isinstance(value, type(self.get_weight(name)))
        self.weights[name] = np.asarray(value)

    def register_forward_pre_hook(self):
        self.calls.append("watch")

    def remove_hooks(self):
        self.calls.append("remove")


@pytest.fixture(params=["arrays", "tensors"])
def model(request):
    return Recorded(np.array if request.param == "arrays" else torch.from_numpy)


def test_three_dimensions_are_a_stack_where_only_the_interface_is_known(model):
    name, random = "layer.0.experts", np.random.default_rng(1)
    model.weights[name] = random.uniform(1, 9, (2, 4, 6)).astype(np.float32)
    model.gradients[name] = random.uniform(1, 9, (2, 4, 6)).astype(np.float32)
    model.gradients[name][1] *= 1e-3
    config = {"names": [name], "target_sparsity": 0.5, "end_epoch": 1, "ties": "exact"}
    pruner = GradientSensitivityPruner(model, config)
    for number in range(2):
        epoch(pruner, number=number)
    assert (model.weights[name] == 0).sum((1, 2)).tolist() == [12, 12]


def parameters(**changes):
    values = {"target": 2, "normalize": False, "stride": 2, "transpose": False, "importance_inputs": ["head_mask"],
              "importance_metric": "abs_gradient"}  # fmt: skip
    return values | changes


def epoch(pruner, steps=1, number=0):
    pruner.on_epoch_begin(number)
    for step in range(steps):
        pruner.on_step_begin(step)
        pruner.on_step_end()
    pruner.on_epoch_end()


def test_named_weights_are_cut_by_the_head_mask(model):
    before = {name: weight.copy() for name, weight in model.weights.items()}
    names = ["layer.*.query.weight", "layer.*.query.bias"]
    epoch(GradientSensitivityPruner(model, {"names": names, "parameters": parameters()}))
    order = np.argsort(-np.abs(model.mask_gradient[0]), kind="stable")[:2]
    rows = np.concatenate([np.arange(2 * i, 2 * i + 2) for i in order])
    assert np.array_equal(model.weights[WEIGHT], before[WEIGHT][rows])
    assert np.array_equal(model.weights[BIAS], before[BIAS][rows])
    assert np.array_equal(model.weights["layer.0.output.weight"], before["layer.0.output.weight"])
    assert model.calls == ["watch", "remove"]


def test_columns_are_cut_where_the_weight_is_transposed(model):
    before = model.weights["layer.0.output.weight"].copy()
    config = {
        "names": ["layer.*.output.weight"],
        "parameters": parameters(importance_metric="weighted_gradient", stride=1, target=3, transpose=True,
                                 importance_inputs=["layer.*.query.weight", "layer.*.query.bias"]),
    }  # fmt: skip
    epoch(GradientSensitivityPruner(model, config), steps=2)
    sums = sum((model.weights[x] * model.gradients[x]).reshape(8, -1).sum(1) for x in (WEIGHT, BIAS))
    order = np.argsort(-np.abs(sums), kind="stable")[:3]
    assert np.array_equal(model.weights["layer.0.output.weight"], before[:, order])


def test_weights_are_masked_one_by_one(model):
    config = {"names": [WEIGHT], "target_sparsity": 0.5, "end_epoch": 1, "ties": "exact"}
    pruner = GradientSensitivityPruner(model, config)
    epoch(pruner)
    before = model.weights[WEIGHT].copy()
    score = np.abs(before * model.gradients[WEIGHT])
    assert np.array_equal(pruner.importance[WEIGHT].numpy(), score)
    epoch(pruner, number=1)
    mask = pruner.masks[WEIGHT].numpy()
    assert np.array_equal(model.weights[WEIGHT], before * mask)
    assert int(mask.sum()) == 24


@pytest.mark.parametrize(
    ("names", "changes", "says"),
    [
        (["layer.0.key.weight"], {}, "layer.0.key.weight"),
        (["layer.*.key.weight"], {}, "matches no weight"),
        ([WEIGHT], {"stride": 3}, r"query\.weight'.*stride 3"),
        ([WEIGHT], {"target": 5}, r"query\.weight'.*target 5"),
    ],
)
def test_what_does_not_fit_is_refused(model, names, changes, says):
    before = {name: weight.copy() for name, weight in model.weights.items()}
    with pytest.raises(ValueError, match=says):
        GradientSensitivityPruner(model, {"names": names, "parameters": parameters(**changes)})
    assert all(np.array_equal(model.weights[name], weight) for name, weight in before.items())


def test_importance_of_another_length_is_refused(model):
    pruner = GradientSensitivityPruner(model, {"names": [WEIGHT], "parameters": parameters()})
    with pytest.raises(ValueError, match=r"query\.weight': 3 instances of stride 2 do not make its 8 rows"):
        pruner.prune_weight(model, {WEIGHT: torch.ones(3)}, WEIGHT, parameters())


def test_slabs_of_arrays_come_back_as_arrays(model):
    pruner = GradientSensitivityPruner(model, {"names": [WEIGHT], "parameters": parameters()})
    kept = pruner.prune_by_importance(np.arange(8), np.array([1.0, 3.0, 3.0, 2.0]), 3, 2)
    assert isinstance(kept, np.ndarray)
    assert kept.tolist() == [2, 3, 4, 5, 6, 7]
