"""Wrong arguments: each ends at once in an error that names the argument, what arrived and what was expected.

One table. Every case must raise exactly the type it names, from a line of this library, before any loop is built; its
message must name the argument in quotes and show what arrived. Files and the command line have tables of their own.
"""

import traceback
from pathlib import Path
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_srnn
import flax_srnn.nnx as fnnx
from flax_srnn import (
    RNN,
    Bidirectional,
    Chunked,
    Scan,
    SimpleRNN,
    SimpleRNNCell,
    StackedRNNCells,
    apply_constraints,
    cell_step,
    collect_constraints,
    compute_mask,
    dropout_masks,
    init_params,
    keep_constraints,
    regularization_loss,
    reset_states,
    simple_rnn,
)
from flax_srnn.core import recurrence
from flax_srnn.layers.options import MERGING

HERE = str(Path(flax_srnn.__file__).parent)
NAN = float("nan")
KEY = np.array([0, 1], np.uint32)

# B = 2, T = 5, F = 3, U = 4; nothing is square.
X = np.ones((2, 5, 3), np.float32)
X_T = X[:, 0]
H = np.zeros((2, 4), np.float32)
MASK = np.ones((2, 5), bool)
PARAMS = {
    "kernel": np.ones((3, 4), np.float32),
    "recurrent_kernel": np.ones((4, 4), np.float32),
    "bias": np.zeros(4, np.float32),
}
VARIABLES = {"params": PARAMS}
RECORDED = {"params": PARAMS, "carry": {"states": (H,)}}


def zeros(layer, *inputs):
    """The variables of a layer, all zero: nothing is computed."""
    shapes = jax.eval_shape(layer.init, KEY, *inputs)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


LAYER = SimpleRNN(4)
STATEFUL = SimpleRNN(4, stateful=True)
MIXED = RNN([SimpleRNNCell(4), nn.LSTMCell(6)])
MIXED_STATEFUL = RNN([SimpleRNNCell(4), nn.LSTMCell(6)], stateful=True)
BOTH = Bidirectional(SimpleRNN(4))
STACK = StackedRNNCells([SimpleRNNCell(4), nn.LSTMCell(6)])
LSTM_STATE = (np.zeros((2, 6), np.float32),) * 2
MIXED_VARIABLES = zeros(MIXED, X)
MIXED_RECORDED = zeros(MIXED_STATEFUL, X)
BOTH_VARIABLES = zeros(BOTH, X)
STACK_VARIABLES = zeros(STACK, (H, LSTM_STATE), X_T)
LSTM = RNN(nn.LSTMCell(6))
LSTM_VARIABLES = zeros(LSTM, X)
NON_NEG = {"kernel": flax_srnn.constraints.NonNeg()}


def call(inputs=X, variables=VARIABLES, layer=LAYER, **arguments):
    return layer.apply(variables, inputs, **arguments)


def without(name):
    return {key: value for key, value in PARAMS.items() if key != name}


class Case(NamedTuple):
    error: type[Exception]
    argument: str
    got: str
    run: Any
    value: Any = None


def option(error, got, **options):
    """One wrong option of SimpleRNN."""
    (name,) = options
    return Case(error, name, got, lambda: SimpleRNN(**({"units": 4} | options)))


def wrong(error, got, **arguments):
    """One wrong argument of a SimpleRNN that is called."""
    ((name, value),) = arguments.items()
    return Case(error, name, got, lambda: call(**arguments), value)


CONSTRUCTOR = [
    Case(ValueError, "units", "0", lambda: SimpleRNN(0)),
    Case(ValueError, "units", "-3", lambda: SimpleRNNCell(-3)),
    Case(TypeError, "units", "4.0 (float)", lambda: SimpleRNN(4.0)),
    Case(TypeError, "units", "'4' (str)", lambda: SimpleRNN("4")),
    Case(TypeError, "units", "None", lambda: SimpleRNNCell(None)),
    Case(TypeError, "units", "True (bool)", lambda: SimpleRNN(True)),
    Case(TypeError, "units", "True", lambda: SimpleRNN(np.True_)),
    Case(TypeError, "units", "[4]", lambda: SimpleRNN(np.array([4]))),
    Case(TypeError, "units", "[4, 5] (list)", lambda: SimpleRNN([4, 5])),
    Case(TypeError, "units", "nan", lambda: SimpleRNN(NAN)),
    Case(TypeError, "units", "(4+0j)", lambda: SimpleRNN(4 + 0j)),
    Case(ValueError, "units", str(10**30), lambda: SimpleRNN(10**30)),
    Case(TypeError, "units", "Tracer", lambda: jax.eval_shape(lambda u: SimpleRNN(u).init(KEY, X), 4)),
    option(ValueError, "-0.1", dropout=-0.1),
    option(ValueError, "1.5", dropout=1.5),
    option(ValueError, "nan", dropout=NAN),
    option(ValueError, "inf", dropout=float("inf")),
    option(TypeError, "'0.5' (str)", dropout="0.5"),
    option(TypeError, "None", dropout=None),
    option(TypeError, "True (bool)", dropout=True),
    option(TypeError, "[0.5]", dropout=[0.5]),
    option(TypeError, "(0.5+0j)", dropout=0.5 + 0j),
    option(TypeError, "shape (1,)", dropout=np.array([0.5])),
    option(ValueError, "1000", dropout=10**400),
    Case(TypeError, "dropout", "float32", lambda: jax.eval_shape(lambda p: SimpleRNN(4, dropout=p).init(KEY, X), 0.5)),
    option(ValueError, "2", recurrent_dropout=2),
    option(ValueError, "nan", recurrent_dropout=np.float32("nan")),
    option(TypeError, "1 (int)", use_bias=1),
    option(TypeError, "'yes' (str)", return_sequences="yes"),
    option(TypeError, "None", return_state=None),
    option(TypeError, "dtype bool", go_backwards=np.array(True)),
    option(TypeError, "0 (int)", stateful=0),
    option(TypeError, "[] (list)", zero_output_for_mask=[]),
    option(TypeError, "1 (int)", time_major=1),
    option(TypeError, "dtype bool", keep_order=jnp.array(True)),
    Case(
        TypeError,
        "return_sequences",
        "dtype bool",
        lambda: jax.eval_shape(lambda flag: SimpleRNN(4, return_sequences=flag).init(KEY, X), True),
    ),
    option(ValueError, "0", unroll=0),
    option(ValueError, "-2", unroll=-2),
    option(TypeError, "2.5 (float)", unroll=2.5),
    option(TypeError, "'all' (str)", unroll="all"),
    option(TypeError, "None", unroll=None),
    option(ValueError, "'fast'", implementation="fast"),
    option(ValueError, "'Scan'", implementation="Scan"),
    option(ValueError, "dtype <U4", implementation=np.array("scan")),
    option(ValueError, "True", implementation=True),
    option(ValueError, "class", implementation=Scan),
    option(TypeError, "'x' (str)", seed="x"),
    option(TypeError, "1.5", seed=1.5),
    option(TypeError, "shape (2,)", seed=KEY),
    option(ValueError, "-1", seed=-1),
    option(ValueError, str(2**32), seed=2**32),
    option(ValueError, "'int32'", dtype="int32"),
    option(ValueError, "complex", dtype=complex),
    option(TypeError, "'floaty'", dtype="floaty"),
    option(ValueError, "'float8_e4m3fn'", dtype="float8_e4m3fn"),
    option(TypeError, "shape ()", dtype=np.array(1.0)),
    option(ValueError, "None", param_dtype=None),
    option(ValueError, "bool", param_dtype=bool),
    option(ValueError, "'wrong'", precision="wrong"),
    option(ValueError, "3 (int)", precision=3),
    option(ValueError, "[] (list)", precision=[]),
    Case(TypeError, "dropuot", "unexpected", lambda: SimpleRNN(4, dropuot=0.1)),
    Case(TypeError, "return_state", "unexpected", lambda: SimpleRNNCell(4, return_state=True)),
    Case(TypeError, "units", "missing", lambda: SimpleRNN()),
]

