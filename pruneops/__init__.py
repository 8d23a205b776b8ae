"""pruneops: fast, exact pruning of large transformers in PyTorch."""

from . import ops
from ._native import backend_info
from ._version import __version__
from .criteria import CRITERIA, PruningCriterion, get_criterion, register_criterion
from .patterns import Pattern, parse_pattern
from .pruning import prune
from .report import PruneReport
from .selection import apply_masks, select_masks

__all__ = [
    "CRITERIA",
    "Pattern",
    "PruneReport",
    "PruningCriterion",
    "__version__",
    "apply_masks",
    "backend_info",
    "get_criterion",
    "ops",
    "parse_pattern",
    "prune",
    "register_criterion",
    "select_masks",
]
