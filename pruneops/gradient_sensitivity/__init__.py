"""Pruning by gradient sensitivity: attention heads, feed-forward neurons, or weights one by one.

The classes have the interface of Neural Compressor's legacy gradient-sensitivity pruner; what they leave is a smaller
model that runs.
"""

from .base import PRUNERS, Pruner, PrunerList, register_pruner
from .pruner import GradientSensitivityPruner
from .structure import Group, find_groups
from .surgery import cut, load_pruned

__all__ = [
    "PRUNERS",
    "GradientSensitivityPruner",
    "Group",
    "Pruner",
    "PrunerList",
    "cut",
    "find_groups",
    "load_pruned",
    "register_pruner",
]