NAMES = [
    option(ValueError, "'tan'. Did you mean 'tanh'?", activation="tan"),
    option(ValueError, "'glu'", activation="glu"),
    option(ValueError, "'threshold'", activation="threshold"),
    option(ValueError, "3 (int)", activation=3),
    option(ValueError, "[] (list)", activation=[]),
    option(ValueError, "b'tanh'", activation=b"tanh"),
    option(ValueError, "<class 'str'>", activation=str),
    option(ValueError, "shape (3,)", activation=np.ones(3)),
    option(ValueError, "hashable", activation=nn.Sequential([nn.relu])),
    option(TypeError, "dtype=jax.numpy.bfloat16", dtype="mixed_bfloat16"),
    option(ValueError, "'glorot_unifrom'", kernel_initializer="glorot_unifrom"),
    option(ValueError, "''", recurrent_initializer=""),
    option(ValueError, "0.5", bias_initializer=0.5),
    option(ValueError, "{}", kernel_initializer={}),
    option(ValueError, "'name'", kernel_initializer={"name": "zeros"}),
    option(ValueError, "'Nope'", initial_state_initializer={"class_name": "Nope", "config": {}}),
    option(ValueError, "nan", kernel_initializer={"class_name": "RandomNormal", "config": {"stddev": NAN}}),
    option(ValueError, "'l3'", kernel_regularizer="l3"),
    option(ValueError, "0.01", recurrent_regularizer=0.01),
    option(ValueError, "-1", bias_regularizer={"class_name": "L2", "config": {"l2": -1.0}}),
    option(ValueError, "'activity'", activity_regularizer="activity"),
    option(ValueError, "'max_nrom'", kernel_constraint="max_nrom"),
    option(ValueError, "True (bool)", recurrent_constraint=True),
    option(ValueError, "inf", bias_constraint={"class_name": "MaxNorm", "config": {"max_value": float("inf")}}),
]

WRAPPERS = [
    Case(ValueError, "merge_mode", "'cat'", lambda: Bidirectional(SimpleRNN(4), merge_mode="cat")),
    Case(ValueError, "merge_mode", "Did you mean 'sum'", lambda: Bidirectional(SimpleRNN(4), merge_mode="Sum")),
    Case(ValueError, "merge_mode", "dtype <U3", lambda: Bidirectional(SimpleRNN(4), merge_mode=np.array("sum"))),
    Case(TypeError, "layer", "None", lambda: Bidirectional(None)),
    Case(TypeError, "layer", "SimpleRNN", lambda: Bidirectional(SimpleRNN)),
    Case(TypeError, "layer", "Dense", lambda: Bidirectional(nn.Dense(4))),
    Case(TypeError, "layer", "SimpleRNNCell", lambda: Bidirectional(SimpleRNNCell(4))),
    Case(TypeError, "backward_layer", "LSTMCell", lambda: Bidirectional(LAYER, backward_layer=nn.LSTMCell(4))),
    Case(ValueError, "backward_layer", "False", lambda: Bidirectional(LAYER, backward_layer=SimpleRNN(4))),
    Case(
        ValueError,
        "return_state",
        "False and True",
        lambda: Bidirectional(LAYER, backward_layer=SimpleRNN(4, return_state=True, go_backwards=True)),
    ),
    Case(
        ValueError,
        "return_sequences",
        "False and True",
        lambda: Bidirectional(LAYER, backward_layer=SimpleRNN(4, return_sequences=True, go_backwards=True)),
    ),
    Case(
        ValueError,
        "stateful",
        "True and False",
        lambda: Bidirectional(STATEFUL, backward_layer=SimpleRNN(4, go_backwards=True)),
    ),
    Case(ValueError, "cell", "empty", lambda: RNN([])),
    Case(TypeError, "cell", "SimpleRNNCell", lambda: RNN(SimpleRNNCell)),
    Case(TypeError, "cell", "SimpleRNN", lambda: RNN(SimpleRNN(4))),
    Case(TypeError, "cell", "(dict)", lambda: RNN({"a": SimpleRNNCell(4)})),
    Case(TypeError, "cell", "generator", lambda: RNN(c for c in [SimpleRNNCell(4)])),
    Case(TypeError, "cell", "3 (int)", lambda: RNN([SimpleRNNCell(4), 3])),
    Case(ValueError, "cell", "ConvLSTMCell", lambda: RNN(nn.ConvLSTMCell(4, (3, 3)))),
    Case(TypeError, "return_sequences", "1 (int)", lambda: RNN(SimpleRNNCell(4), return_sequences=1)),
    Case(TypeError, "units", "unexpected", lambda: RNN(SimpleRNNCell(4), units=4)),
    Case(TypeError, "cells", "SimpleRNNCell", lambda: StackedRNNCells(SimpleRNNCell(4))),
    Case(ValueError, "cells", "empty", lambda: StackedRNNCells([])),
    Case(TypeError, "cells", "None", lambda: StackedRNNCells([SimpleRNNCell(4), None])),
    Case(ValueError, "cells", "ConvLSTMCell", lambda: StackedRNNCells([nn.ConvLSTMCell(4, (3, 3))])),
    Case(
        ValueError,
        "implementation",
        "'scan'",
        lambda: call(layer=LSTM.clone(implementation="scan"), variables=LSTM_VARIABLES),
    ),
    Case(
        ValueError,
        "implementation",
        "'chunked'",
        lambda: call(layer=LSTM.clone(implementation=Chunked()), variables=LSTM_VARIABLES),
    ),
]

