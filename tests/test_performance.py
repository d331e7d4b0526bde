"""What makes the recurrence fast, without a clock: the compiled program, its bytes, and how often something is compiled."""

import math
import re

import cases
import jax
import jax.numpy as jnp
import pytest

import flax_srnn
from flax_srnn import Chunked, Scan, simple_rnn, truncated
from flax_srnn.core.cell import Cell
from flax_srnn.core.parallel_in_time import solve
from flax_srnn.core.problem import Problem

SHAPES = {  # B, T, F, U
    "one block": (3, 50, 16, 64),
    "blocks": (1, 80_000, 3, 16),
    "one row": (1, 50, 5, 16),
    "sums": (2, 50, 16, 16),
    "gathered by step": (2, 50, 3, 6),
}
SHAPE = re.compile(r"\w+\[([\d,]*)\]")
WRITERS = ("dynamic-update-slice", "parameter", "get-tuple-element", "tuple", "bitcast", "while", "call")


def compiled(shape, train=True, mask=False, dtype=jnp.float32, **options):
    rows, steps, features, units = shape
    params = {
        "kernel": jax.ShapeDtypeStruct((features, units), dtype),
        "recurrent_kernel": jax.ShapeDtypeStruct((units, units), dtype),
        "bias": jax.ShapeDtypeStruct((units,), dtype),
    }
    inputs = jax.ShapeDtypeStruct((rows, steps, features), dtype)
    flags = jax.ShapeDtypeStruct((rows, steps), bool) if mask else None

    def forward(params, inputs, flags):
        return simple_rnn(params, inputs, mask=flags, **options)[1]

    def loss(params, inputs, flags):
        return jnp.square(forward(params, inputs, flags)).sum()

    program = jax.value_and_grad(loss, argnums=(0, 1)) if train else forward
    return jax.jit(program).lower(params, inputs, flags).compile()


def computations(text):
    """The instructions of every computation in the text of a compiled program."""
    found, name = {}, None
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = header[1]
            found[name] = []
        elif name and " = " in line:
            found[name].append(line.strip())
    return found


def loop_bodies(text):
    """The instructions that are executed in every iteration of some loop, by the name of the loop's body."""
    table = computations(text)
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))

    def executed(name):
        for line in table[name]:
            yield line
            for called in re.findall(r"to_apply=%?([\w.\-]+)", line) if " call(" in line else []:
                yield from executed(called)

    return {name: list(executed(name)) for name in bodies}, table


def elements(line):
    shape = SHAPE.match(line.split(" = ", 1)[1])
    return math.prod(map(int, filter(None, shape[1].split(",")))) if shape else 0


def operation(line, table):
    """What an instruction does; for a fusion, what its root does."""
    name = re.search(r" ([a-z][\w\-]*)\(", line.split(" = ", 1)[1])[1]
    if name == "fusion":
        called = table[re.search(r"calls=%?([\w.\-]+)", line)[1]]
        return operation(next(x for x in called if x.startswith("ROOT")), table)
    return name


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "softmax", "silu"])  # derivative from the output, of a row, recomputed
@pytest.mark.parametrize("mask", cases.thinned([True, False], 1))
@pytest.mark.parametrize("shape", cases.thinned(SHAPES.values(), 3), ids=SHAPES)
def test_no_loop_touches_a_whole_array(shape, mask, activation):
    # An in-place update of one step is all that a loop may do to an array with all steps: a copy makes the time quadratic.
    rows, steps, _, units = shape
    bodies, table = loop_bodies(compiled(shape, mask=mask, activation=activation).as_text())
    assert len(bodies) >= 2
    whole = [line for body in bodies.values() for line in body if elements(line) >= rows * steps * units]
    assert whole
    assert [line for line in whole if operation(line, table) not in WRITERS] == []


