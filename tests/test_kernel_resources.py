"""The CUDA kernels as they are compiled: no spills, no local memory, and 16 bytes at a time in the hot loops."""

import re
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import kernel_resources
import ptx
import pytest

ROOT = Path(__file__).parents[1]
compiled = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not there")

#: Bytes of a thread's 8 entries: of scores, weights and gradients in each dtype that a float holds, of words that a
#: mask is applied to in each size, and of the mask itself.
FLOATS, WORDS, MASK = 8 * (4 + 2 + 2), 8 * (1 + 2 + 4 + 8), 8
#: The same where half types, which lie in memory alike, are loaded in one way and told apart later.
SIZES = 8 * (4 + 2)


def pointers(*names):
    """Pointers that stand side by side in the first parameter, or in the entries of a table there."""
    return {(0, 8 * place): name for place, name in enumerate(names)}


UPDATE, SELECT, APPLY = (
    pointers("score", "weight", "grad"),
    pointers("weight", "grad", "norm", "mask"),
    pointers("data"),
)
FUSED = {**UPDATE, (0, 48): "mask"}


@dataclass(frozen=True)
class Hot:
    """Kernels that stream tensors: what ``names`` calls their arrays, and how many bytes of code their loops have for
    each array that they stream in accesses of 16 bytes, or of 8 for masks. What is not aligned, or the end of a tensor,
    has narrow accesses beside these. ``strided``: columns may lie apart, and then have accesses of their own."""

    names: dict
    streams: dict
    strided: bool = False


#: By the names of kernels and of their template arguments. A tile is 4 vectors of each thread, and a batch 2, which
#: take stored scores in a way of their own.
TILES = {"ld weight": 8 * FLOATS, "ld grad": 4 * FLOATS}
BATCHES = {"ld weight": 4 * FLOATS, "ld grad": 2 * FLOATS}
VECTORS = {"ld weight": FLOATS, "ld grad": FLOATS}


def rows(weight, mask):
    """Vectors of stored scores, each dtype in a way of its own, or one at a time; a sample is of single entries."""
    return Hot(SELECT, {"ld weight": weight, "ld grad": FLOATS, "st mask": mask}, strided=True)


HOT = {
    "update_scores_kernel": Hot(
        UPDATE, {**dict.fromkeys(("ld score", "ld weight", "ld grad"), SIZES), "st score": FLOATS}
    ),
    "update_block_scores_kernel": Hot(UPDATE, VECTORS, strided=True),
    # Two vectors of either, the first of each before the loop; what the metric does not read is read like the other.
    **{f"stream_block_scores_kernel DtypeE{dtype}E": Hot(UPDATE, {"ld weight": 16 * size, "ld grad": 16 * size})
       for dtype, size in ((0, 4), (1, 2), (2, 2))},
    "update_line_scores_kernel": Hot(UPDATE, {"ld weight": SIZES, "ld grad": SIZES}),
    "pass_kernel StoredScores": Hot(SELECT, {"ld weight": 2 * FLOATS}),
    "pass_kernel MetricScores": Hot(SELECT, BATCHES),
    "pass_kernel UpdatedScores": Hot(
        FUSED, dict.fromkeys(("ld score", "ld weight", "ld grad", "st score"), 2 * FLOATS)
    ),
    "round_kernel": Hot(SELECT, TILES),
    "count_next_digits_kernel": Hot(SELECT, TILES),
    "count_ties_kernel": Hot(SELECT, TILES),
    "write_mask_kernel": Hot(SELECT, TILES | {"st mask": 4 * MASK}),
    "warp_rows_kernel HeldScores Li1E": rows(2 * FLOATS, MASK),
    "warp_rows_kernel HeldScores Li4E": rows(5 * FLOATS, 4 * MASK),
    "block_rows_kernel HeldScores": rows(9 * FLOATS, 4 * MASK),
    # Vectors of bfloat16, in one way.
    **{f"{kernel} HeldPairs Li{count}E": Hot(SELECT, {"ld weight": count * 16, "st mask": count * MASK}, strided=True)
       for kernel, count in (("warp_rows_kernel", 8), ("warp_rows_kernel", 16), ("block_rows_kernel", 12))},
    "memory_rows_kernel": rows(3 * FLOATS, MASK),
    # Four vectors of stored scores, or one at a time.
    **{f"nm_vector_kernel Li{group}E": Hot(SELECT, {"ld weight": 5 * FLOATS, "ld grad": FLOATS, "st mask": 4 * MASK})
       for group in (2, 4, 8)},
    "fill_masks_kernel": Hot(pointers("mask"), {"st mask": MASK}),
    "apply_masks_kernel": Hot(APPLY, {"ld data": WORDS, "st data": WORDS}, strided=True),
    # 64 bytes of each thread: 4 rows of halves, 2 of floats, or one of doubles.
    **{f"apply_flat_block_masks_kernel I{letter}E": Hot(APPLY, {"ld data": 64})
       for letter in "tjm"},
    "pack_mask_kernel": Hot(pointers("mask"), {"ld mask": MASK}),
    "unpack_mask_kernel": Hot({(1, 0): "mask"}, {"st mask": MASK}),
    "copy_slabs_kernel uint4": Hot(pointers("source", "target"), {"ld source": 16, "st target": 16}),
}  # fmt: skip


