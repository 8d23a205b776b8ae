"""The same gradients through Neural Compressor's own pruner, where it is installed: the same numbers."""

import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sensitivity_models import HEADS, Encoder, backward, head_config, neuron_config, run_epoch

from pruneops.gradient_sensitivity import GradientSensitivityPruner, PrunerList

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    inc = pytest.importorskip(
        "neural_compressor.experimental.pruner_legacy.gradient_sensitivity",
        reason="needs neural-compressor 2.6",
        exc_type=ImportError,
    )
    from neural_compressor.model.torch_model import PyTorchModel

pytestmark = pytest.mark.filterwarnings("ignore")

NAME = "layer.0.fc1.weight"
KEYS = ("names", "parameters", "start_epoch", "end_epoch", "initial_sparsity", "target_sparsity", "update_frequency",
        "method")  # fmt: skip


def inc_pruner(model, config):
    """Neural Compressor's pruner over its own model class."""
    values = {"start_epoch": 0, "end_epoch": 0, "initial_sparsity": 0.0, "target_sparsity": 0.5, "update_frequency": 1}
    values |= {"method": "per_tensor", "names": None, "parameters": None} | copy.deepcopy(config)
    local = SimpleNamespace(**{key: values[key] for key in KEYS})
    if "pattern" in config:
        local.pattern = config["pattern"]
    return inc.GradientSensitivityPruner(PyTorchModel(model), local, SimpleNamespace())


def quantized(model, steps=16):
    """Weights and gradients of few exact values: products and sums are exact, and ties are many."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        values = torch.randint(-steps, steps + 1, parameter.shape, generator=generator)
        parameter.data = values / 16
        parameter.grad = torch.randint(-2, 3, parameter.shape, generator=generator) / 4


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("pattern", ["tile_pattern_1x1", "tile_pattern_4x1", "tile_pattern_2x2", "tile_pattern_1x16"])
def test_elementwise_masks_and_weights_are_equal(pattern, exact):
    ours, theirs = Encoder(), Encoder()
    config = {"names": [NAME], "start_epoch": 1, "end_epoch": 3, "target_sparsity": 0.8, "pattern": pattern}
    pruners = GradientSensitivityPruner(ours, config), inc_pruner(theirs, config)
    for epoch in range(4):
        for model, pruner in zip((ours, theirs), pruners, strict=True):
            pruner.on_epoch_begin(epoch)
            for step in range(2):
                pruner.on_step_begin(step)
                backward(model, seed=10 * epoch + step)
                if exact and not (epoch or step):
                    quantized(model)
                pruner.on_step_end()
            pruner.on_epoch_end()
        assert np.array_equal(pruners[0].importance[NAME].numpy(), pruners[1].importance[NAME])
        assert pruners[0].masks.keys() == pruners[1].masks.keys()
        if epoch:
            assert np.array_equal(pruners[0].masks[NAME].numpy(), pruners[1].masks[NAME])
        assert torch.equal(ours.get_parameter(NAME), theirs.get_parameter(NAME))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("values", [3, 1000])
def test_heads_cut_by_a_mask_are_equal(normalize, values):
    ours, theirs = Encoder(), Encoder()
    outputs = {**head_config(normalize=normalize, transpose=True), "names": ["layer.*.attention.o_proj.weight"]}
    configs = [head_config(normalize=normalize), outputs]
    own = PrunerList([GradientSensitivityPruner(ours, config) for config in configs])
    inc_ones = [inc_pruner(theirs, config) for config in configs]
    generator = torch.Generator().manual_seed(values)
    for x in (own, *inc_ones):
        x.on_epoch_begin(0)
    for _ in range(3):
        grad = torch.randint(-values, values + 1, (2, HEADS), generator=generator) / 8
        for model, pruners in ((ours, [own]), (theirs, inc_ones)):
            mask = torch.ones(2, HEADS, requires_grad=True)
            backward(model, mask)
            mask.grad.copy_(grad)
            for x in pruners:
                x.on_step_end()
    for x in (own, *inc_ones):
        x.on_epoch_end()
    for pruner, inc_one in zip(own, inc_ones, strict=True):
        for name, score in inc_one.importance.items():
            np.testing.assert_allclose(pruner.importance[name].numpy(), score, rtol=1e-6)
    for name, weight in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name), weight), name


@pytest.mark.parametrize("exact", [True, False])
def test_neurons_are_equal(exact):
    ours, theirs = Encoder(), Encoder()
    outputs = {**neuron_config(transpose=True), "names": ["layer.*.fc2.weight"]}
    configs = [neuron_config(), outputs]
    own = PrunerList([GradientSensitivityPruner(ours, config) for config in configs])
    inc_ones = [inc_pruner(theirs, config) for config in configs]

    def step(model):
        backward(model)
        if exact:
            quantized(model)

    run_epoch(own, lambda i: step(ours), steps=1)
    for x in inc_ones:
        x.on_epoch_begin(0)
    step(theirs)
    for x in inc_ones:
        x.on_step_end()
    for x in inc_ones:
        x.on_epoch_end()
    for pruner, inc_one in zip(own, inc_ones, strict=True):
        for name, score in inc_one.importance.items():
            np.testing.assert_allclose(pruner.importance[name].numpy(), score, rtol=0 if exact else 1e-4, atol=1e-9)
    for name, weight in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name), weight), name


def test_slabs_are_equal():
    pruner, inc_one = GradientSensitivityPruner(Encoder(), {}), inc_pruner(Encoder(), {})
    random = np.random.default_rng(0)
    for _ in range(50):
        instances, stride = random.integers(1, 12), int(random.integers(1, 5))
        tensor = random.standard_normal((instances * stride, 3)).astype(np.float32)
        importance = random.integers(0, 4, instances).astype(np.float32)
        kept = int(random.integers(1, instances + 1))
        expected = inc_one.prune_by_importance(tensor, importance, kept, stride)
        assert np.array_equal(pruner.prune_by_importance(tensor, importance, kept, stride), expected)


def test_their_own_model_class_is_resized():
    model = Encoder()
    pruner = GradientSensitivityPruner(PyTorchModel(model), neuron_config())
    run_epoch(pruner, lambda i: backward(model, seed=i))
    assert (model.layer[0].fc1.out_features, model.layer[0].fc2.in_features) == (24, 24)