@pytest.mark.parametrize("dtype", cases.thinned([jnp.bfloat16, jnp.float16], 1))
def test_no_loop_converts_a_whole_array_of_half_precision(dtype):
    """It goes through loops as the integers of its bits, of which a block is converted."""
    rows, steps, _, units = shape = SHAPES["blocks"]
    bodies, table = loop_bodies(compiled(shape, dtype=dtype).as_text())
    whole = [line for body in bodies.values() for line in body if elements(line) >= rows * steps * units]
    assert {line.split(" = ", 1)[1][:3] for line in whole if "tuple" not in operation(line, table)} == {"u16"}
    assert [line for line in whole if operation(line, table) not in WRITERS] == []


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_step_is_few_operations(shape):
    # XLA runs at most eight in order, more of them through a concurrent scheduler: about a microsecond a step.
    bodies, _ = loop_bodies(compiled(shape).as_text())
    free = (" parameter(", " get-tuple-element(", " tuple(", " bitcast(", " constant(", " call(")
    steps = [[line for line in body if not any(word in line for word in free)] for body in bodies.values()]
    steps = [body for body in steps if not any(" while(" in line for line in body)]
    assert len(steps) >= 2
    assert max(map(len, steps)) <= 8


@pytest.mark.parametrize("rows", [1, 2])
def test_nothing_is_made_that_nobody_reads(rows):
    # No numbers of the steps, and no copy of the states' zeros for the buffer of the backward pass.
    _, steps, _, units = shape = (rows, 50, 5, 16)
    table = computations(compiled(shape).as_text())
    made = [(operation(line, table), elements(line)) for lines in table.values() for line in lines if " = " in line]
    assert "iota" not in dict(made)
    assert ("copy", rows * steps * units) not in made


@pytest.mark.parametrize(
    ("shape", "inside"),
    [((4, 30, 8, 64), 1), ((1, 30, 8, 64), 2), ((4, 30, 7, 64), 2)],
    ids=["several rows", "one row", "few features"],
)
def test_the_projection_is_outside_the_loop_where_the_rule_says_so(shape, inside):
    bodies, table = loop_bodies(compiled(shape, train=False).as_text())
    (body,) = bodies.values()
    assert len(products(body, table)) == inside


def products(body, table):
    """The products of matrices and vectors in a loop's body."""
    called = [line for x in body for name in re.findall(r"calls=%?([\w.\-]+)", x) for line in table[name]]
    return [line for line in body + called if " dot(" in line]


@pytest.mark.parametrize(
    ("shape", "loops", "inside", "outside"),
    [
        ((2, 50, 8, 20), 2, 0, 2),  # a step's are sums; of the whole block: for the weights, for the inputs
        ((1, 50, 4, 8), 2, 2, 0),  # of a vector, forward
        ((4, 50, 1, 4), 2, 0, 0),
        ((3, 50, 8, 64), 2, 2, 3),  # one in each loop; the inputs are projected before the loop
        ((16, 8192, 8, 16), 4, 5, 0),  # the products of a block stand in the loop over blocks
    ],
    ids=["sums", "gathered by step, one row", "gathered by step", "one product", "blocks"],
)
def test_loops_and_products(shape, loops, inside, outside):
    """What fits in one block has no loop over blocks, and a small step calls no library."""
    text = compiled(shape).as_text()
    bodies, table = loop_bodies(text)
    assert len(bodies) == loops
    within = [line for body in bodies.values() for line in products(body, table)]
    assert (len(within), text.count(" dot(") - len(within)) == (inside, outside)


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="older XLA does not compile products of a row into the loop")
def test_a_product_of_few_rows_is_one_of_each():
    bodies, table = loop_bodies(compiled((4, 50, 8, 40)).as_text())
    assert {elements(line) for body in bodies.values() for line in products(body, table)} == {40}


@pytest.mark.parametrize("shape", [(1, 50, 4, 8), (2, 50, 8, 20)], ids=["gathered by step", "sums"])
def test_a_small_step_is_not_asked_for_the_gradient_of_its_inputs(shape):
    rows, steps, features, units = shape
    params = {"kernel": jnp.ones((features, units)), "recurrent_kernel": jnp.ones((units, units))}

    def loss(params, inputs):
        return simple_rnn(params, inputs)[1].sum()

    def written(argnums):
        text = jax.jit(jax.grad(loss, argnums)).lower(params, jnp.ones((rows, steps, features))).compile().as_text()
        return text.count(f"f32[{rows},{steps},{features}]")

    assert written(0) < written((0, 1)) - 1


