"""The faults of ``mutate.py`` are where it looks for them: a run of it takes hours, and code changes."""

import mutate
import pytest


@pytest.mark.parametrize("fault", mutate.FAULTS, ids=[fault.name for fault in mutate.FAULTS])
def test_a_fault_can_be_planted(fault):
    source = (mutate.ROOT / "csrc" / fault.file).read_text()
    assert source.count(fault.old) == 1
    assert source.replace(fault.old, fault.new) != source
