"""What calls leave behind: nothing."""

import subprocess
import sys

import pytest

from pruneops import backend_info

#: Bytes in use by malloc after many calls whose string is long, each of which the operator refuses.
SCRIPT = """
import ctypes, torch
from pruneops import ops

class Info(ctypes.Structure):  # struct mallinfo2
    _fields_ = [(f"before{i}", ctypes.c_size_t) for i in range(7)]
    _fields_ += [(name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
score, mask = torch.rand(8), torch.empty(8, dtype=torch.bool)

def used(calls):
    for _ in range(calls):
        try:
            torch.ops.pruneops.topk_mask([score], [mask], 3, "a" * 4000, False, "b" * 4000, [], [])
        except RuntimeError:
            pass
    return mallinfo2().uordblks

first = used(200)
print((used(2000) - first) / 2000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
@pytest.mark.skipif(backend_info()["cpu"] != "native", reason="of the compiled operators")
def test_strings_are_freed():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 100
