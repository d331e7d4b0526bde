"""Pairs of a Linen and an NNX layer with the same arguments and the same random parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flax_srnn
import flax_srnn.nnx as fnnx

F, U, B, T = 3, 5, 4, 6


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def randomised(tree):
    """The same tree with random numbers: a bias of zeros would hide mistakes."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([numbers(*leaf.shape, seed=i).astype(leaf.dtype) / 2 for i, leaf in enumerate(leaves)])


def twins(linen, layer, x=None, **call):
    """Gives both the same random parameters; returns Linen's variables."""
    variables = linen.init({"params": jax.random.key(0)}, numbers(B, T, F) if x is None else x, **call)
    params = randomised(variables["params"])
    fnnx.from_linen(layer, params)
    jax.tree.map(np.testing.assert_array_equal, fnnx.to_linen(layer), params)
    return {**variables, "params": params}


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


SEQUENCES = {"return_sequences": True, "return_state": True}


def cells_of(*options, rngs=None):
    """Linen's and NNX's cells of widths 5, 6, … with the same options, the first for F features."""
    widths = [U + i for i in range(len(options))]
    features = [F, *widths]
    linen = [flax_srnn.SimpleRNNCell(u, **o) for u, o in zip(widths, options, strict=True)]
    made = [
        fnnx.SimpleRNNCell(f, u, **o, rngs=rngs or nnx.Rngs(0))
        for f, u, o in zip(features, widths, options, strict=False)
    ]
    return linen, made


TWO_CELLS = ({"dropout": 0.5, "seed": 1}, {"activation": "relu", "recurrent_dropout": 0.5, "seed": 1})


def rnn(stack, **options):
    linen, made = cells_of(*TWO_CELLS)
    if stack:
        return flax_srnn.RNN(flax_srnn.StackedRNNCells(linen), **options), fnnx.RNN(
            fnnx.StackedRNNCells(made), **options
        )
    return flax_srnn.RNN(linen, **options), fnnx.RNN(made, **options)


def rnn_of_one(in_list, **options):
    (linen,), (made,) = cells_of({"dropout": 0.5, "seed": 1})
    return flax_srnn.RNN([linen] if in_list else linen, **options), fnnx.RNN([made] if in_list else made, **options)


def bidirectional(merge_mode="concat", **options):
    arguments = {"dropout": 0.5, "seed": 3, **options}
    rngs = nnx.Rngs(0)
    return (
        flax_srnn.Bidirectional(flax_srnn.SimpleRNN(U, **arguments), merge_mode),
        fnnx.Bidirectional(fnnx.SimpleRNN(F, U, **arguments, rngs=rngs), merge_mode, rngs=rngs),
    )
