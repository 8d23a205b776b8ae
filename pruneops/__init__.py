"""pruneops: fast, exact pruning of large transformers in PyTorch."""

from . import ops
from ._native import backend_info
from ._version import __version__

__all__ = ["__version__", "backend_info", "ops"]