INPUTS = [
    Case(TypeError, "inputs", "None", lambda: call(None)),
    Case(TypeError, "inputs", "'abc'", lambda: call("abc")),
    Case(TypeError, "inputs", "b'abc'", lambda: call(b"abc")),
    Case(TypeError, "inputs", "{'a': 1}", lambda: call({"a": 1})),
    Case(TypeError, "inputs", "dtype object", lambda: call(np.full((2, 5, 3), None))),
    Case(TypeError, "inputs", "[[1.0, 2.0], [3.0]]", lambda: call([[1.0, 2.0], [3.0]])),
    Case(TypeError, "inputs", "complex64", lambda: call(X.astype(np.complex64))),
    Case(TypeError, "inputs", "datetime64", lambda: call(np.zeros((2, 5, 3), "datetime64[D]"))),
    Case(TypeError, "inputs", "'<i8'", lambda: call(np.zeros((2, 5, 3), [("a", int)]))),
    Case(TypeError, "inputs", "key<", lambda: call(jax.random.key(0))),
    Case(TypeError, "inputs", "(2, 5, 3)", lambda: call(jax.ShapeDtypeStruct(X.shape, X.dtype))),
    Case(TypeError, "inputs", "SimpleRNN", lambda: call(LAYER)),
    Case(ValueError, "inputs", "shape ()", lambda: call(3.0)),
    Case(ValueError, "inputs", "shape (3,)", lambda: call(np.ones(3))),
    Case(ValueError, "inputs", "shape (0,)", lambda: call([])),
    Case(ValueError, "inputs", "shape (3,)", lambda: call(np.ones(3), layer=SimpleRNN(4, time_major=True))),
    Case(TypeError, "inputs", "missing", lambda: LAYER.apply(VARIABLES)),
    Case(
        ValueError,
        "inputs",
        "3 features (F, the last dimension), as when the variables were made, got 4",
        lambda: call(np.ones((2, 5, 4))),
    ),
    Case(ValueError, "inputs", "got 1", lambda: call(X[..., :1])),
    Case(ValueError, "inputs", "got 0", lambda: call(X[..., :0])),
    Case(ValueError, "inputs", "got 4", lambda: call(np.ones((2, 5, 4)), MIXED_VARIABLES, MIXED)),
    Case(ValueError, "inputs", "got 4", lambda: call(np.ones((2, 5, 4)), BOTH_VARIABLES, BOTH)),
    Case(ValueError, "inputs", "shape (3,)", lambda: simple_rnn(PARAMS, np.ones(3))),
    Case(ValueError, "inputs", "(2, 5, 4)", lambda: simple_rnn(PARAMS, np.ones((2, 5, 4)))),
    Case(TypeError, "inputs", "missing", lambda: simple_rnn(PARAMS)),
    wrong(TypeError, "1 (int)", training=1),
    wrong(TypeError, "None", training=None),
    Case(TypeError, "training", "dtype int32", lambda: jax.eval_shape(lambda flag: call(training=flag), 1)),
    Case(TypeError, "training", "shape (2,)", lambda: jax.eval_shape(lambda flag: call(training=flag), MASK[:, 0])),
    wrong(TypeError, "unexpected", msk=MASK),
]

