"""The CUDA kernels as they are compiled: no spills, no local memory, and 16 bytes at a time in the hot loops."""

import re
import shutil

import kernel_resources
import pytest

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not there")

#: Kernels that stream tensors, and the widest accesses that they make where pointers are aligned.
HOT = {
    "update.cu": {"update_scores_kernel": ("ld", "st"), "update_block_scores_kernel": ("ld",)},
    "select.cu": {"pass_kernel": ("ld",), "round_kernel": ("ld",), "count_next_digits_kernel": ("ld",),
                  "write_mask_kernel": ("ld",), "count_ties_kernel": ("ld",), "row_topk_mask_kernel": ("ld",),
                  "nm_vector_kernel": ("ld",)},
    "masks.cu": {"apply_masks_kernel": ("ld", "st"), "apply_block_masks_kernel": ("ld", "st")},
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    return kernel_resources.compile_all()


@pytest.fixture(scope="module")
def kernels(compiled):
    measured = kernel_resources.measure(compiled)
    print("\n" + kernel_resources.table(measured))
    return measured


def test_every_kernel_fits_its_registers(kernels):
    assert len(kernels) > 20
    assert [k for k in kernels if k.local or k.spilled] == []


def test_static_shared_memory_fits_every_device(kernels):
    assert [k for k in kernels if k.shared > 48 * 1024] == []


@pytest.mark.parametrize("source", HOT)
def test_hot_loops_move_16_bytes_at_a_time(compiled, source):
    entries = kernel_resources.entries(compiled[source].ptx)
    for kernel, accesses in HOT[source].items():
        # Groups of one entry are kept or pruned without a look at the scores.
        variants = {
            name: text for name, text in entries.items() if f"{len(kernel)}{kernel}" in name and "Li1E" not in name
        }
        assert variants, f"{kernel} is not in {source}"
        for name, text in variants.items():
            for access in accesses:
                wide = re.search(
                    rf"{access}\.global(\.nc)?(\.\w+)*\.v4\.[buf]32|{access}\.global(\.\w+)*\.v2\.[buf]64", text
                )
                assert wide, f"{name} has no 16-byte {access}.global"


def test_the_log_of_ptxas_is_understood():
    log = """ptxas info    : Compiling entry function '_Z1f' for 'sm_90'
    ptxas info    : Function properties for _Z1f
        16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
    ptxas info    : Used 40 registers, used 1 barriers, 8192 bytes smem, 560 bytes cmem[0]"""
    assert kernel_resources.parse("f.cu", log) == [
        kernel_resources.Kernel("f.cu", "_Z1f", registers=40, shared=8192, local=16, spilled=12)
    ]
