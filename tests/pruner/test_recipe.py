"""Recipes: YAML, defaults and overrides, and what is refused."""

import pytest
import torch
from training import Model, train

from pruneops.pruner import Pruner
from pruneops.recipe import make_rules, read_recipe

RECIPE = """
criterion: magnitude
sparsity: 0.75
schedule: linear
end_step: 4
ignore: [conv]
rules:
  - targets: fc          # a glob
    pattern: 2:4         # no quotes needed
  - targets: ["re:^mlp$"]
    pattern: 2x2
    scope: local
"""


def test_a_recipe_from_a_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = Pruner.from_recipe(model, optimizer, path, end_step=3)
    train(model, optimizer, 3)
    report = pruner.detach()
    assert {layer.name: layer.sparsity for layer in report.layers} == {"fc": 0.5, "mlp": 0.75}
    assert (report.criterion, report.pattern) == ("magnitude", "2:4, 2x2")


def test_a_recipe_as_a_mapping():
    model = Model()
    pruner = Pruner.from_recipe(model, None, {"targets": "fc", "pattern": "1x1", "end_step": 3}, sparsity=0.5)
    assert [layer.name for layer in pruner.layers] == ["fc"]


def test_a_rule_with_n_of_m_has_its_own_sparsity():
    rules = make_rules({"sparsity": 0.9, "end_step": 1}, [{"pattern": "1:4"}, {"pattern": "4x1"}])
    assert [rule.sparsity for rule in rules] == [None, 0.9]
    assert rules[0].plan({"fc": (8, 8)}).sparsity == 0.75


def test_the_default_sparsity():
    (rule,) = make_rules({"end_step": 1})
    assert rule.plan({"fc": (8, 8)}).sparsity == 0.8


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "must hold a mapping, got list"), ("a: [", "not valid YAML"), ("", "must hold a mapping")],
)
def test_files_that_are_no_recipe(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(path)


def test_a_number_that_yaml_takes_for_text_is_shown(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("sparsity: 8e-1\nend_step: 3\n")
    with pytest.raises(TypeError, match="sparsity must be a number, got '8e-1'"):
        Pruner.from_recipe(Model(), None, path)


def test_a_setting_under_two_names():
    recipe = {"targets": "fc", "end_step": 3, "include": "mlp"}
    with pytest.raises(ValueError, match="the recipe says 'include' twice: 'include' is another name of it"):
        Pruner.from_recipe(Model(), None, recipe)
    with pytest.raises(ValueError, match="the recipe says 'exclude' twice: 'ignore' is another name of it"):
        Pruner.from_recipe(Model(), None, {"exclude": "fc", "ignore": "mlp", "end_step": 3})
    # Arguments are stronger than the recipe, under whatever name it has them.
    pruner = Pruner.from_recipe(Model(), None, {"targets": "fc", "end_step": 3}, include="mlp")
    assert [layer.name for layer in pruner.layers] == ["mlp"]


def test_bad_rules():
    with pytest.raises(TypeError, match=r"rules\[0\] must map names to settings, got str"):
        make_rules({}, ["fc"])
    with pytest.raises(ValueError, match="rules must be"):
        make_rules({}, {"targets": "fc"})
    with pytest.raises(TypeError, match="unexpected keyword argument 'sparsty'"):
        Pruner.from_recipe(Model(), None, {"sparsty": 0.5})