LONG = (8, 100_000, 8, 128)
UNIT = 4 * 8 * 100_000 * 128


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 2.05 if jax.__version_info__ >= (0, 10) else 3.05),  # before, XLA kept one array of all outputs more
        ({"return_sequences": False}, 0.02),
        ({"return_sequences": False, "implementation": Scan(remat=False)}, 1.05),
    ],
    ids=["all outputs", "last output", "last output, stored"],
)
def test_training_on_a_hundred_thousand_steps_keeps_no_more_than_it_needs(options, limit):
    assert compiled(LONG, **options).memory_analysis().temp_size_in_bytes <= limit * UNIT


def test_what_is_not_asked_for_is_not_computed():
    params = {"kernel": jnp.ones((8, 64)), "recurrent_kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}
    inputs, dropout = jnp.ones((4, 20, 8)), jnp.ones((4, 64))

    def loss(params, inputs, dropout):
        return simple_rnn(params, inputs, recurrent_dropout_mask=dropout)[1].sum()

    def products(argnums):
        text = jax.jit(jax.grad(loss, argnums)).lower(params, inputs, dropout).compile().as_text()
        return len(re.findall(r" dot\(", text))

    # A step forward, the projection, a step backward, and all weights; then the inputs; then the dropout mask.
    assert [products(0), products((0, 1)), products((0, 1, 2))] == [4, 5, 6]


def compilations(caplog, call):
    caplog.clear()
    with jax.log_compiles():
        call()
    return sum(record.getMessage().startswith("Compiling ") for record in caplog.records)


@pytest.mark.parametrize("implementation", cases.thinned([None, "autodiff", "chunked"], 1))
def test_a_second_call_compiles_nothing(caplog, implementation):
    params, inputs = flax_srnn.init_params(jax.random.key(0), 3, 4), jnp.ones((2, 9, 3))
    variables = {"params": params}

    def layer():
        return flax_srnn.SimpleRNN(4, activation="relu", implementation=implementation)

    apply = jax.jit(lambda layer, variables, inputs: layer.apply(variables, inputs), static_argnums=0)
    calls = [
        lambda: simple_rnn(params, inputs, activation="relu", implementation=implementation),
        lambda: layer().apply(variables, inputs),
        lambda: apply(layer(), variables, inputs),
        lambda: jax.grad(lambda p: simple_rnn(p, inputs, implementation=implementation)[1].sum())(params),
    ]
    for call in calls:
        assert compilations(caplog, call) > 0
        assert compilations(caplog, call) == 0


def test_truncated_backpropagation_compiles_one_loop():
    params = flax_srnn.init_params(jax.random.key(0), 3, 4)
    short, long = (
        str(jax.make_jaxpr(lambda x: truncated.truncated_rnn(params, x, 5)[1])(jnp.ones((2, steps, 3))))
        for steps in (10, 500)
    )
    assert short.count(" = ") == long.count(" = ")  # equations


@pytest.mark.parametrize(
    ("implementation", "hand_written", "sweeping"),
    [(None, True, False), ("scan", True, False), ("autodiff", False, False), ("chunked", True, True)],
)
def test_the_implementation_that_was_named_runs(implementation, hand_written, sweeping):
    params = {"kernel": jnp.ones((3, 4)), "recurrent_kernel": jnp.ones((4, 4))}
    jaxpr = str(jax.make_jaxpr(lambda x: simple_rnn(params, x, implementation=implementation))(jnp.ones((2, 9, 3))))
    assert ("custom_vjp_call" in jaxpr, "while[" in jaxpr) == (hand_written, sweeping)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "expected"), [(0.9, 1), (8.0, 16)], ids=["forgets", "chaotic"])
def test_the_chunked_solver_sweeps_as_often_as_it_must(scale, expected):
    orthogonal = jax.random.orthogonal(jax.random.key(0), 32)
    problem = Problem(
        Cell(jax.random.normal(jax.random.key(1), (4, 32)), scale * orthogonal),
        inputs=jax.random.normal(jax.random.key(2), (1, 4096, 4)),
        initial_state=jnp.zeros((1, 32)),
    )
    *_, sweeps = solve(Chunked(pieces=16), problem)
    assert int(sweeps) == expected