STATE = [
    wrong(ValueError, "(3, 4)", initial_state=np.zeros((3, 4))),
    wrong(ValueError, "(1, 4)", initial_state=np.zeros((1, 4))),
    wrong(ValueError, "(4,)", initial_state=np.zeros(4)),
    wrong(ValueError, "(2, 1)", initial_state=np.zeros((2, 1))),
    wrong(ValueError, "(2, 3)", initial_state=X_T),
    wrong(ValueError, "shape ()", initial_state=0.0),
    wrong(ValueError, "got 2", initial_state=[H, H]),
    wrong(ValueError, "got 0", initial_state=[]),
    wrong(TypeError, "[None]", initial_state=[None]),
    wrong(TypeError, "'zeros'", initial_state="zeros"),
    wrong(TypeError, "'h'", initial_state={"h": H}),
    wrong(TypeError, "complex64", initial_state=H + 0j),
    wrong(TypeError, "dtype object", initial_state=np.full((2, 4), None)),
    Case(ValueError, "initial_state", "(1, 2, 4)", lambda: simple_rnn(PARAMS, X, initial_state=[H])),
    Case(TypeError, "initial_state", "(2, 4)", lambda: call(layer=MIXED, variables=MIXED_VARIABLES, initial_state=H)),
    Case(ValueError, "initial_state", "got 1", lambda: call(layer=MIXED, variables=MIXED_VARIABLES, initial_state=[H])),
    Case(
        TypeError,
        "initial_state",
        "None",
        lambda: call(layer=MIXED, variables=MIXED_VARIABLES, initial_state=[H, None]),
    ),
    Case(
        ValueError,
        "initial_state",
        "(2, 6)",
        lambda: call(layer=LSTM, variables=LSTM_VARIABLES, initial_state=LSTM_STATE[0]),
    ),
    Case(
        ValueError,
        "initial_state",
        "(1, 6)",
        lambda: call(layer=LSTM, variables=LSTM_VARIABLES, initial_state=(LSTM_STATE[0], np.zeros((1, 6)))),
    ),
    Case(TypeError, "initial_state", "(2, 4)", lambda: call(layer=BOTH, variables=BOTH_VARIABLES, initial_state=H)),
    Case(ValueError, "initial_state", "got 1", lambda: call(layer=BOTH, variables=BOTH_VARIABLES, initial_state=[H])),
    Case(ValueError, "reset_state", "without", lambda: simple_rnn(PARAMS, X, reset_state=H)),
    Case(ValueError, "reset_state", "(1, 4)", lambda: simple_rnn(PARAMS, X, resets=MASK, reset_state=H[:1])),
]

MASKS = [
    wrong(ValueError, "(2, 4)", mask=MASK[:, :4]),
    wrong(ValueError, "(1, 5)", mask=MASK[:1]),
    wrong(ValueError, "(5,)", mask=MASK[0]),
    wrong(ValueError, "(2, 1)", mask=MASK[:, :1]),
    wrong(ValueError, "(5, 2)", mask=MASK.T),
    wrong(ValueError, "(2, 5, 3)", mask=X),
    wrong(ValueError, "shape ()", mask=True),
    wrong(ValueError, "(0,)", mask=[]),
    wrong(TypeError, "'all'", mask="all"),
    wrong(TypeError, "'a'", mask=[["a"] * 5] * 2),
    wrong(TypeError, "complex", mask=MASK + 0j),
    Case(ValueError, "mask", "(1, 5)", lambda: call(layer=MIXED, variables=MIXED_VARIABLES, mask=MASK[:1])),
    Case(ValueError, "mask", "-inf", lambda: call(mask=np.where(MASK, -np.inf, 0))),
    Case(ValueError, "resets", "nan", lambda: call(resets=np.where(MASK, np.nan, 0))),
    Case(ValueError, "mask", "(5, 2)", lambda: call(layer=BOTH, variables=BOTH_VARIABLES, mask=MASK.T)),
    Case(ValueError, "mask", "(5, 2)", lambda: simple_rnn(PARAMS, X.swapaxes(0, 1), time_major=True, mask=MASK.T)),
    wrong(ValueError, "(3,)", seq_lengths=[1, 2, 3]),
    wrong(ValueError, "shape ()", seq_lengths=3),
    wrong(ValueError, "(2, 1)", seq_lengths=[[1], [2]]),
    wrong(ValueError, "2 to 6", seq_lengths=[2, 6]),
    wrong(ValueError, "-1 to 2", seq_lengths=[-1, 2]),
    wrong(ValueError, str(2**40), seq_lengths=np.array([2**40, 1])),
    wrong(TypeError, str(10**20), seq_lengths=[10**20, 1]),
    wrong(TypeError, "float", seq_lengths=[1.0, 2.0]),
    wrong(TypeError, "bool", seq_lengths=[True, False]),
    wrong(TypeError, "'5'", seq_lengths=["5", "5"]),
    wrong(ValueError, "(1, 5)", resets=MASK[:1]),
    wrong(ValueError, "(5, 2)", resets=MASK.T),
    wrong(ValueError, "(2,)", resets=[0, 3]),
    wrong(TypeError, "'episode'", resets="episode"),
    Case(ValueError, "input_dropout_mask", "(3,)", lambda: simple_rnn(PARAMS, X, input_dropout_mask=np.ones(3))),
    Case(ValueError, "input_dropout_mask", "(2, 5, 3)", lambda: simple_rnn(PARAMS, X, input_dropout_mask=X)),
    Case(ValueError, "recurrent_dropout_mask", "(1, 4)", lambda: simple_rnn(PARAMS, X, recurrent_dropout_mask=H[:1])),
    Case(TypeError, "recurrent_dropout_mask", "[None]", lambda: simple_rnn(PARAMS, X, recurrent_dropout_mask=[None])),
    Case(ValueError, "mask", "shape ()", lambda: compute_mask(1)),
    Case(TypeError, "mask", "'x'", lambda: compute_mask("x")),
    Case(TypeError, "go_backwards", "1 (int)", lambda: compute_mask(MASK, go_backwards=1)),
]

