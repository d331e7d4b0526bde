"""How the work is cut and written: what `Tuning` decides on both sides of every border, and that no decision shows in a result."""

import dataclasses
import functools
import itertools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from programs import assert_close, call, compiled, plain

from flax_srnn import Scan, simple_rnn
from flax_srnn.core import products
from flax_srnn.core.cell import Cell
from flax_srnn.core.problem import Problem
from flax_srnn.core.tuning import ACCELERATORS, MEASURED, Tuning

NEWEST = dataclasses.replace(MEASURED, row_products=2**13)
OLDEST = dataclasses.replace(MEASURED, row_products=0)


def problem(shape, **options):
    batch, steps, features, units = shape
    cell = Cell(jnp.zeros((features, units)), jnp.zeros((units, units)), **options)
    return Problem(cell, inputs=jnp.zeros((batch, steps, features)), initial_state=jnp.zeros((batch, units)))


@pytest.mark.parametrize(
    ("shape", "newest", "oldest"),
    [
        ((2, 50, 8, 40), products.summed, products.summed),  # 2·40·40 < 2^12
        ((2, 50, 8, 48), products.rows, products.library),
        ((2, 50, 8, 28), products.summed, products.summed),  # 2·28·28 < 2^11
        ((2, 50, 8, 36), products.library, products.library),
        ((2, 50, 8, 22), products.summed, products.summed),  # 2·22·22 < 2^10
        ((2, 50, 8, 23), products.library, products.library),
        ((4, 50, 8, 32), products.rows, products.library),
        ((4, 50, 8, 40), products.rows, products.library),
        ((4, 50, 8, 44), products.library, products.library),
        ((4, 50, 8, 48), products.library, products.library),
        ((8, 50, 8, 32), products.rows, products.library),  # 8·32·32 = 2^13
        ((8, 50, 33, 32), products.library, products.library),
        ((3, 50, 8, 40), products.library, products.library),
        ((64, 50, 8, 2), products.library, products.library),  # the larger of 64·8·2 and 64·2·2
        ((64, 50, 7, 2), products.summed, products.summed),
        ((1, 50, 4, 8), products.library, products.library),
    ],
)
def test_how_the_products_of_a_step_are_written(shape, newest, oldest):
    assert NEWEST.product(problem(shape)) is newest
    assert OLDEST.product(problem(shape)) is oldest
    assert NEWEST.product(problem(shape, precision="highest")) is products.library


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 50, 8, 64), True), ((4, 50, 7, 64), False), ((1, 50, 8, 64), False), ((2, 50, 8, 40), False)],
)
def test_when_the_inputs_of_a_block_are_projected_at_once(shape, expected):
    assert NEWEST.hoists(problem(shape)) is expected


def test_rows_are_not_projected_at_once():
    assert [tuning.hoists(problem((4, 50, 8, 40))) for tuning in (NEWEST, OLDEST)] == [False, True]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 50, 4, 8), True),  # 2·13·8 < 2^8
        ((2, 50, 7, 8), False),  # 2·16·8 = 2^8
        ((3, 50, 4, 8), False),
        ((1, 50, 8, 12), True),
        ((1, 50, 9, 12), False),
    ],
)
def test_when_the_backward_pass_gathers_by_step(shape, expected):
    assert NEWEST.gathers_by_step(problem(shape)) is expected
    assert NEWEST.gathers_by_step(problem(shape, precision="highest")) is False


@pytest.mark.parametrize(
    ("shape", "steps"),
    [((8, 4096, 3, 32), 4096), ((8, 4097, 3, 32), 820), ((1, 0, 3, 4), 1), ((0, 7, 3, 4), 7), ((4096, 20, 3, 512), 7)],
    ids=str,
)
def test_blocks(shape, steps):
    # 8·4096·32 = 2^20; 2^18 elements are 1024 such steps, so five blocks; eight steps at least, three blocks of 7, 7 and 6.
    assert NEWEST.block(problem(shape)) == steps


@pytest.mark.parametrize(
    ("shape", "steps"),
    [((8, 1000, 3, 32), 50), ((8, 997, 3, 32), 63), ((8, 7, 3, 32), 7), ((128, 512, 8, 1024), 32), ((8, 0, 3, 4), 1)],
    ids=str,
)
def test_blocks_on_accelerators(shape, steps):
    # At most 64 steps and 2^22 elements; 16 blocks of 63, or no rest where T has a divisor above half of that.
    assert ACCELERATORS.block(problem(shape)) == steps


@pytest.mark.parametrize(("steps", "dtype"), [(2048, jnp.float32), (2049, jnp.bfloat16)])  # 2·2048·(3 + 5) = 2^15
def test_when_half_precision_is_converted_as_a_whole(steps, dtype):
    given = problem((2, steps, 3, 5))
    half = dataclasses.replace(given, inputs=given.inputs.astype(jnp.bfloat16))
    assert MEASURED.widened(half).inputs.dtype == dtype
    assert MEASURED.widened(given).inputs.dtype == jnp.float32


