"""pruneops: fast, exact pruning of large transformers in PyTorch."""

from . import ops
from ._native import backend_info
from ._version import __version__
from .blockwise import wanda
from .calibration import calibrate
from .criteria import CRITERIA, PruningCriterion, criterion_from_metric, get_criterion, register_criterion
from .gradient_sensitivity import GradientSensitivityPruner
from .mask_files import load_masks, save_masks
from .patterns import Pattern, parse_pattern
from .pruner import Pruner
from .pruning import prune
from .report import PruneReport
from .selection import apply_masks, select_masks

__all__ = [
    "CRITERIA",
    "GradientSensitivityPruner",
    "Pattern",
    "PruneReport",
    "Pruner",
    "PruningCriterion",
    "__version__",
    "apply_masks",
    "backend_info",
    "calibrate",
    "criterion_from_metric",
    "get_criterion",
    "load_masks",
    "ops",
    "parse_pattern",
    "prune",
    "register_criterion",
    "save_masks",
    "select_masks",
    "wanda",
]