CORE = [
    Case(TypeError, "unroll", "shape (2,)", lambda: simple_rnn(PARAMS, X, unroll=KEY)),
    Case(ValueError, "implementation", "'pallas2'", lambda: simple_rnn(PARAMS, X, implementation="pallas2")),
    Case(ValueError, "precision", "'wrong'", lambda: simple_rnn(PARAMS, X, precision="wrong")),
    Case(ValueError, "activation", "'tan'", lambda: simple_rnn(PARAMS, X, activation="tan")),
    Case(ValueError, "activation", "None", lambda: simple_rnn(PARAMS, X, activation=lambda a: None)),
    Case(ValueError, "activation", "shape (2,)", lambda: simple_rnn(PARAMS, X, activation=lambda a: a.sum(-1))),
    Case(ValueError, "activation", "dtype bool", lambda: simple_rnn(PARAMS, X, activation=lambda a: a > 0)),
    Case(ValueError, "activation", "shape (2,)", lambda: call(layer=SimpleRNN(4, activation=lambda a: a.sum(-1)))),
    Case(TypeError, "remat", "'no'", lambda: simple_rnn(PARAMS, X, implementation=Scan(remat="no"))),
    Case(TypeError, "remat", "1 (int)", lambda: Scan(1)),
    Case(TypeError, "time_major", "None", lambda: simple_rnn(PARAMS, X, time_major=None)),
    Case(TypeError, "units", "unexpected", lambda: simple_rnn(PARAMS, X, units=4)),
    Case(ValueError, "x", "shape ()", lambda: cell_step(PARAMS, H, 3.0)),
    Case(ValueError, "x", "(2, 1)", lambda: cell_step(PARAMS, H, X_T[:, :1])),
    Case(TypeError, "x", "'x'", lambda: cell_step(PARAMS, H, "x")),
    Case(ValueError, "state", "(1, 4)", lambda: cell_step(PARAMS, H[:1], X_T)),
    Case(ValueError, "state", "(4,)", lambda: cell_step(PARAMS, H[0], X_T)),
    Case(TypeError, "state", "None", lambda: cell_step(PARAMS, None, X_T)),
    Case(ValueError, "state", "(2, 4)", lambda: cell_step(PARAMS, H, X_T[0])),
    Case(ValueError, "input_dropout_mask", "(1, 3)", lambda: cell_step(PARAMS, H, X_T, input_dropout_mask=X_T[:1])),
    Case(ValueError, "recurrent_dropout_mask", "(4,)", lambda: cell_step(PARAMS, H, X_T, recurrent_dropout_mask=H[0])),
    Case(ValueError, "activation", "shape (2,)", lambda: cell_step(PARAMS, H, X_T, activation=lambda a: a.max(-1))),
    Case(ValueError, "precision", "'low'", lambda: cell_step(PARAMS, H, X_T, precision="low")),
    Case(ValueError, "carry", "(2, 3)", lambda: SimpleRNNCell(4).apply(VARIABLES, X_T, X_T)),
    Case(ValueError, "carry", "got 2", lambda: SimpleRNNCell(4).apply(VARIABLES, [H, H], X_T)),
    Case(TypeError, "carry", "'h'", lambda: SimpleRNNCell(4).apply(VARIABLES, {"h": H}, X_T)),
    Case(ValueError, "inputs", "shape ()", lambda: SimpleRNNCell(4).apply(VARIABLES, H, 1.0)),
    Case(ValueError, "inputs", "got 4", lambda: SimpleRNNCell(4).apply(VARIABLES, H, H)),
    Case(TypeError, "training", "'yes'", lambda: SimpleRNNCell(4).apply(VARIABLES, H, X_T, training="yes")),
    Case(TypeError, "input_shape", "3 (int)", lambda: SimpleRNNCell(4).initialize_carry(KEY, 3)),
    Case(ValueError, "input_shape", "(-1, 3)", lambda: SimpleRNNCell(4).initialize_carry(KEY, (-1, 3))),
    Case(TypeError, "carry", "(2, 4)", lambda: STACK.apply(STACK_VARIABLES, H, X_T)),
    Case(ValueError, "carry", "got 1", lambda: STACK.apply(STACK_VARIABLES, (H,), X_T)),
    Case(ValueError, "carry", "got 2", lambda: STACK.apply(STACK_VARIABLES, (LSTM_STATE, H), X_T)),
    Case(TypeError, "inputs", "'x'", lambda: STACK.apply(STACK_VARIABLES, (H, LSTM_STATE), "x")),
    Case(ValueError, "in_features", "0", lambda: init_params(KEY, 0, 4)),
    Case(TypeError, "in_features", "'3'", lambda: init_params(KEY, "3", 4)),
    Case(TypeError, "in_features", "True", lambda: init_params(KEY, True, 4)),
    Case(TypeError, "units", "None", lambda: init_params(KEY, 3, None)),
    Case(TypeError, "key", "None", lambda: init_params(None, 3, 4)),
    Case(TypeError, "key", "0 (int)", lambda: init_params(0, 3, 4)),
    Case(TypeError, "key", "float32", lambda: init_params(np.zeros(2, np.float32), 3, 4)),
    Case(
        TypeError, "key", "shape (2,)", lambda: init_params(jax.random.wrap_key_data(np.zeros((2, 2), np.uint32)), 3, 4)
    ),
    Case(TypeError, "use_bias", "None", lambda: init_params(KEY, 3, 4, use_bias=None)),
    Case(ValueError, "dtype", "int", lambda: init_params(KEY, 3, 4, dtype=int)),
    Case(ValueError, "bias_initializer", "'zeroes'", lambda: init_params(KEY, 3, 4, bias_initializer="zeroes")),
    Case(ValueError, "bias_initializer", "(4,)", lambda: init_params(KEY, 3, 4, bias_initializer="orthogonal")),
    Case(
        ValueError, "kernel_initializer", "(4, 3)", lambda: init_params(KEY, 3, 4, kernel_initializer=np.ones((4, 3)))
    ),
    Case(
        ValueError,
        "recurrent_initializer",
        "(3, 4)",
        lambda: init_params(KEY, 3, 4, recurrent_initializer=lambda key, shape, dtype: np.ones((3, 4))),
    ),
    Case(
        ValueError, "kernel_initializer", "0 positional", lambda: init_params(KEY, 3, 4, kernel_initializer=lambda: 0)
    ),
    Case(ValueError, "bias_initializer", "(3,)", lambda: SimpleRNN(4, bias_initializer=np.ones(3)).init(KEY, X)),
    Case(
        ValueError,
        "kernel_initializer",
        "function",
        lambda: SimpleRNN(4, kernel_initializer=lambda *_: jax.nn.initializers.ones).init(KEY, X),
    ),
    Case(
        ValueError,
        "initial_state_initializer",
        "(2, 4)",
        lambda: SimpleRNN(4, initial_state_initializer=H).init(KEY, X),
    ),
    Case(ValueError, "dropout", "2", lambda: dropout_masks(KEY, (2,), 3, 4, dropout=2)),
    Case(TypeError, "key", "None", lambda: dropout_masks(None, (2,), 3, 4, dropout=0.5)),
    Case(TypeError, "batch", "2 (int)", lambda: dropout_masks(KEY, 2, 3, 4)),
    Case(ValueError, "batch", "(-2,)", lambda: dropout_masks(KEY, (-2,), 3, 4)),
    Case(TypeError, "batch", "('a',)", lambda: dropout_masks(KEY, ("a",), 3, 4)),
    Case(ValueError, "dtype", "int", lambda: dropout_masks(KEY, (2,), 3, 4, dtype=int)),
]

