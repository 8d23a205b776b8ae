"""Settings: from every kind of configuration, with a clear error for what they must not hold."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from sensitivity_models import Encoder, head_config, neuron_config
from torch import nn

from pruneops.gradient_sensitivity import PRUNERS, GradientSensitivityPruner, Pruner, PrunerList, register_pruner
from pruneops.gradient_sensitivity.config import read_settings


@dataclass
class Local:
    names: list = field(default_factory=lambda: ["fc.weight"])
    target_sparsity: float = 0.5
    start_epoch: int | None = None


@pytest.mark.parametrize("kind", ["mapping", "dataclass", "object", "yaml"])
def test_every_kind_of_configuration_is_read(kind, tmp_path):
    values = {"names": ["fc.weight"], "target_sparsity": 0.5}
    file = tmp_path / "local.yaml"
    if kind == "yaml":
        pytest.importorskip("yaml", reason="needs PyYAML")
        file.write_text("names: [fc.weight]\ntarget_sparsity: 0.5\n")
    config = {"mapping": values, "dataclass": Local(), "object": SimpleNamespace(**values), "yaml": file}[kind]
    settings = read_settings(config, {"start_epoch": 2, "target_sparsity": 0.9})
    assert (settings.names, settings.target_sparsity, settings.start_epoch) == (["fc.weight"], 0.5, 2)


def test_defaults_are_those_of_neural_compressor():
    settings = read_settings(None)
    assert (settings.start_epoch, settings.end_epoch) == (0, 4)
    assert (settings.initial_sparsity, settings.target_sparsity) == (0.0, 0.97)


def test_keys_that_neural_compressor_leaves_unread_are_accepted():
    read_settings({"prune_type": "gradient_sensitivity", "prune_domain": "global", "start_step": 0}, {"pruners": []})


@pytest.mark.parametrize(
    ("local", "error", "says"),
    [
        ({"target_sparsty": 0.5}, ValueError, "target_sparsty"),
        ({"target_sparsity": 1.0}, ValueError, "target_sparsity"),
        ({"initial_sparsity": 0.9, "target_sparsity": 0.5}, ValueError, "initial_sparsity 0.9"),
        ({"start_epoch": 3, "end_epoch": 1}, ValueError, "start_epoch 3"),
        ({"start_epoch": 0.5}, TypeError, "start_epoch"),
        ({"update_frequency": 0}, ValueError, "update_frequency"),
        ({"method": "per_row"}, ValueError, "method"),
        ({"pattern": "2:4"}, ValueError, "pattern"),
        ({"pattern": "tile_pattern_big"}, ValueError, "pattern"),
        ({"ties": "some"}, ValueError, "ties"),
        ({"names": 3}, TypeError, "names"),
        ({"names": []}, ValueError, "names is empty"),
        ({"parameters": {"target": 2, "importance_metric": "abs_gradient", "strid": 1}}, ValueError, "strid"),
        ({"parameters": {"target": 2, "importance_metric": "abs"}}, ValueError, "importance_metric"),
        ({"parameters": {"target": 0, "importance_metric": "abs_gradient"}}, ValueError, "target"),
        ({"parameters": {"importance_metric": "abs_gradient"}}, TypeError, "target"),
        ({"parameters": {"target": 2, "importance_metric": "weighted_gradient"}}, ValueError, "importance_inputs"),
        ({"pruners": [{}]}, ValueError, "pruners"),
        (7, TypeError, "local_config"),
    ],
)
def test_a_wrong_setting_is_named(local, error, says):
    with pytest.raises(error, match=says):
        read_settings(local)


def test_names_and_parameters_are_local():
    with pytest.raises(ValueError, match="'names' belongs to the local"):
        read_settings({}, {"names": ["fc.weight"]})


@pytest.mark.parametrize(
    ("epochs", "frequency", "expected"),
    [
        ((1, 3), 1, [0, 0.8 / 3, 1.6 / 3, 0.8, 0.8]),
        ((0, 3), 2, [0, 0.4, 0.4, 0.8, 0.8]),
        ((2, 2), 1, [0, 0, 0.8, 0.8, 0.8]),
    ],
)
def test_the_schedule_grows_in_equal_steps(epochs, frequency, expected):
    config = {"start_epoch": epochs[0], "end_epoch": epochs[1], "target_sparsity": 0.8, "update_frequency": frequency}
    pruner = Pruner(nn.Linear(2, 2), config)
    assert [pruner.update_sparsity(epoch) for epoch in range(5)] == pytest.approx(expected, abs=1e-15)


def test_the_schedule_starts_from_the_initial_sparsity():
    config = {"start_epoch": 0, "end_epoch": 1, "initial_sparsity": 0.2, "target_sparsity": 0.8}
    pruner = Pruner(nn.Linear(2, 2), config)
    assert [pruner.update_sparsity(epoch) for epoch in range(2)] == pytest.approx([0.5, 0.8])


def test_a_registered_pruner_is_made_by_its_name(monkeypatch):
    monkeypatch.setattr("pruneops.gradient_sensitivity.base.PRUNERS", dict(PRUNERS))

    class Counting(Pruner):
        steps = 0

        def on_step_end(self):
            self.steps += 1

    register_pruner("counting")(Counting)
    pruners = PrunerList.from_config(nn.Linear(2, 2), {"pruners": [{"prune_type": "counting"}]})
    for hook in (lambda: pruners.on_train_begin(), lambda: pruners.on_epoch_begin(0), lambda: pruners.on_step_begin(0)):
        hook()
    pruners.on_before_optimizer_step()
    pruners.on_step_end()
    pruners.on_epoch_end()
    pruners.on_train_end()
    assert len(pruners) == 1
    assert pruners[0].steps == 1


@pytest.mark.parametrize(
    ("config", "says"),
    [({}, "'pruners'"), ({"pruners": []}, "'pruners'"), ({"pruners": [{"prune_type": "lasso"}]}, "lasso")],
)
def test_a_list_without_known_pruners_is_refused(config, says):
    with pytest.raises(ValueError, match=says):
        PrunerList.from_config(nn.Linear(2, 2), config)


def test_pruners_come_from_a_file_of_neural_compressor(tmp_path):
    pytest.importorskip("yaml", reason="needs PyYAML")
    file = tmp_path / "prune.yaml"
    file.write_text(
        """
        pruning:
          approach:
            weight_compression:
              start_epoch: 0
              end_epoch: 1
              pruners:
                - !Pruner
                    prune_type: gradient_sensitivity
                    names: ['layer.*.attention.q_proj.weight']
                    parameters: {target: 2, normalize: True, stride: 8, transpose: False,
                                 importance_inputs: ['head_mask'], importance_metric: abs_gradient}
                - !Pruner
                    names: ['layer.*.fc1.weight']
                    parameters: {target: 24, normalize: False, stride: 1, transpose: False,
                                 importance_inputs: ['layer.*.fc1.weight'], importance_metric: weighted_gradient}
        """
    )
    heads, neurons = PrunerList.from_config(Encoder(), file)
    assert isinstance(heads, GradientSensitivityPruner)
    assert (heads.parameters["target"], heads.end_epoch) == (2, 1)
    assert neurons.parameters["importance_inputs"] == ["layer.*.fc1.weight"]


@pytest.mark.parametrize(("text", "says"), [("- 1", "list"), ("names: [", "not a YAML file")])
def test_a_file_that_holds_no_settings_is_refused(tmp_path, text, says):
    pytest.importorskip("yaml", reason="needs PyYAML")
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_settings(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (head_config(target=5), "q_proj.weight'.*target 5.*4 heads"),
        (head_config(stride=16), "q_proj.weight'.*stride 16.*8 rows"),
        (head_config(transpose=True), "q_proj.weight'.*transpose"),
        (neuron_config(target=65), "fc1.weight'.*target 65.*64 neurons"),
        (neuron_config(stride=2), "fc1.weight'.*stride 2"),
        (neuron_config(importance_metric="abs_gradient"), "fc1.weight'.*abs_gradient"),
        (neuron_config(importance_inputs=["layer.*.fc9.weight"]), "fc1.weight'.*importance_inputs.*layer.0.fc9.weight"),
        ({**neuron_config(), "names": ["blocks.*.fc1.weight"]}, r"names: 'blocks\.\*\.fc1\.weight' matches no weight"),
        ({**neuron_config(), "names": ["fc1.weight"]}, "names: .*'fc1.weight'"),
        ({"names": ["layer.0.fc1.weight"], "pattern": "3x1"}, "layer.0.fc1.weight'.*pattern '3x1'.*64"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_anything_is_written(config, says):
    model = Encoder()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=says):
        GradientSensitivityPruner(model, config)
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="lacks get_all_weight_names"):
        GradientSensitivityPruner(object(), head_config())
