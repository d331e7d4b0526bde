"""How a recurrence is run is a value: objects and short forms, those of other packages, and one step under all of them."""

import dataclasses
import sys
import typing

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_performance import compilations

import flax_srnn
import flax_srnn.nnx as fnnx
from flax_srnn import (
    Autodiff,
    Chunked,
    Scan,
    SimpleRNN,
    SimpleRNNCell,
    cell_step,
    init_params,
    simple_rnn,
    truncated_rnn,
)
from flax_srnn.core import cell, implementations, recurrence, sequence
from flax_srnn.core.tuning import Tuning
from flax_srnn.layers import driving

X = np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32)
PARAMS = init_params(jax.random.key(0), 3, 4)
SHORT = {"scan": Scan(), "autodiff": Autodiff(), "chunked": Chunked()}


def test_every_name_is_tried_and_known_to_type_checkers():
    assert SHORT.keys() == implementations.TABLE.keys()
    literals = next(
        part for part in typing.get_args(implementations.Choice) if typing.get_origin(part) is typing.Literal
    )
    assert {*typing.get_args(literals)} == {*implementations.TABLE, *implementations.OPTIONAL}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class Loop: pass", r"'in_a_loop' = 'in_a_loop_module:Loop' has no `check` and `run`"),
        ("", r"'in_a_loop' = 'in_a_loop_module:Loop' cannot be made: .* has no attribute 'Loop'"),
        (
            "import no_such_module",
            r"'in_a_loop' = 'in_a_loop_module:Loop' cannot be made: No module named 'no_such_module'",
        ),
    ],
)
def test_a_broken_package_is_named(code, message, install):
    install("its-loop", "in_a_loop", "Loop", code)
    with pytest.raises(ValueError, match=message):
        simple_rnn(PARAMS, X, implementation="in_a_loop")
    with pytest.raises(ValueError, match=r"Did you mean 'in_a_loop'\?.* scan, .*in_a_loop"):
        simple_rnn(PARAMS, X, implementation="in_a_lop")


def layers(implementation):
    """The outputs of the function and of both families' layers."""
    linen = SimpleRNN(4, return_sequences=True, implementation=implementation)
    live = fnnx.SimpleRNN(3, 4, return_sequences=True, implementation=implementation, rngs=nnx.Rngs(0))
    fnnx.from_linen(live, PARAMS)
    return [
        simple_rnn(PARAMS, X, implementation=implementation)[1],
        truncated_rnn(PARAMS, X, 9, implementation=implementation)[1],
        linen.apply({"params": PARAMS}, X),
        live(X),
    ]


@pytest.mark.parametrize("name", SHORT)
def test_a_name_is_short_for_an_object(name):
    expected = simple_rnn(PARAMS, X, implementation=SHORT[name])[1]
    for outputs in layers(name) + layers(SHORT[name]):
        np.testing.assert_array_equal(outputs, expected)


@pytest.mark.parametrize(
    "value", [Scan(True), Autodiff(), Chunked(pieces=3, tol=1e-3), Scan(tuning=cases.SMALL_BLOCKS)]
)
def test_objects_are_frozen_hashable_and_equal_when_their_options_are(value):
    again = dataclasses.replace(value)
    assert (again, hash(again)) == (value, hash(value))
    assert value not in (Scan(), Chunked())
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.remat = False
    assert SimpleRNN(4, implementation=value) == SimpleRNN(4, implementation=again)
    assert hash(SimpleRNN(4, implementation=value)) == hash(SimpleRNN(4, implementation=again))


def test_another_tuning_is_another_program(caplog):
    def call(**sizes):
        simple_rnn(PARAMS, X, activation="softplus", implementation=Scan(tuning=Tuning(**sizes)))

    call()
    assert compilations(caplog, call) == 0
    assert compilations(caplog, lambda: call(block_steps=3, block_elements=1)) == 1
    assert compilations(caplog, lambda: call(block_steps=3, block_elements=1)) == 0


# --- other packages ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Loud:
    """An implementation of a user's own: the default one, but it takes no masks, and says what it was given."""

    def check(self, problem):
        if problem.mask is not None:
            raise ValueError("`mask`: 'loud' takes none, use 'scan'.")

    def run(self, problem):
        Loud.seen = problem
        return Scan().run(problem)


def test_an_object_of_a_users_own():
    for outputs in layers(Loud()):
        np.testing.assert_array_equal(outputs, simple_rnn(PARAMS, X)[1])
    assert Loud.seen.sizes == (2, 9, 4)
    with pytest.raises(ValueError, match="`mask`: 'loud' takes none"):
        simple_rnn(PARAMS, X, mask=np.ones((2, 9), bool), implementation=Loud())


def test_an_installed_package_brings_a_name(install):
    """By an entry point, read when somebody names it, in functions and layers; without the package the name is unknown."""
    with pytest.raises(ValueError, match="`implementation` is the unknown name 'louder'"):
        simple_rnn(PARAMS, X, implementation="louder")
    install(
        "louder-package",
        "louder",
        "Louder",
        """
        import dataclasses
        from flax_srnn import Autodiff


        @dataclasses.dataclass(frozen=True)
        class Louder(Autodiff):
            pass
        """,
    )
    assert "louder_module" not in sys.modules
    for outputs in layers("louder"):
        np.testing.assert_array_equal(outputs, simple_rnn(PARAMS, X, implementation="autodiff")[1])
    assert "louder_module" in sys.modules


def test_the_name_of_an_optional_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(implementations, "GROUP", "flax_srnn.of_no_package")
    for make in (
        lambda: simple_rnn(PARAMS, X, implementation="native"),
        lambda: SimpleRNN(4, implementation="native"),
        lambda: fnnx.SimpleRNN(3, 4, implementation="native", rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(ValueError, match=r"^`implementation`: 'native' is a package .* `pip install \./native`"):
            make()


@pytest.mark.parametrize("wrong", ["fast", "Scan", Scan, 3, object(), {"name": "scan"}])
def test_anything_else_is_refused(wrong):
    for make in (
        lambda: simple_rnn(PARAMS, X, implementation=wrong),
        lambda: SimpleRNN(4, implementation=wrong),
        lambda: flax_srnn.RNN(SimpleRNNCell(4), implementation=wrong),
        lambda: fnnx.SimpleRNN(3, 4, implementation=wrong, rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(ValueError, match="`implementation`"):
            make()


# --- one step under all of them ----------------------------------------------------------------------------------------


class ReachedError(Exception):
    pass


STEPS = {
    "cell_step": (cell, "advance", lambda: cell_step(PARAMS, jnp.zeros((2, 4)), X[:, 0])),
    "SimpleRNNCell": (
        driving,
        "advance",
        lambda: SimpleRNNCell(4).apply({"params": PARAMS}, jnp.zeros((2, 4)), X[:, 0]),
    ),
    "any cell": (
        sequence,
        "under_flags",
        lambda: flax_srnn.RNN(nn.GRUCell(4)).init(jax.random.key(0), X),
    ),
    **{
        name: (recurrence, "advance", lambda name=name: simple_rnn(PARAMS, X, activation="mish", implementation=name))
        for name in SHORT
    },
}


@pytest.mark.parametrize("path", STEPS)
def test_every_path_runs_the_one_step(path, monkeypatch):
    module, function, call = STEPS[path]
    assert getattr(module, function) is getattr(cell, function)

    def reached(*_, **__):
        raise ReachedError

    monkeypatch.setattr(module, function, reached)
    with pytest.raises(ReachedError):
        call()
