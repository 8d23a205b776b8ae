"""Patterns: what is parsed, what is refused, which shapes they divide."""

import pytest

from pruneops.patterns import Pattern, parse_pattern


@pytest.mark.parametrize(
    ("spec", "block", "nm"),
    [
        ("1x1", None, None),
        ("4x1", (4, 1), None),
        ("1x16", (1, 16), None),
        ("32x32", (32, 32), None),
        ("channelx1", (-1, 1), None),
        ("1xchannel", (1, -1), None),
        ("2:4", None, (2, 4)),
        ("8:8", None, (8, 8)),
    ],
)
def test_accepted_forms(spec, block, nm):
    pattern = parse_pattern(spec)
    assert (pattern.spec, pattern.block, pattern.nm) == (spec, block, nm)
    assert str(pattern) == spec
    assert parse_pattern(pattern) is pattern


@pytest.mark.parametrize(
    "spec", ["", "4", "4x", "x4", "0x1", "-1x1", "4x1x1", "4 x 1", "0:4", "2:0", "channelxchannel", "2/4", "٤x1"]
)
def test_refused_forms_list_what_is_accepted(spec):
    with pytest.raises(ValueError, match=r"NxM.*channelx1.*1xchannel.*N:M") as error:
        parse_pattern(spec)
    assert repr(spec) in str(error.value)


def test_more_kept_than_there_are():
    with pytest.raises(ValueError, match="keeps 4 of 2"):
        parse_pattern("4:2")


def test_not_a_string():
    with pytest.raises(TypeError, match="tuple"):
        parse_pattern((4, 1))


@pytest.mark.parametrize(
    ("spec", "shape", "divides"),
    [
        ("1x1", (3, 5), True),
        ("1x1", (7,), True),
        ("4x1", (8, 5), True),
        ("4x1", (6, 5), False),
        ("4x1", (8,), False),
        ("1x4", (3, 6), False),
        ("1x4", (3, 2, 2, 2), True),
        ("1x4", (3, 3, 3, 3), False),
        ("channelx1", (7, 5), True),
        ("1xchannel", (7, 5, 3), True),
        ("channelx1", (7,), False),
        ("4x1", (0, 5), True),
        ("channelx1", (0, 5), True),
        ("2:4", (3, 8), True),
        ("2:4", (3, 6), False),
        ("2:4", (3, 8, 3, 3), True),
        ("2:4", (3, 2, 2, 2), False),  # 8 entries a row, but groups lie along the input channels
        ("2:4", (8,), False),
    ],
)
def test_divides(spec, shape, divides):
    assert parse_pattern(spec).divides(shape) is divides


def test_grid_and_own_sparsity():
    assert parse_pattern("4x2").grid((8, 6)) == (2, 3)
    assert parse_pattern("1xchannel").grid((8, 3, 2, 2)) == (8, 1)
    assert parse_pattern("2:4").grid((8, 4)) == (8, 4)
    assert parse_pattern("1:4").sparsity == 0.75
    assert parse_pattern("4x1").sparsity is None


def test_frozen():
    with pytest.raises(AttributeError):
        parse_pattern("4x1").spec = "1x1"
    assert parse_pattern("4x1") == Pattern("4x1", block=(4, 1))
