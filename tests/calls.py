"""Which operators run, and which ones are written in a test."""

import inspect
import re

from torch.utils._python_dispatch import TorchDispatchMode

#: What brings values from the device to the host, or would make the host wait for them.
TO_HOST = {"_local_scalar_dense", "item", "_to_copy", "nonzero", "is_nonzero"}


class Calls(TorchDispatchMode):
    """Notes operators while it is entered.

    Attributes:
        ours: names of this library's, in order.
        others: names of all others.
    """

    def __init__(self):
        super().__init__()
        self.ours, self.others = [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, _, name = function.name().partition("::")
        if namespace == "pruneops":
            self.ours.append(name)
        else:
            self.others.add(name.partition(".")[0])
        return function(*args, **(kwargs or {}))


def operators_in(*sources):
    """What functions or modules call as ``ops.name(…)``."""
    return {name for source in sources for name in re.findall(r"\bops\.(\w+)\(", inspect.getsource(source))}
