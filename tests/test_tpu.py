"""The program that the TPU's compiler makes of training, ahead of time: no TPU is needed, but libtpu is."""

import functools
import importlib.util
import math
import re

import pytest

from flax_srnn.benchmark import process, tpu
from flax_srnn.benchmark.process import OURS, Case

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler is not installed: pip install 'flax-srnn[tpu-aot]' (Linux, Python 3.12 or newer)",
)

ARRAY = re.compile(r"\w+\[([\d,]+)\]\{([\d,]+)")
CASES = [
    Case((8, 997, 16, 128)),  # whole blocks and a rest
    Case((8, 997, 16, 128), dtype="bfloat16"),
    Case((8, 997, 16, 128), time_major=True),
    Case((1, 50, 4, 8)),  # one block, one row
]
of_cases = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{process.label(case.shape)} {case.dtype}{' time-major' * case.time_major}"
)


@functools.cache
def program(case):
    return tpu.compiled(case, OURS)


def body(program, name):
    """The lines of a loop's body and of what they call."""
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$\n((?:.*\n)*?)\}", program.text, re.MULTILINE))
    lines = computations[name].splitlines()
    called = [
        x
        for line in lines
        for inner in re.findall(r"calls=%?([\w.\-]+)", line)
        for x in computations[inner].splitlines()
    ]
    return lines, called


@of_cases
def test_loops_over_steps(case):
    """Each step is a product of matrices, of pieces of memory that lie side by side in the memory that is computed from."""
    found = program(case)
    rows = case.shape[0]
    loops = [loop for loop in found.loops if loop.innermost]
    assert len(loops) >= 2
    for loop in loops:
        lines, called = body(found, loop.name)
        arrays = [(tuple(map(int, shape.split(","))), layout) for shape, layout in ARRAY.findall("\n".join(lines))]
        sequences = {(shape, layout) for shape, layout in arrays if len(shape) == 3}
        assert sequences
        assert {layout for _, layout in sequences} == {"2,1,0"}
        assert all(shape[0] <= 64 for shape, _ in sequences)  # time first, and no more than a block
        products = [line for line in called if " convolution(" in line]
        assert len(products) == (1 if rows > 1 else 0)  # a product of one row is a sum
    assert found.transfers == 0


@of_cases
def test_loops_over_blocks(case):
    """No array of all steps is copied there, in any dtype: they are read and written in place."""
    found = program(case)
    batch, steps, _, units = case.shape
    for loop in found.loops:
        lines, _ = body(found, loop.name)
        copied = [ARRAY.search(line) for line in lines if re.search(r" copy(-start)?\(", line)]
        sizes = [math.prod(map(int, array[1].split(","))) for array in copied if array]
        assert max(sizes, default=0) < batch * steps * units


def test_half_precision_is_kept():
    """No array of all steps that goes through a loop is of float32: a block at a time is."""
    batch, steps, _, units = CASES[1].shape
    loops = [line for line in program(CASES[1]).text.splitlines() if " while(" in line]
    assert loops
    arrays = re.findall(r"\bf32\[([\d,]+)\]", "\n".join(loops))
    assert max(math.prod(map(int, shape.split(","))) for shape in arrays) < batch * steps * units


def test_cycles_of_a_step():
    """Each loop over steps, and the work of a block divided by its steps."""
    loops = (
        tpu.Loop("blocks", 5, 0, False, 640, 0),
        tpu.Loop("steps", 64, 1, True, 100, 1),
        tpu.Loop("backward", None, 0, True, 200, 2),
    )
    made = tpu.Program("", 0, loops)
    assert (made.cycles, made.transfers) == (640 / 64 + 100 + 200, 3)


def test_a_program_that_cannot_be_compiled():
    with pytest.raises(process.MeasurementError, match=r"1x2x3x4 was not compiled for a TPU: .*nonsense"):
        tpu.compiled(Case((1, 2, 3, 4), dtype="nonsense"), OURS)
