"""Other libraries are optional: nothing imports them unasked, and their absence is said clearly."""

import subprocess
import sys

import pytest

from pruneops.integrations import neural_compressor


def test_importing_pruneops_imports_none_of_them():
    others = {"neural_compressor", "torch_pruning", "transformers", "accelerate"}
    code = (
        "import sys, pruneops, pruneops.integrations.neural_compressor; "
        f"sys.exit(', '.join({others} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_neural_compressor_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "neural_compressor"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "neural_compressor", None)
    with pytest.raises(ImportError, match=r"versions 2\.2 to 3\.7 \(pip install 'pruneops\[neural-compressor\]'\)"):
        neural_compressor.enable()
    neural_compressor.disable()


def test_torch_pruning_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "pruneops.integrations.torch_pruning", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_pruning"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"pip install 'pruneops\[torch-pruning\]'"):
        import pruneops.integrations.torch_pruning  # noqa: F401
