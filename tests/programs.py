"""What the tests do with a problem of `cases`: call, differentiate, compile, and compare."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import reference

from flax_srnn import simple_rnn


def call(function, problem, arguments=None, **options):
    """`function`, ours or the oracle, with (params, inputs, arrays) replaced by `arguments`."""
    params, inputs, arrays = problem[:3] if arguments is None else arguments
    return function(params, inputs, **arrays, **problem.flags, **{**problem.options, **options})


def cotangents(problem):
    """Random weights of everything that is returned, which make a scalar of it."""
    rng = np.random.default_rng(1)
    return [rng.normal(size=x.shape) for x in jax.eval_shape(lambda: call(simple_rnn, problem))]


def gradients(problem, arguments=None, **options):
    """(final state, outputs) and the gradients of params, inputs and the float arrays."""
    weights = cotangents(problem)

    def loss(arguments):
        returned = call(simple_rnn, problem, arguments, **options)
        return sum((w * x).sum() for w, x in zip(weights, returned, strict=True)), returned

    arguments = jax.tree.map(jnp.asarray, problem[:3]) if arguments is None else arguments
    grads, returned = jax.grad(loss, has_aux=True)(arguments)
    return returned, grads


def compiled(problem, **options):
    """`gradients` under the user's own `jit`."""
    return jax.jit(functools.partial(gradients, problem, **options))(problem[:3])


def values(problem, **options):
    """(final state, outputs) of ours under the user's own `jit`, all arrays traced, the flags too."""

    def run(params, inputs, arrays, flags):
        return call(simple_rnn, problem._replace(flags=flags), (params, inputs, arrays), **options)

    return jax.jit(run)(*problem[:4])


def plain(problem):
    """JAX's own derivative of the plain scan, one operation after the other: not compiled, so much faster."""
    with jax.disable_jit():
        return gradients(problem, implementation="autodiff")


def assert_close(actual, expected, tolerance):
    def check(path, value, wanted):
        np.testing.assert_allclose(value, wanted, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, actual, expected)


def assert_derivative(problem, grads):
    """The slope of the oracle along a random direction of every array, by central differences."""
    weights = cotangents(problem)
    rng = np.random.default_rng(2)
    leaves, structure = jax.tree.flatten(problem[:3])

    def loss(arguments):
        return sum((w * x).sum() for w, x in zip(weights, call(reference.simple_rnn, problem, arguments), strict=True))

    for number, (leaf, grad) in enumerate(zip(leaves, jax.tree.leaves(grads), strict=True)):
        direction = rng.normal(size=leaf.shape)
        ahead, behind = (
            loss(structure.unflatten([*leaves[:number], leaf + step * direction, *leaves[number + 1 :]]))
            for step in (1e-5, -1e-5)
        )
        np.testing.assert_allclose((grad * direction).sum(), (ahead - behind) / 2e-5, rtol=1e-7, atol=1e-7)