VARIABLE_TREES = [
    Case(TypeError, "params", "None", lambda: simple_rnn(None, X)),
    Case(TypeError, "params", "(2, 5, 3)", lambda: simple_rnn(X, X)),
    Case(ValueError, "params", "[]", lambda: simple_rnn({}, X)),
    Case(ValueError, "params", "recurrent_kernel", lambda: simple_rnn(without("recurrent_kernel"), X)),
    Case(ValueError, "params", "'foo'", lambda: simple_rnn(PARAMS | {"foo": H}, X)),
    Case(ValueError, "params", "'params'", lambda: simple_rnn(VARIABLES, X)),
    Case(ValueError, "params", "['bias']", lambda: cell_step({"bias": H}, H, X_T)),
    Case(ValueError, "params['kernel']", "(4,)", lambda: simple_rnn(PARAMS | {"kernel": np.ones(4)}, X)),
    Case(TypeError, "params['kernel']", "None", lambda: simple_rnn(PARAMS | {"kernel": None}, X)),
    Case(TypeError, "params['kernel']", "object", lambda: simple_rnn(PARAMS | {"kernel": np.full((3, 4), None)}, X)),
    Case(
        ValueError,
        "params['recurrent_kernel']",
        "(3, 4)",
        lambda: simple_rnn(PARAMS | {"recurrent_kernel": np.ones((3, 4))}, X),
    ),
    Case(ValueError, "params['bias']", "shape ()", lambda: simple_rnn(PARAMS | {"bias": np.ones(())}, X)),
    Case(ValueError, "params['bias']", "(1, 4)", lambda: simple_rnn(PARAMS | {"bias": np.ones((1, 4))}, X)),
    Case(ValueError, "params['initial_state']", "(2, 4)", lambda: simple_rnn(PARAMS | {"initial_state": H}, X)),
    wrong(ValueError, "'kernel'", variables={}),
    Case(ValueError, "variables", "cells_0", lambda: call(variables={}, layer=MIXED)),
    Case(ValueError, "variables", "forward_layer", lambda: call(variables={}, layer=BOTH)),
    Case(ValueError, "variables", "forward_layer", lambda: call(layer=BOTH)),
    wrong(ValueError, "'bias'", variables={"params": without("bias")}),
    Case(ValueError, "kernel", "(3, 4)", lambda: call(layer=SimpleRNN(6))),
    Case(ValueError, "bias", "(3,)", lambda: call(variables={"params": PARAMS | {"bias": np.ones(3)}})),
    Case(TypeError, "kernel", "None", lambda: call(variables={"params": PARAMS | {"kernel": None}})),
    Case(TypeError, "bias", "(list)", lambda: call(variables={"params": PARAMS | {"bias": ["a"] * 4}})),
]

STATEFUL_LAYERS = [
    Case(AttributeError, "stateful", "True", lambda: LAYER.reset_states(VARIABLES)),
    Case(AttributeError, "stateful", "True", lambda: BOTH.reset_states(BOTH_VARIABLES)),
    Case(AttributeError, "stateful", "True", lambda: MIXED.reset_states(MIXED_VARIABLES)),
    Case(ValueError, "variables", "['params']", lambda: STATEFUL.reset_states(VARIABLES)),
    Case(ValueError, "variables", "batch size", lambda: STATEFUL.reset_states(VARIABLES | {"carry": {}})),
    Case(TypeError, "variables", "None", lambda: STATEFUL.reset_states(None)),
    Case(ValueError, "variables", "(2, 4)", lambda: reset_states({"carry": H})),
    Case(ValueError, "states", "received 2", lambda: STATEFUL.reset_states(RECORDED, [H, H])),
    Case(ValueError, "states", "received 0", lambda: STATEFUL.reset_states(RECORDED, [])),
    Case(ValueError, "states", "(1, 4)", lambda: STATEFUL.reset_states(RECORDED, H[:1])),
    Case(ValueError, "states", "(2, 3)", lambda: STATEFUL.reset_states(RECORDED, [X_T])),
    Case(ValueError, "states", "(4,)", lambda: STATEFUL.reset_states(RECORDED, H[0])),
    Case(ValueError, "states", "complex", lambda: STATEFUL.reset_states(RECORDED, H + 0j)),
    Case(ValueError, "states", "<U1", lambda: STATEFUL.reset_states(RECORDED, np.full((2, 4), "a"))),
    Case(ValueError, "states", "object", lambda: STATEFUL.reset_states(RECORDED, np.full((2, 4), None))),
    Case(ValueError, "states", "object", lambda: STATEFUL.reset_states(RECORDED, [None])),
    Case(ValueError, "states", "[[1, 2], [3]]", lambda: STATEFUL.reset_states(RECORDED, [[[1, 2], [3]]])),
    Case(ValueError, "states", "['state']", lambda: STATEFUL.reset_states(RECORDED, {"state": (H,)})),
    Case(ValueError, "states", "(2, 4)", lambda: reset_states(RECORDED, H)),
    Case(ValueError, "states", "(2, 6)", lambda: MIXED_STATEFUL.reset_states(MIXED_RECORDED, [H, LSTM_STATE[0]])),
    Case(ValueError, "states", "received 1", lambda: MIXED_STATEFUL.reset_states(MIXED_RECORDED, [H])),
    Case(TypeError, "state", "unexpected", lambda: STATEFUL.reset_states(RECORDED, state=H)),
    Case(ValueError, "inputs", "(3,)", lambda: call(np.ones((3, 5, 3)), RECORDED, STATEFUL)),
    Case(ValueError, "variables['carry']", "(2, 4)", lambda: call(X[0], RECORDED, STATEFUL)),
    Case(ValueError, "inputs", "(1,)", lambda: call(X[:1], MIXED_RECORDED, MIXED_STATEFUL)),
    Case(ValueError, "variables", "carry", lambda: call(layer=STATEFUL)),
    Case(ValueError, "carry", "(2, 3)", lambda: call(X, VARIABLES | {"carry": {"states": (X_T,)}}, STATEFUL)),
    Case(ValueError, "carry", "got 2", lambda: call(X, VARIABLES | {"carry": {"states": (H, H)}}, STATEFUL)),
    Case(TypeError, "carry", "(2, 4)", lambda: call(X, VARIABLES | {"carry": {"states": H}}, STATEFUL)),
]

