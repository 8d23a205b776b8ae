"""Pruning criteria: what scores a weight, and when in a training step.

The classes have the interface of Intel Neural Compressor's pruning criteria and hold no formulas: each hook is one
call of :func:`pruneops.ops.update_scores_` or :func:`pruneops.ops.update_block_scores_` for all modules.
"""

from .base import PruningCriterion
from .block_masks import BlockMaskCriterion, RetrainFreeCriterion, SnipMomentumBlockCriterion
from .metric import MetricCriterion, criterion_from_metric
from .registry import ALIASES, CRITERIA, criterion_class, get_criterion, register_criterion
from .weights import GradientCriterion, MagnitudeCriterion, MomentumCriterion, SnipCriterion, SnipMomentumCriterion

__all__ = [
    "ALIASES",
    "CRITERIA",
    "BlockMaskCriterion",
    "GradientCriterion",
    "MagnitudeCriterion",
    "MetricCriterion",
    "MomentumCriterion",
    "PruningCriterion",
    "RetrainFreeCriterion",
    "SnipCriterion",
    "SnipMomentumBlockCriterion",
    "SnipMomentumCriterion",
    "criterion_class",
    "criterion_from_metric",
    "get_criterion",
    "register_criterion",
]
