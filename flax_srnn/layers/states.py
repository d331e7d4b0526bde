"""The recorded states of stateful layers: the collection "carry" of a variable tree.

Every stateful layer keeps `variables["carry"][…path…]["states"]`, a tuple with the state of each of its cells. A checkpoint
that is restored without a target brings tuples back as lists (Orbax) or as dicts with the keys "0", "1", … (msgpack): these
are read as the tuples that they were, and what is returned has the form that was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from flax_srnn import validation

__all__ = ["COLLECTION", "NAME", "as_tuples", "in_form_of", "reset_states"]

COLLECTION, NAME = "carry", "states"


def reset_states(variables: Mapping[str, Any], states: Any = None) -> dict[str, Any]:
    """A variable tree in which every stateful layer's recorded states are set back, or set to `states`.

    Args:
      variables: of a layer or a whole model; it is not changed.
      states: None sets every layer back to its initial state: the learned one where the layer has one, else zeros. Or a
        mapping like `variables["carry"]`: same keys, same shapes; real and integer values are cast.

    Returns:
      The variables with the new collection "carry".

    Raises:
      TypeError: `variables` is no mapping.
      ValueError: there is no collection "carry" (the layers have not seen a batch, so its size is unknown), or `states` does
        not match it in count, shape or kind of number.

    Source: tf.keras 2.15 `RNN.reset_states`.

    >>> variables = {"carry": {"states": (jnp.ones((1, 2)),)}}
    >>> reset_states(variables)["carry"]["states"][0].tolist()
    [[0.0, 0.0]]
    >>> reset_states(variables, {"states": ([[3, 4]],)})["carry"]["states"][0].tolist()
    [[3.0, 4.0]]
    """
    if not isinstance(variables, Mapping):
        raise TypeError(
            "`variables` must be a mapping of collections (flax_srnn.nnx has its own function), got "
            f"{validation.describe(variables)}."
        )
    recorded = variables.get(COLLECTION)
    if not isinstance(recorded, Mapping | None):
        raise ValueError(f"`variables['carry']` must be a mapping of states, got {validation.describe(recorded)}.")
    if not recorded:
        raise ValueError(
            "`variables` has no collection 'carry', got the collections "
            f"{sorted(map(str, variables))}. If a RNN is stateful, it needs to know its batch size: initialise it, or apply it "
            "once with mutable=['carry'], and pass those variables."
        )
    new = _initial(recorded, variables.get("params", {})) if states is None else _given(recorded, states, ())
    return {**variables, COLLECTION: new}


def _initial(recorded: Any, params: Any) -> Any:
    """The recorded tree at its initial states; `params` is the parameter tree at the same place."""
    if isinstance(recorded, Mapping):
        inner = params if isinstance(params, Mapping) else {}
        if NAME in recorded and "initial_state" in inner:
            learned = meta.unbox(inner["initial_state"])
            fresh = jax.tree.map(lambda x: _in_every_row(learned, x), recorded[NAME])
            return {**_initial({k: v for k, v in recorded.items() if k != NAME}, inner), NAME: fresh}
        return {key: _initial(value, inner if key == NAME else inner.get(key, {})) for key, value in recorded.items()}
    return jax.tree.map(jnp.zeros_like, recorded)


def _in_every_row(learned: jax.Array, recorded: jax.Array) -> jax.Array:
    """(U,) as (*batch, U); (N, U) as (N, *batch, U) for the N copies of a layer under `nn.vmap`."""
    rows = jnp.expand_dims(learned, range(learned.ndim - 1, recorded.ndim - 1))
    return jnp.broadcast_to(rows, recorded.shape).astype(recorded.dtype)


def _given(recorded: Any, states: Any, path: tuple[str, ...]) -> Any:
    """`states` in the structure, shapes and dtypes of the recorded tree."""
    place = "/".join(path) or "the collection 'carry'"
    inside, entries = _entries(recorded), _entries(states)
    if inside is not None:
        if entries is None:
            raise ValueError(
                f"`states` must be a list or tuple of {len(inside)} at {place}, got {validation.describe(states)}."
            )
        if len(entries) != len(inside):
            raise ValueError(
                f"`states`: the layer expects {len(inside)} states at {place}, but it received {len(entries)}."
            )
        pairs = enumerate(zip(inside, entries, strict=True))
        return _like(recorded, [_given(r, s, (*path, str(i))) for i, (r, s) in pairs])
    if isinstance(recorded, Mapping):
        if not isinstance(states, Mapping) or set(states) != set(recorded):
            got = sorted(map(str, states)) if isinstance(states, Mapping) else validation.describe(states)
            raise ValueError(f"`states` must have the keys {sorted(recorded)} at {place}, got {got}.")
        return {key: _given(recorded[key], states[key], (*path, str(key))) for key in recorded}
    try:
        given = states if isinstance(states, jax.Array) else np.asarray(states)
    except ValueError as error:
        raise ValueError(f"`states` must hold arrays at {place}, got {validation.describe(states)}.") from error
    if not (jnp.issubdtype(given.dtype, jnp.floating) or jnp.issubdtype(given.dtype, jnp.integer)):
        raise ValueError(f"`states` must hold real numbers at {place}, got {validation.describe(given)}.")
    if given.shape != recorded.shape:
        raise ValueError(
            f"`states` must have the shape {tuple(recorded.shape)} at {place}, got {validation.describe(given)}."
        )
    return jnp.asarray(given, recorded.dtype)


def _entries(node: Any) -> list[Any] | None:
    """What a tuple holds, in order, whatever a checkpoint made of it; None for anything else."""
    if isinstance(node, Mapping):
        numbers = {str(key): key for key in node}
        in_order = [numbers.get(str(i)) for i in range(len(node))]
        return None if not node or None in in_order else [node[key] for key in in_order]
    return list(node) if isinstance(node, (list, tuple)) else None


def as_tuples(node: Any) -> Any:
    """A state with the tuples that it was recorded with."""
    inside = _entries(node)
    if inside is not None:
        inner = map(as_tuples, inside)
        return type(node)(*inner) if hasattr(node, "_fields") else tuple(inner)
    return {key: as_tuples(value) for key, value in node.items()} if isinstance(node, Mapping) else node


def in_form_of(form: Any, new: Any) -> Any:
    """The new state, made of tuples, in the form that the old one was given in: so it can be carried through `lax.scan`."""
    inside = _entries(form)
    if inside is not None:
        return _like(form, [in_form_of(old, value) for old, value in zip(inside, new, strict=True)])
    return {key: in_form_of(form[key], new[key]) for key in form} if isinstance(form, Mapping) else new


def _like(form: Any, entries: list[Any]) -> Any:
    """The entries, in order, as what `_entries` took apart."""
    if isinstance(form, Mapping):
        return {key: entries[int(key)] for key in form}
    return type(form)(*entries) if hasattr(form, "_fields") else type(form)(entries)