TRAINING = [
    Case(
        ValueError,
        "kernel_regularizer",
        "(3, 4)",
        lambda: call(layer=SimpleRNN(4, kernel_regularizer=lambda w: w), mutable=["losses"]),
    ),
    Case(
        ValueError,
        "bias_regularizer",
        "None",
        lambda: call(layer=SimpleRNN(4, bias_regularizer=lambda w: None), mutable=["losses"]),
    ),
    Case(TypeError, "variables", "None", lambda: regularization_loss(None)),
    Case(TypeError, "variables", "0.5", lambda: regularization_loss(0.5)),
    Case(TypeError, "variables", '(..., mutable=["losses"])', lambda: regularization_loss(PARAMS)),
    Case(
        TypeError,
        "variables",
        "flax_srnn.nnx.regularization_loss",
        lambda: regularization_loss(nnx.Linear(1, 1, rngs=nnx.Rngs(0))),
    ),
    Case(TypeError, "model", "SimpleRNN", lambda: fnnx.regularization_loss(LAYER)),
    Case(TypeError, "model", "SimpleRNN", lambda: fnnx.collect_constraints(LAYER)),
    Case(TypeError, "model", "SimpleRNN", lambda: fnnx.reset_states(LAYER)),
    Case(ValueError, "batch_size", "stateful=True", lambda: fnnx.SimpleRNN(3, 4, batch_size=2, rngs=nnx.Rngs(0))),
    Case(ValueError, "variables", "use_bias=False", lambda: LAYER.apply({"params": without("bias")}, X)),
    Case(ValueError, "initial_state", "inputs[:, None]", lambda: call(X[:, 0], initial_state=H)),
    Case(TypeError, "variables['losses']", "'x'", lambda: regularization_loss({"losses": {"mine": "x"}})),
    Case(TypeError, "model", "3 (int)", lambda: collect_constraints(3, KEY, X)),
    Case(TypeError, "model", "SimpleRNN", lambda: collect_constraints(SimpleRNN, KEY, X)),
    Case(TypeError, "inputs", "'x'", lambda: collect_constraints(LAYER, KEY, "x")),
    Case(TypeError, "tree", "None", lambda: apply_constraints(PARAMS, None)),
    Case(TypeError, "tree", "[] (list)", lambda: apply_constraints(PARAMS, [])),
    Case(TypeError, "tree", "'max_norm'", lambda: apply_constraints(PARAMS, {"kernel": "max_norm"})),
    Case(ValueError, "params", "kernl", lambda: apply_constraints(PARAMS, {"kernl": NON_NEG["kernel"]})),
    Case(ValueError, "params", "kernel", lambda: apply_constraints(VARIABLES, NON_NEG)),
    Case(ValueError, "tree", "12.0", lambda: apply_constraints(PARAMS, {"kernel": np.sum})),
    Case(ValueError, "tree", "None", lambda: apply_constraints(PARAMS, {"kernel": lambda w: None})),
    Case(TypeError, "tree", "3 (int)", lambda: keep_constraints(3)),
    Case(TypeError, "tree", "'non_neg'", lambda: keep_constraints({"bias": "non_neg"})),
    Case(
        ValueError,
        "params",
        "None",
        lambda: keep_constraints(NON_NEG).update(PARAMS, keep_constraints(NON_NEG).init(PARAMS)),
    ),
    Case(ValueError, "params", "kernel", lambda: keep_constraints(NON_NEG).update(PARAMS, None, {"kernel": H})),
]

GROUPS = {
    "constructor": CONSTRUCTOR,
    "names": NAMES,
    "wrappers": WRAPPERS,
    "inputs": INPUTS,
    "state": STATE,
    "masks": MASKS,
    "core": CORE,
    "variables": VARIABLE_TREES,
    "stateful": STATEFUL_LAYERS,
    "training": TRAINING,
}
TABLE = [
    pytest.param(case, id=f"{group}-{number}-{case.argument}")
    for group, cases in GROUPS.items()
    for number, case in enumerate(cases)
]


class LoopReachedError(Exception):
    pass


@pytest.fixture
def no_loop(monkeypatch):
    """Whoever gets as far as a loop over time is stopped."""

    def loop(*_, **__):
        raise LoopReachedError

    for module, function in ((recurrence.Scan, "run"), (recurrence, "plain"), (nn, "scan"), (jax.lax, "scan")):
        monkeypatch.setattr(module, function, loop)


def check(case):
    with pytest.raises(case.error) as caught:
        case.run()
    message = str(caught.value)
    assert type(caught.value) is case.error
    assert f"`{case.argument}" in message or f"'{case.argument}'" in message, message
    assert case.got in message, message
    assert len(message) < 600, message
    raised_in = traceback.extract_tb(caught.tb)[-1].filename
    about_the_signature = any(words in message for words in ("unexpected keyword argument", "missing 1 required"))
    assert raised_in.startswith(HERE) or about_the_signature, (raised_in, message)


