"""Constraints in stacks of layers: each member becomes what it would alone, whatever made the stack, or an error says why not."""

import itertools

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import KEY, F, U, X, drawn

import flax_srnn.nnx as fnnx
from flax_srnn import (
    RNN,
    Bidirectional,
    SimpleRNN,
    SimpleRNNCell,
    apply_constraints,
    collect_constraints,
    keep_constraints,
)
from flax_srnn.constraints import MaxNorm, MinMaxNorm, NonNeg, Stacked, UnitNorm

N = 3
NORMS = {"kernel_constraint": UnitNorm(), "recurrent_constraint": MaxNorm(0.5, -1), "bias_constraint": MaxNorm(0.3)}
OTHERS = {
    "kernel_constraint": MinMaxNorm(0.4, 0.6, rate=0.3, axis=(-2, -1)),
    "recurrent_constraint": NonNeg(),
    "bias_constraint": UnitNorm(),
}
# With F = 3, N members and 3 units all sizes are equal: nothing can be read off from shapes.
ALIKE = 3
MODELS = {
    "layer": lambda units: (SimpleRNN, (units,), NORMS | {"initial_state_initializer": "ones"}),
    "cells": lambda units: (RNN, ([SimpleRNNCell(units, **NORMS), SimpleRNNCell(2, **OTHERS)],), {}),
    "both": lambda units: (Bidirectional, (SimpleRNN(units, **OTHERS),), {}),
}


def lifted(module, axes, count=N):
    """`nn.vmap` over the axes, the first innermost."""
    for axis in axes:
        module = nn.vmap(
            module, variable_axes={"params": axis}, split_rngs={"params": True}, in_axes=None, axis_size=count
        )
    return module


def updated(params, tree):
    """The parameters after one step of an optimizer, with gradients that follow from them number by number."""
    return stepping(tree)(params)


def stepping(tree):
    @jax.jit
    def step(params):
        optimizer = optax.chain(optax.sgd(0.3), keep_constraints(tree))
        updates, _ = optimizer.update(jax.tree.map(jnp.cos, params), optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    return step


def member(params, axes, index):
    """One of a stack whose axes were laid one after the other."""
    for axis, i in zip(reversed(axes), index, strict=True):
        params = jax.tree.map(lambda p, axis=axis, i=i: np.take(np.asarray(p), i, axis), params)
    return params


def check_members(params, tree, alone, axes, count=N):
    """Against a loop over members, each updated by itself with the tree of a single layer."""
    new, step = updated(params, tree), stepping(alone)
    for index in np.ndindex((count,) * len(axes)):
        jax.tree.map(
            lambda actual, expected: np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7),
            member(new, axes, index),
            step(member(params, axes, index)),
        )


# --- Linen: nn.vmap, nn.scan -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    cases.thinned(
        [("layer", (0,)), ("layer", (1,)), ("layer", (-1,)), ("layer", (1, 0)), ("cells", (0, -1)), ("both", (-2,))], 3
    ),
    ids=str,
)
def test_members_of_lifted_layers(kind):
    model, axes = kind
    module, arguments, options = MODELS[model](ALIKE)
    stack, alone = lifted(module, axes)(*arguments, **options), module(*arguments, **options)
    check_members(
        drawn(stack, X)["params"], collect_constraints(stack, KEY, X), collect_constraints(alone, KEY, X), axes
    )


class Block(nn.Module):
    """A layer of a deep model, for `nn.scan`."""

    @nn.compact
    def __call__(self, x, _):
        return nn.remat(SimpleRNN)(F, **NORMS, return_sequences=True, name="rnn")(x), None


class Deep(nn.Module):
    """Layers stacked by `nn.scan`, and by `nn.vmap` with parameters that have names for their axes, beside single ones."""

    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=N)
        x, _ = blocks(name="blocks")(x, None)
        shared = SimpleRNN(F, **NORMS, return_sequences=True, name="shared")
        x = shared(shared(x))
        broadcast = nn.vmap(
            SimpleRNN, variable_axes={"params": None}, split_rngs={"params": False}, in_axes=None, axis_size=2
        )
        broadcast(F, **NORMS, name="broadcast")(x)
        named = nn.with_partitioning(nn.initializers.normal(), (None, "units"))
        ensemble = nn.vmap(
            SimpleRNN,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=N,
            metadata_params={nn.PARTITION_NAME: "members"},
        )
        return nn.RNN(SimpleRNNCell(F, **NORMS))(x), ensemble(F, **NORMS, kernel_initializer=named, name="ensemble")(x)