def of(hot, kernels):
    """The kernels that an entry of HOT speaks of."""
    name, *arguments = hot.split()
    return [k for k in kernels if f"{len(name)}{name}" in k.name and all(a in k.name for a in arguments)]


def by_array(hot, accesses):
    """Accesses of arrays that are streamed, by what they do to which array, and by the registers of their address."""
    first = min((array.offset for access in accesses for array in access.arrays if array.parameter == 0), default=0)
    found = defaultdict(lambda: defaultdict(list))
    for access in accesses:
        for array in access.arrays:
            offset = array.offset - first if array.parameter == 0 else array.offset
            stream = f"{access.kind} {hot.names.get((array.parameter, offset))}"
            if stream in hot.streams:
                found[stream][access.place].append(access)
    return found


def reached(accesses):
    """How often each byte is reached."""
    return Counter(byte for access in accesses for byte in access.bytes)


def is_apart(accesses):
    """Whether an address is that of one entry, and not of a vector."""
    offsets, widest = {access.offset for access in accesses}, max(access.width for access in accesses)
    return widest < 16 and (len(offsets) == 1 or len(reached(accesses)) < 8)


def too_narrow(hot, accesses):
    """What is wrong with the accesses of a kernel, in words: every byte that narrow ones reach must be reached as often
    by wide ones from the same address."""
    arrays, wrong = by_array(hot, accesses), []
    for stream, least in hot.streams.items():
        is_mask, wide_bytes = stream.endswith("mask"), 0
        for place, own in arrays[stream].items():
            if is_apart(own):
                if not hot.strided and not is_mask:
                    wrong.append(f"{stream}: an entry at a time from {place}")
                continue
            width = 8 if is_mask else min(16, len(reached(own)))
            wide = reached(access for access in own if access.width >= width)
            missed = reached(access for access in own if access.width < width) - wide
            wide_bytes += wide.total()
            if missed:
                wrong.append(f"{stream}: {missed.total()} bytes from {place} have no wide access")
        if wide_bytes < least:
            wrong.append(f"{stream}: {wide_bytes} bytes in wide accesses, expected {least}")
    return wrong


@pytest.fixture(scope="module")
def kernels():
    measured = kernel_resources.measure()
    print("\n" + kernel_resources.table(measured))
    return measured


@compiled
def test_every_kernel_fits_its_registers(kernels):
    assert len(kernels) > 20
    assert [k for k in kernels if k.local or k.spilled] == []


@compiled
def test_static_shared_memory_fits_every_device(kernels):
    assert [k for k in kernels if k.shared > 48 * 1024] == []


@compiled
@pytest.mark.parametrize("name", HOT)
def test_hot_loops_move_16_bytes_at_a_time(kernels, name):
    variants = of(name, kernels)
    assert variants, f"there is no {name}"
    assert {k.name: too_narrow(HOT[name], k.accesses) for k in variants} == {k.name: [] for k in variants}


def narrowed(access):
    """A wide access as two or four narrow ones."""
    step = 4 if access.width == 16 else 1
    return [
        ptx.Access(access.kind, step, access.place, access.offset + i, access.arrays)
        for i in range(0, access.width, step)
    ]


def complaints_of_narrowed(hot, kernel, accesses):
    """Whether narrowing these accesses is seen."""
    others = [access for access in kernel.accesses if access not in accesses]
    return too_narrow(hot, others + [part for access in accesses for part in narrowed(access)])


@compiled
@pytest.mark.parametrize("name", HOT)
def test_narrowed_accesses_are_seen(kernels, name):
    """All wide accesses from one address in turn, and each alone."""
    hot = HOT[name]
    for kernel in of(name, kernels):
        places = [own for stream in by_array(hot, kernel.accesses).values() for own in stream.values()]
        wide = [[a for a in own if a.width == max(b.width for b in own)] for own in places if not is_apart(own)]
        assert wide
        for own in wide:
            assert complaints_of_narrowed(hot, kernel, own), own