@pytest.mark.parametrize("case", TABLE)
def test_wrong_argument(case, no_loop):
    check(case)


def is_numeric(value):
    return isinstance(value, np.ndarray) and value.dtype in (np.bool_, np.float32, np.float64)


@pytest.mark.parametrize(
    "case", [case for case in STATE + MASKS if is_numeric(case.value)], ids=lambda case: case.argument
)
def test_wrong_shape_inside_jit(case, no_loop):
    """The same messages where only the shape and dtype are known."""
    check(case._replace(run=lambda: jax.eval_shape(lambda traced: call(**{case.argument: traced}), case.value)))


@pytest.mark.parametrize("mode", [mode for mode in MERGING if mode != "concat"])
def test_directions_of_different_width_are_not_merged(mode):
    """Known only from what comes out; a width of 1 would be broadcast."""
    layer = Bidirectional(LAYER, mode, SimpleRNN(1, go_backwards=True))
    check(Case(ValueError, "merge_mode", "(2, 1)", lambda: jax.eval_shape(layer.init, KEY, X)))


def test_training_without_a_key_is_flax_own_error():
    for layer, variables in (
        (SimpleRNN(4, dropout=0.5), VARIABLES),
        (RNN(SimpleRNNCell(4, recurrent_dropout=0.5)), VARIABLES),
        (Bidirectional(SimpleRNN(4, dropout=0.5)), BOTH_VARIABLES),
    ):
        with pytest.raises(flax.errors.InvalidRngError, match='"dropout"'):
            call(layer=layer, variables=variables, training=True)
        with pytest.raises(flax.errors.InvalidRngError, match='"dropout"'):
            call(layer=layer, variables=variables, training=True, rngs={"dorpout": KEY})


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [(LAYER, (X,)), (MIXED, (X,)), (BOTH, (X,)), (SimpleRNNCell(4), (H, X_T)), (STACK, ((H, LSTM_STATE), X_T))],
    ids=lambda value: type(value).__name__,
)
def test_layer_without_variables_is_flax_own_error(layer, inputs):
    with pytest.raises(flax.errors.CallCompactUnboundModuleError):
        layer(*inputs)


@pytest.mark.parametrize(
    ("unusual", "usual"),
    [
        ({"mask": [[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]]}, {"mask": np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]], bool)}),
        ({"mask": MASK[..., None] * 2.0}, {}),
        ({"resets": [[False] * 5, (False,) * 5]}, {"resets": ~MASK}),
        ({"seq_lengths": (2, 5)}, {"seq_lengths": np.array([2, 5], np.uint8)}),
        ({"seq_lengths": [np.int64(2), jnp.int32(0)]}, {"seq_lengths": jnp.array([2, 0])}),
        ({"initial_state": (H + 1,)}, {"initial_state": H + 1}),
        ({"initial_state": (H + 2).astype(int)}, {"initial_state": H + 2}),
        ({"training": np.False_}, {}),
        ({"inputs": X.tolist()}, {}),
        ({"inputs": X.astype(int)}, {}),
        ({"layer": SimpleRNN(np.int64(4))}, {}),
        pytest.param(
            {"layer": SimpleRNN(4, unroll=np.uint8(200)), "inputs": np.ones((2, 300, 3))},
            {"inputs": np.ones((2, 300, 3))},
            marks=pytest.mark.slow,
        ),
        ({"layer": SimpleRNN(np.array(4), unroll=np.array(2), seed=np.uint8(3))}, {}),
        ({"layer": SimpleRNN(jnp.array(4), use_bias=np.True_, dropout=np.float32(0.5), recurrent_dropout=1)}, {}),
        ({"layer": SimpleRNN(4, dtype=np.float32, param_dtype="float32", precision="highest")}, {}),
        ({"layer": SimpleRNN(4, precision=("high", "default"), unroll=10**30)}, {}),
    ],
)
def test_unusual_but_right(unusual, usual):
    """Whatever has one meaning is taken: lists, NumPy scalars, numbers for flags of steps."""
    np.testing.assert_array_equal(call(**unusual), call(**usual))


class Frame:
    """As a pandas DataFrame or a torch tensor: no array, but NumPy reads it as one."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        if self.values is None:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return np.asarray(self.values, dtype)


def test_what_numpy_reads_as_numbers(monkeypatch):
    used = {"mask": MASK, "seq_lengths": np.array([2, 5]), "initial_state": H}
    framed = {name: Frame(value) for name, value in used.items()}
    np.testing.assert_array_equal(call(Frame(X), **framed), call(X, **used))
    for value, got in (([["a"] * 3] * 5, "<U1"), ([[None] * 3] * 5, "object"), (None, "Frame"), (X + 0j, "complex")):
        with pytest.raises(TypeError, match=f"`inputs`.*({got}|Frame)"):
            call(Frame(value))
    monkeypatch.setattr(Frame, "detach", None, raising=False)  # as a tensor of torch's with gradients has
    with pytest.raises(TypeError, match=r"Give .detach\(\).float\(\).numpy\(\) of it"):
        call(Frame(None))


def test_integers_given_as_arrays_leave_a_layer_hashable():
    assert hash(SimpleRNN(np.array(4), unroll=jnp.array(2))) == hash(SimpleRNN(4, unroll=2))
    assert SimpleRNN(np.array(4), seed=np.array(1)) == SimpleRNN(4, seed=1)


def test_lengths_known_only_at_run_time_are_not_checked():
    """The documented limit: under jit their values are unknown; they act like the comparisons that they are."""
    lengths = np.array([9, -1])
    out = jax.jit(lambda lengths: call(seq_lengths=lengths))(lengths)
    np.testing.assert_array_equal(out, call(seq_lengths=[5, 0]))