def test_models_that_are_stacked_in_parts():
    tree = collect_constraints(Deep(), KEY, X)
    plain = {"kernel": UnitNorm(), "recurrent_kernel": MaxNorm(0.5, -1), "bias": MaxNorm(0.3)}
    at = [{name: Stacked(constraint, axis) for name, constraint in plain.items()} for axis in (0, 1)]
    assert tree == {
        "blocks": {"rnn": at[1]},
        "shared": plain,
        "broadcast": plain,
        "SimpleRNNCell_0": plain,
        "ensemble": at[0],
    }
    boxed = drawn(Deep(), X)["params"]
    new = updated(boxed, tree)
    assert jax.tree.structure(new) == jax.tree.structure(boxed)
    assert new["ensemble"]["kernel"].names == ("members", None, "units")
    check_members(boxed["blocks"]["rnn"], tree["blocks"]["rnn"], plain, (1,))
    np.testing.assert_allclose(np.linalg.norm(new["ensemble"]["kernel"].value, axis=1), 1, rtol=1e-5)


def names(variables):
    return sorted({key.key for path, _ in jax.tree_util.tree_leaves_with_path(variables) for key in path})


@pytest.mark.parametrize("make", [nn.jit, lambda module: lifted(nn.jit(module), (1,))], ids=["jit", "vmap of jit"])
def test_jitted_layers_are_found_and_left_clean(make):
    """JAX remembers what is under `nn.jit`: neither may collecting rely on it nor `init` find in it what collecting traced."""
    layer = make(SimpleRNN)(U, bias_constraint=UnitNorm())
    for _ in range(2):
        assert list(collect_constraints(layer, KEY, X)) == ["bias"]
        assert names(jax.eval_shape(layer.init, KEY, X)) == ["bias", "kernel", "params", "recurrent_kernel"]


def test_a_parameter_of_the_same_name_at_the_top_is_not_constrained():
    """The layer makes a copy of a user's cell, to learn the shape of its output, at the top of a tree of its own."""

    class Cell(SimpleRNNCell):
        def __call__(self, carry, inputs):
            return super().__call__(carry, inputs)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return RNN([Cell(U, **NORMS), Cell(U)], name="rnn")(x @ self.param("kernel", nn.initializers.ones, (F, F)))

    assert collect_constraints(Model(), KEY, X).keys() == {"rnn"}


def test_parameters_behind_a_function_are_refused():
    def transposed(variables):
        return jax.tree.map(jnp.transpose, variables)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            mapped = nn.map_variables(SimpleRNN, "params", transposed, transposed, init=True, mutable=True)
            return mapped(U, kernel_constraint="unit_norm", name="rnn")(x)

    with pytest.raises(ValueError, match=r"`model` .*rnn/kernel, \(4, 3\).* \(3, 4\).*map_variables"):
        collect_constraints(Model(), KEY, X)


# --- stacks that nobody was told of: jax.vmap --------------------------------------------------------------------------


@pytest.mark.parametrize("of", cases.thinned(itertools.product(MODELS, (0, 1, -1)), 3), ids=str)
def test_members_of_a_stack_with_the_tree_of_one(of):
    model, axis = of
    module, arguments, options = MODELS[model](U)
    alone = module(*arguments, **options)
    tree = collect_constraints(alone, KEY, X)
    make = jax.vmap(alone.init, in_axes=(0, None), out_axes=axis)
    made = jax.eval_shape(make, jax.ShapeDtypeStruct((N, 2), np.uint32), X)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), made)
    check_members(params, tree, tree, (axis,))


def test_members_under_vmap():
    layer = SimpleRNN(ALIKE, **NORMS)
    tree = collect_constraints(layer, KEY, X)
    params = drawn(lifted(SimpleRNN, (0,))(ALIKE, **NORMS), X)["params"]
    new = jax.vmap(stepping(tree))(params)
    for i in range(N):
        expected = updated(member(params, (0,), (i,)), tree)
        jax.tree.map(lambda p, e, i=i: np.testing.assert_allclose(p[i], e, rtol=1e-6, atol=1e-7), new, expected)


