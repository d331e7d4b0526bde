"""What "Did you mean" proposes for mistyped names: the right one where there is one, and none for what is far from all."""

import pytest

from flax_srnn import activations, constraints, initializers, regularizers
from flax_srnn.core import implementations
from flax_srnn.core.sequence import simple_rnn
from flax_srnn.identifiers import did_you_mean

TABLES = {
    "activation": activations._FUNCTIONS,
    "initializer": initializers._TABLE,
    "regularizer": regularizers._TABLE,
    "constraint": constraints._TABLE,
    "implementation": implementations.TABLE,
    "option": simple_rnn.__kwdefaults__,
}
# What is meant, and how it is mistyped.
TYPOS = {
    "activation": {
        "tanh": "tahn tan than Tanh TANH tanhh",
        "relu": "rely rleu rel ReLU reul relu7",
        "gelu": "gelo",
        "linear": "lienar",
        "sigmoid": "sigmod simgoid sigmoidd Sigmoid",
        "exponential": "exp",
        "softmax": "soft_max sofmax",
        "softplus": "softpluss",
        "leaky_relu": "leakyrelu LeakyReLU leaky leaky-relu",
        "log_softmax": "log_softamx",
        "hard_sigmoid": "hardsigmoid hard_sigmod",
    },
    "initializer": {
        "glorot_uniform": "glorot Glorot glorot_unifrom GlorotUnifrm",
        "glorot_normal": "glorot-normal",
        "he_normal": "he henorml",
        "orthogonal": "Orthogonall ortogonal orthagonel orth",
        "zeros": "zeroes Zeroes",
        "uniform": "unifrom",
        "normal": "norm",
        "random_normal": "random RandomNormall",
        "truncated_normal": "truncated",
        "variance_scaling": "varience_scaling",
    },
    "regularizer": {
        "L1L2": "l1l2",
        "l1_l2": "L1_L2 l1-l2",
        "orthogonal_regularizer": "orthogonal OrthogonalRegulariser",
    },
    "constraint": {
        "max_norm": "max_nrom maxnrom max MaxNrm Max_Norm",
        "non_neg": "non_negg nonnge",
        "unit_norm": "unit unit-norm",
        "min_max_norm": "min_max MinMaxNorms",
    },
    "implementation": {
        "scan": "scna Scan",
        "chunked": "chunk chunkd",
        "autodiff": "auto auto_diff autodif",
    },
    "option": {
        "go_backwards": "go_backward gobackwards",
        "return_sequences": "return_sequence",
        "seq_lengths": "seq_length",
        "initial_state": "inital_state",
        "zero_output_for_mask": "zero_output",
        "time_major": "time_mayor",
        "activation": "activations",
        "mask": "masks",
        "resets": "reset",
    },
}
FAR = {
    "activation": ["", "t", "so", "sinh", "softmin", "maximum", "Constant", "identity", "l2", "x" * 10**5],
    "initializer": ["xavier", "kaiming", "gaussian", "sparse", "tanh", "no", "none", "unit_norm", "3"],
    "regularizer": ["l", "l3", "lasso", "ridge", "dropout"],
    "constraint": ["positive", "clip", "orthogonal", "uniform", "RadialConstraint"],
    "implementation": ["xla", "cuda", "pallas", "parallel", "unroll", "while"],
    "option": ["return_state", "units", "dropout", "stateful", "kernel"],
}
MISTYPED = [(t, typed, meant) for t, typos in TYPOS.items() for meant, all in typos.items() for typed in all.split()]


@pytest.mark.parametrize(("table", "typed", "meant"), MISTYPED)
def test_the_right_one_is_proposed(table, typed, meant):
    assert typed not in TABLES[table]
    assert did_you_mean(typed, TABLES[table]) == f" Did you mean {meant!r}?"


@pytest.mark.parametrize("table", FAR)
def test_nothing_is_proposed_for_what_is_far(table):
    assert {did_you_mean(typed, TABLES[table]) for typed in FAR[table]} == {""}


@pytest.mark.parametrize("table", TABLES)
def test_one_typing_error_in_a_long_name_is_found(table):
    """A letter left out, doubled, wrong, or swapped with its neighbour, wherever it stands."""
    for name in [name for name in TABLES[table] if len(name) >= 8 and "_" not in name and name == name.lower()]:
        for i in range(1, len(name) - 1):
            x, y = name[i : i + 2]
            for wrong in (y, x + x + y, "q" + y, y + x):
                typed = name[:i] + wrong + name[i + 2 :]
                proposed = did_you_mean(typed, TABLES[table]).replace("_", "")  # "unitnorm" is "unit_norm"
                assert typed == name or repr(name) in proposed, (typed, proposed)
