"""The contestants of the benchmark: for a case, each makes a model on this library's own parameters.

A peer's own parameter tree is put together inside its model, which costs nothing once compiled: every peer takes the same
arrays and, differentiated, returns the same gradients.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax_srnn.benchmark.process import OURS, Case, Contestants, Model

__all__ = ["CONTESTANTS", "PEERS"]

PEERS = {"keras": "keras", "flax.linen": "flax", "flax.nnx": "flax", "haiku": "dm-haiku", "torch": "torch"}
"""The peers, and the distribution that each comes from."""


def _ours(case: Case) -> Model:
    import jax
    import jax.numpy as jnp

    import flax_srnn
    from flax_srnn.core.tuning import MEASURED

    units, keep = case.shape[3], 1 - case.recurrent_dropout
    implementation: Any = case.implementation
    if case.tuning:
        changed: Any = dict(case.tuning)
        implementation = flax_srnn.Scan(tuning=dataclasses.replace(MEASURED, **changed))

    def layers(params: Any, x: Any, mask: Any, key: Any) -> Any:
        params, x = jax.tree.map(lambda a: a.astype(case.dtype), (params, x))
        dropout = None
        if keep < 1:
            dropout = jax.random.bernoulli(key, keep, (x.shape[0], units)) / jnp.asarray(keep, x.dtype)
        options: Any = {"activation": case.activation, "implementation": implementation, "time_major": case.time_major}
        for layer in params:
            _, x = flax_srnn.simple_rnn(
                layer, x, mask=mask, recurrent_dropout_mask=dropout, return_sequences=not case.last, **options
            )
        return x

    def cells(params: Any, x: Any, mask: Any, key: Any) -> Any:
        rnn = flax_srnn.RNN([flax_srnn.SimpleRNNCell(units) for _ in params], return_sequences=True)
        return rnn.apply({"params": {f"cells_{i}": cell for i, cell in enumerate(params)}}, x, mask=mask)

    def bidirectional(params: Any, x: Any, mask: Any, key: Any) -> Any:
        both = flax_srnn.Bidirectional(flax_srnn.SimpleRNN(units, return_sequences=True))
        return both.apply({"params": dict(zip(("forward_layer", "backward_layer"), params, strict=True))}, x, mask=mask)

    return {"cells": cells, "bidirectional": bidirectional}.get(case.network, layers)


def _keras(case: Case) -> Model:
    import keras

    if keras.backend.backend() != "jax":
        raise RuntimeError(f"Keras must run on its JAX backend here, got {keras.backend.backend()!r}")
    units, options = case.shape[3], {"activation": case.activation, "recurrent_dropout": case.recurrent_dropout}

    def layer() -> Any:
        return keras.layers.SimpleRNN(units, return_sequences=not case.last, **options)

    if case.network == "stack":
        network = keras.Sequential([layer() for _ in range(3)])
    elif case.network == "cells":
        cells = [keras.layers.SimpleRNNCell(units, **options) for _ in range(3)]
        network = keras.layers.RNN(cells, return_sequences=not case.last)
    elif case.network == "bidirectional":
        network = keras.layers.Bidirectional(layer())
    else:
        network = layer()
    network.build(tuple(case.shape[:3]))

    def model(params: Any, x: Any, mask: Any, key: Any) -> Any:
        weights = [layer[name] for layer in params for name in ("kernel", "recurrent_kernel", "bias")]
        seeds = [key] * len(network.non_trainable_variables)  # the state of the dropout generator, if there is one
        return network.stateless_call(weights, seeds, x, mask=mask, training=True)[0]

    return model


def _linen(case: Case) -> Model:
    from flax import linen

    # Flax looks at what its initializers would make, and that of the recurrent kernel is for float32 only.
    dtype: Any = {"dtype": case.dtype, "param_dtype": case.dtype}
    cell = linen.SimpleCell(case.shape[3], recurrent_kernel_init=linen.initializers.lecun_normal(), **dtype)
    rnn = linen.RNN(cell, time_major=case.time_major)

    def model(params: Any, x: Any, mask: Any, key: Any) -> Any:
        (p,) = params
        cell = {"i": {"kernel": p["kernel"], "bias": p["bias"]}, "h": {"kernel": p["recurrent_kernel"]}}
        return rnn.apply({"params": {"cell": cell}}, x)

    return _last(case, model)


def _nnx(case: Case) -> Model:
    import jax.numpy as jnp
    from flax import nnx

    _, _, features, units = case.shape
    split: Any = nnx.split  # its declared result has no fixed length
    graph, _, rest = split(nnx.RNN(nnx.SimpleCell(features, units, rngs=nnx.Rngs(0)), rngs=False), nnx.Param, ...)

    def model(params: Any, x: Any, mask: Any, key: Any) -> Any:
        (p,) = params
        from_input = {"kernel": nnx.Param(p["kernel"]), "bias": nnx.Param(p["bias"])}
        cell = {"dense_i": from_input, "dense_h": {"kernel": nnx.Param(p["recurrent_kernel"])}}
        return nnx.merge(graph, nnx.State({"cell": cell}), rest)(x, initial_carry=jnp.zeros((x.shape[0], units)))

    return _last(case, model)


def _haiku(case: Case) -> Model:
    import haiku as hk
    import jax.numpy as jnp

    units = case.shape[3]

    def network(x: Any) -> Any:
        # Haiku's VanillaRNN is relu only; this is the same core with tanh.
        from_input, from_state = hk.Linear(units, name="input"), hk.Linear(units, with_bias=False, name="state")

        def core(x: Any, h: Any) -> tuple[Any, Any]:
            h = jnp.tanh(from_input(x) + from_state(h))
            return h, h

        return hk.dynamic_unroll(core, x, jnp.zeros((x.shape[0], units)), time_major=False)[0]

    transformed: Any = hk.without_apply_rng(hk.transform(network))

    def model(params: Any, x: Any, mask: Any, key: Any) -> Any:
        (p,) = params
        return transformed.apply(
            {"input": {"w": p["kernel"], "b": p["bias"]}, "state": {"w": p["recurrent_kernel"]}}, x
        )

    return _last(case, model)


def _last(case: Case, model: Model) -> Model:
    return (lambda *arrays: model(*arrays)[:, -1]) if case.last else model


CONTESTANTS: Contestants = {
    OURS: _ours, "keras": _keras, "flax.linen": _linen, "flax.nnx": _nnx, "haiku": _haiku
}  # fmt: skip
"""This library and the peers, but for PyTorch, which has a process of its own (`process`)."""