def test_a_program_has_a_branch_for_accelerators_only_where_they_are_tuned_otherwise():
    arguments = ({"kernel": jnp.zeros((3, 8)), "recurrent_kernel": jnp.zeros((8, 8))}, jnp.zeros((2, 5, 3)))

    def branches(**options):
        return str(jax.make_jaxpr(functools.partial(simple_rnn, **options))(*arguments)).count("platform_index")

    assert branches() == 1
    assert branches(implementation=Scan(tuning=Tuning())) == 0


def test_checkpoints_are_of_the_same_blocks_everywhere():
    """Branches of one program agree in the shapes of what they keep."""
    given = problem((8, 1000, 3, 32))
    assert MEASURED.elsewhere(same_blocks=True).block(given) == MEASURED.block(given) == 1000
    assert MEASURED.elsewhere(same_blocks=True).copies(given)
    assert MEASURED.elsewhere(same_blocks=False) is ACCELERATORS


FORMS = {
    "one product": (products.library, {"summed_products": 0, "gathered_products": 0, "row_products": 0}),
    "sums": (products.summed, {"gathered_products": 0, "row_products": 0}),
    "gathered by step": (products.summed, {"gathered_products": 10**6}),
    "rows": (products.rows, {"summed_products": 0, "gathered_products": 0, "row_products": 2**13}),
    "copies of blocks": (products.library, dataclasses.asdict(cases.COPIED_BLOCKS)),
    "rows, several blocks": (
        products.rows,
        dataclasses.asdict(cases.SMALL_BLOCKS) | {"row_products": 2**13},
    ),
}
EVERYTHING = cases.EVERYTHING(batch=(2,), sizes=(7, 3, 8), reset_state=True)
CASES = [
    EVERYTHING,
    dataclasses.replace(EVERYTHING, go_backwards=True, time_major=True, activation="silu", unroll=2),
    cases.Case(batch=(), sizes=(7, 3, 8), go_backwards=True, return_sequences=False, bias=False),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pair", cases.thinned(itertools.product(FORMS, CASES[:2]), 5), ids=str)
def test_no_form_shows_in_a_result(pair):
    form, case = pair
    product, options = FORMS[form]
    tuning, given = Tuning(**options), case.problem()
    assert tuning.product(problem((2, *case.sizes))) is product
    returned, grads = compiled(given, unroll=case.unroll, implementation=Scan(tuning=tuning))
    assert_close(returned, call(reference.simple_rnn, given), 1e-12)
    assert_close(grads, plain(given)[1], 1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gathered_products", [0, 10**6])
@pytest.mark.slow
def test_a_single_row(gathered_products):
    given = CASES[2].problem()
    returned, grads = compiled(given, implementation=Scan(tuning=Tuning(gathered_products=gathered_products)))
    assert_close(returned, call(reference.simple_rnn, given), 1e-12)
    assert_close(grads, plain(given)[1], 1e-11)


@pytest.mark.usefixtures("x64")
def test_recomputed_states_are_not_gathered_by_step():
    """Checkpoints stand at the start of blocks, so the backward pass has the forward pass's blocks."""
    given = dataclasses.replace(EVERYTHING, return_sequences=False).problem()
    tuning = dataclasses.replace(cases.SMALL_BLOCKS, gathered_products=10**6)
    returned, grads = compiled(given, implementation=Scan(remat=True, tuning=tuning))
    assert_close(returned, call(reference.simple_rnn, given), 1e-12)
    assert_close(grads, plain(given)[1], 1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)], ids=["inputs", "parameters", "both"])
@pytest.mark.parametrize("form", ["rows", "gathered by step", "sums"])
def test_copies_under_vmap(axes, form):
    """Many copies of few rows are many rows: one product again, of the same values; sums stay where each copy has weights."""
    # Two rows of eight units: 2·8·8 is below 200, but three times that is not.
    how = Scan(tuning=Tuning(**FORMS[form][1] | {"summed_products": 200 if form == "sums" else 0}))
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(3, *shape)) for name, shape in (("kernel", (3, 8)), ("recurrent_kernel", (8, 8)))}
    inputs = rng.normal(size=(3, 2, 5, 3))
    given = [
        x if axis == 0 else jax.tree.map(lambda leaf: leaf[0], x)
        for x, axis in zip((params, inputs), axes, strict=True)
    ]

    def gradients(implementation):
        def loss(params, inputs):
            return jnp.sin(simple_rnn(params, inputs, implementation=implementation)[1]).sum()

        return jax.jit(jax.vmap(jax.grad(loss, (0, 1)), axes))

    assert_close(gradients(how)(*given), gradients("autodiff")(*given), 1e-12)
    # A step forward and backward and its projection; the weights and the inputs.
    in_steps = 0 if form == "sums" and axes[0] == 0 else 3
    assert gradients(how).lower(*given).as_text().count("dot_general") == in_steps + 2