#: A loop over a table of (score, weight, grad) that loads and stores as told.
LOOP = """
.visible .entry _Z20update_scores_kernel(
	.param .align 8 .b8 _Z_param_0[1000]
)
{{
	mov.b64 	%rd1, _Z_param_0;
	mov.u64 	%rd8, 0;
	ld.param.u32 	%r1, [_Z_param_0+8];
	ld.param.u64 	%rd9, [%rd1+100];
	ld.global.f32 	%f99, [%rd9];
$L__BB0_1:
	mul.lo.s64 	%rd2, %rd7, 24;
	add.s64 	%rd3, %rd1, %rd2;
	ld.param.u64 	%rd4, [%rd3+208];
	ld.param.v2.u64 	{{%rd40, %rd41}}, [%rd3+216];
	cvta.to.global.u64 	%rd5, %rd4;
	add.s64 	%rd6, %rd5, %rd8;
	add.s64 	%rd42, %rd40, %rd8;
	cvta.to.global.u64 	%rd43, %rd42;
	add.s64 	%rd44, %rd41, %rd8;
	cvta.to.global.u64 	%rd45, %rd44;
{body}
	add.s64 	%rd8, %rd8, 1024;
	setp.lt.s64 	%p1, %rd8, %rd99;
	@%p1 bra 	$L__BB0_1;

	st.global.f32 	[%rd9], %f99;
	ret;

}}
"""
WIDE = """
	ld.global.v4.f32 	{%f1, %f2, %f3, %f4}, [%rd6];
	ld.global.v4.u32 	{%r1, %r2, %r3, %r4}, [%rd43];
	ld.global.nc.v2.f64 	{%fd1, %fd2}, [%rd45];
	add.s64 	%rd50, %rd4, %rd8;
	st.global.cg.v4.u32 	[%rd50], {%r1, %r2, %r3, %r4};
"""
STREAMS = Hot(UPDATE, dict.fromkeys(("ld score", "ld weight", "ld grad", "st score"), 16))


def loop_accesses(body):
    (text,) = ptx.kernels(LOOP.format(body=body)).values()
    return list(ptx.Code(text).accesses())


def test_accesses_of_a_loop_are_found_by_array():
    found = {(a.kind, a.width, array.offset) for a in loop_accesses(WIDE) for array in a.arrays}
    assert found == {("ld", 16, 208), ("ld", 16, 216), ("ld", 16, 224), ("st", 16, 208)}  # and none outside the loop
    assert too_narrow(STREAMS, loop_accesses(WIDE)) == []


@pytest.mark.parametrize(
    ("wide", "narrow", "complaint"),
    [
        ("ld.global.v4.f32 	{%f1, %f2, %f3, %f4}, [%rd6]", "ld.global.v2.f32 {%f1, %f2}, [%rd6]",
         "ld score: an entry at a time"),
        ("ld.global.v4.f32 	{%f1, %f2, %f3, %f4}, [%rd6]", "ld.global.f32 %f1, [%rd6]", "ld score: an entry at a time"),
        ("ld.global.nc.v2.f64 	{%fd1, %fd2}, [%rd45]", "ld.f64 %fd1, [%rd45]; \n ld.f64 %fd2, [%rd45+8]",
         "ld grad: 16 bytes"),
        ("st.global.cg.v4.u32 	[%rd50], {%r1, %r2, %r3, %r4}", "st.global.u16 [%rd50+2], %rs1",
         "st score: an entry at a time"),
    ],
    ids=["half", "one entry", "an entry after the other", "a word to store"],
)  # fmt: skip
def test_a_narrow_loop_is_seen(wide, narrow, complaint):
    assert wide in WIDE
    wrong = too_narrow(STREAMS, loop_accesses(WIDE.replace(wide, narrow)))
    assert any(complaint in line for line in wrong), wrong
    # Beside a wide one, it is for what is not aligned.
    both = loop_accesses(WIDE + narrow + ";")
    assert too_narrow(STREAMS, both) == []


def test_the_log_of_ptxas_is_understood():
    log = """ptxas info    : Compiling entry function '_Z1f' for 'sm_90'
    ptxas info    : Function properties for _Z1f
        16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
    ptxas info    : Used 40 registers, used 1 barriers, 8192 bytes smem, 560 bytes cmem[0]"""
    assert kernel_resources.parse("f.cu", log) == [
        kernel_resources.Kernel("f.cu", "_Z1f", registers=40, shared=8192, local=16, spilled=12)
    ]


def shipped_archs():
    """The architectures that setup.py builds for where nobody chooses, but the one that is compiled above."""
    archs = re.search(r'^DEFAULT_ARCHS = "(.*)"$', (ROOT / "setup.py").read_text(), re.M)[1].split()
    return [f"sm_{arch.removesuffix('+PTX').replace('.', '')}" for arch in archs if arch != "9.0"]


@compiled
@pytest.mark.parametrize("arch", shipped_archs())
def test_every_source_compiles_for_what_is_shipped(arch, tmp_path):
    # Without optimisation, which takes seconds and not minutes: each architecture chooses code of its own.
    for source in sorted(kernel_resources.CUDA.glob("*.cu")):
        target = tmp_path / f"{source.stem}.ptx"
        kernel_resources.nvcc(source, target, *kernel_resources.FLAGS, "-Xcicc", "-O0", f"-arch={arch}")
        assert ptx.kernels(target.read_text())
