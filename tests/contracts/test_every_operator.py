"""What is about every operator names every one: a new operator needs a case in each."""

import fuzz
import oracle
import pytest
import test_async
import test_determinism
import test_large
import test_sizes
from calls import operators_in

from bench import check
from pruneops import _checks, ops

#: They refuse a tensor without dimensions.
OF_MATRICES = {"block_reduce", "expand_block_mask", "prune_by_importance", "update_block_scores_"}


@pytest.mark.parametrize(("sources", "without"), [
    ((test_async.step,), set()),
    ((test_determinism.results,), set()),
    ((test_sizes.test_empty_tensor_through_every_op, test_sizes.test_empty_weight_through_every_block_op), set()),
    ((test_sizes.test_zero_dimensions_through_every_op,), OF_MATRICES),
    ((test_large,), set()),
    ((check,), set()),
    ((fuzz,), {"empty_masks"}),
], ids=["async", "determinism", "empty", "0-d", "2^32", "bench.check", "fuzz"])  # fmt: skip
def test_no_operator_lacks_a_case(sources, without):
    assert operators_in(*sources) == set(ops.__all__) - without


def test_the_oracle_knows_every_metric():
    assert oracle.METRICS == _checks.SCORE_METRICS
    assert {*oracle.METRICS, *oracle.MASK_METRICS} == set(_checks.BLOCK_METRICS)
    assert oracle.SELECT_METRICS == _checks.SELECT_METRICS