def of_shapes(**shapes):
    return {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_what_members_share_and_stacks_in_stacks():
    """A bias that all share is constrained as one; several stacks are told apart from F and U."""
    norms = {"kernel": UnitNorm(), "bias": UnitNorm()}
    shared = of_shapes(kernel=(5, F, U), recurrent_kernel=(5, U, U), bias=(U,))
    new = updated(shared, norms)
    np.testing.assert_allclose(np.linalg.norm(new["kernel"], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(new["bias"]), 1, rtol=1e-5)
    nested = of_shapes(kernel=(5, F, 2, U), recurrent_kernel=(5, U, 2, U), bias=(5, U, 2))  # axis 0, within it axis 1
    new = updated(nested, norms)
    np.testing.assert_allclose(np.linalg.norm(new["kernel"], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(new["bias"], axis=1), 1, rtol=1e-5)


AMBIGUOUS = {
    "all sizes equal": of_shapes(kernel=(4, 4, 4), recurrent_kernel=(4, 4, 4), bias=(4, 4)),
    "second or last axis": of_shapes(kernel=(3, 4, 4), recurrent_kernel=(4, 4, 4), bias=(4, 4)),
    "only the kernel": of_shapes(kernel=(2, 3, 4), recurrent_kernel=(4, 4), bias=(4,)),
    "stacked unlike": of_shapes(kernel=(2, 3, 4), recurrent_kernel=(4, 4, 5), bias=(4,)),
    "deeper than is read": of_shapes(kernel=(2, 2, 5, 6, 3, 4), recurrent_kernel=(2, 2, 5, 6, 4, 4)),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_cannot_be_told_apart_raises(case):
    """In `init` already; but not where every reading comes to the same."""
    params = {"rnn": AMBIGUOUS[case]}
    tree = {"rnn": {"kernel": UnitNorm()}}
    message = r"`params`: rnn/kernel of shape \({}.* would do.*jax.vmap.*Stacked".format(
        params["rnn"]["kernel"].shape[0]
    )
    for refused in (lambda: apply_constraints(params, tree), lambda: keep_constraints(tree).init(params)):
        with pytest.raises(ValueError, match=message):
            refused()
    positive = apply_constraints(params, {"rnn": {"kernel": NonNeg()}})["rnn"]["kernel"]
    np.testing.assert_array_equal(positive, np.maximum(params["rnn"]["kernel"], 0))
    told = apply_constraints(params, {"rnn": {"kernel": Stacked(UnitNorm(), tuple(range(positive.ndim - 2)))}})["rnn"][
        "kernel"
    ]
    np.testing.assert_allclose(np.linalg.norm(told, axis=-2), 1, rtol=1e-5)


def test_trees_and_parameters_that_do_not_go_together():
    tree = collect_constraints(lifted(SimpleRNN, (0,))(U, kernel_constraint="unit_norm"), KEY, X)
    with pytest.raises(ValueError, match=r"`tree`: Stacked\(.*kernel of shape \(3, 4\).*0 axes"):
        keep_constraints(tree).init(drawn(SimpleRNN(U), X)["params"])
    with pytest.raises(
        ValueError, match=r"`tree`: the constraint of kernel must keep the shape \(3, 4\), got .*\(4,\)"
    ):
        apply_constraints(drawn(lifted(SimpleRNN, (1,))(U), X)["params"], {"kernel": lambda w: w.sum(0)})


def test_other_layers_are_projected_as_a_whole():
    params = {
        "conv": of_shapes(kernel=(2, 2, 3, 4), bias=(4,)),
        "rnn": of_shapes(kernel=(2, 3, 4), recurrent_kernel=(2, 4, 4)),
    }
    new = apply_constraints(
        params, {"conv": {"kernel": MaxNorm(0.1, axis=(0, 1, 2))}, "rnn": {"kernel": Stacked(np.abs, ())}}
    )
    np.testing.assert_allclose(np.linalg.norm(new["conv"]["kernel"].reshape(12, 4), axis=0), 0.1, rtol=1e-5)
    np.testing.assert_array_equal(new["rnn"]["kernel"], np.abs(params["rnn"]["kernel"]))


# --- NNX ---------------------------------------------------------------------------------------------------------------


def ensemble(units, axis=0, **options):
    """NNX layers stacked by `nnx.vmap`."""
    out = nnx.StateAxes({nnx.Param: axis, ...: 0})
    make = nnx.vmap(lambda rngs: fnnx.SimpleRNN(F, units, **options, rngs=rngs), in_axes=0, out_axes=out)
    return nnx.split_rngs(splits=N)(make)(nnx.Rngs(0))


@pytest.mark.parametrize("axis", cases.thinned([0, 1, -1], 1))
@pytest.mark.slow
def test_members_of_an_nnx_ensemble(axis):
    """By an optimizer with the tree of the whole, or with that of one member."""
    alone = fnnx.collect_constraints(fnnx.SimpleRNN(F, U, **NORMS, rngs=nnx.Rngs(1)))
    stack = ensemble(U, axis, **NORMS)
    tree = fnnx.collect_constraints(stack)
    assert tree["kernel"] == Stacked(UnitNorm(), axis % 3)
    params = of_shapes(**{name: stack._params()[name].shape for name in alone})
    step = stepping(alone)
    for given in (tree, alone):
        nnx.update(stack, params)
        optimizer = nnx.Optimizer(stack, optax.chain(optax.sgd(0.3), keep_constraints(given)), wrt=nnx.Param)
        optimizer.update(stack, jax.tree.map(jnp.cos, nnx.state(stack, nnx.Param)))
        for i in range(N):
            expected = step(member(params, (axis,), (i,)))
            for name, one in member(stack._params(), (axis,), (i,)).items():
                np.testing.assert_allclose(one, expected[name], rtol=1e-6, atol=1e-7)


def test_an_nnx_model_made_by_scan():
    @nnx.split_rngs(splits=N)
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def make(count, rngs):
        cells = [fnnx.SimpleRNNCell(F, U, **NORMS, rngs=rngs), fnnx.SimpleRNNCell(U, 2, rngs=rngs)]
        return count + 1, fnnx.Bidirectional(fnnx.RNN(cells), rngs=rngs)

    _, model = make(0, nnx.Rngs(0))
    plain = {"kernel": UnitNorm(), "recurrent_kernel": MaxNorm(0.5, -1), "bias": MaxNorm(0.3)}
    at = {"cell": {0: {name: Stacked(constraint, 0) for name, constraint in plain.items()}}}
    tree = fnnx.collect_constraints(model)
    assert tree == {"layer": at, "backward_layer": at}
    keep_constraints(tree).init(nnx.state(model, nnx.Param))


def test_nnx_layers_know_their_sizes():
    """Where nothing but F and U tells a stack of stacks: 3 × 3 layers with F = U = 5, or 5 × 5 with F = U = 3."""
    params = of_shapes(kernel=(3, 3, 5, 5), recurrent_kernel=(3, 3, 5, 5))
    layer = fnnx.SimpleRNN(5, 5, use_bias=False, kernel_constraint="unit_norm", rngs=nnx.Rngs(0))
    nnx.update(layer, params)
    tree = fnnx.collect_constraints(layer)
    assert tree == {"kernel": Stacked(UnitNorm(), (0, 1))}
    np.testing.assert_allclose(np.linalg.norm(updated(params, tree)["kernel"], axis=2), 1, rtol=1e-5)
    with pytest.raises(ValueError, match=r"\[\(0, 1\), \(2, 3\)\] would do"):
        updated(params, {"kernel": UnitNorm()})


def test_an_nnx_ensemble_of_equal_sizes_is_refused():
    with pytest.raises(
        ValueError, match=r"`model`: kernel of shape \(3, 3, 3\) .* \[\(0,\), \(1,\), \(2,\)\] would do"
    ):
        fnnx.collect_constraints(ensemble(ALIKE, **NORMS))
    assert fnnx.collect_constraints(ensemble(ALIKE, kernel_constraint="non_neg")) == {"kernel": NonNeg()}


# --- Stacked -----------------------------------------------------------------------------------------------------------


def test_stacked_is_a_value():
    assert Stacked(UnitNorm(), 1) == Stacked(UnitNorm(), [1]) == Stacked(UnitNorm(0), (1,)) != Stacked(UnitNorm(), 0)
    assert len({Stacked(NonNeg()), Stacked(NonNeg(), (0,)), Stacked(NonNeg(), ())}) == 2
    assert repr(Stacked(UnitNorm(), -1)) == "Stacked(constraint=UnitNorm(axis=0), axes=(-1,))"
    w = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    for axes, own in [((2, 0), 1), ((-1, 1), 0), ((), 0)]:
        np.testing.assert_allclose(np.linalg.norm(Stacked(UnitNorm(), axes)(w), axis=own), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (TypeError, "`constraint` must be a callable.*'unit_norm'", lambda: Stacked("unit_norm")),
        (TypeError, "`axes` must be an integer.*1.5", lambda: Stacked(UnitNorm(), 1.5)),
        (ValueError, r"`axes` must name .*\[0, 0\]", lambda: Stacked(UnitNorm(), [0, 0])),
        (ValueError, r"`axes` must lie between -2 and 1 .*\(2,\)", lambda: Stacked(UnitNorm(), 2)(np.ones((2, 2)))),
        (ValueError, r"`axes` must .*none twice, got \(0, -2\)", lambda: Stacked(NonNeg(), (0, -2))(np.ones((2, 2)))),
        (ValueError, r"`axis` must .*none twice, got \(0, -1\)", lambda: UnitNorm((0, -1))(np.ones(2))),
    ],
)
def test_bad_arguments(error, message, make):
    with pytest.raises(error, match=message):
        make()
