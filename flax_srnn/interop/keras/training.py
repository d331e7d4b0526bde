"""A loaded model in training: which of its parameters Keras would train, and their constraints.

The penalties of regularizers are sown by the model itself, for `flax_srnn.regularization_loss`; its constraints are found by
`flax_srnn.collect_constraints`, as those of this library's own layers are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax_srnn import validation
from flax_srnn.interop.keras import structure, weights
from flax_srnn.interop.keras.model import Model

__all__ = ["labels"]


def labels(module: Model, params: Mapping[str, Any]) -> dict[str, Any]:
    """For each parameter of a loaded model "trained", or "frozen" where Keras would leave it as it is.

    Frozen are the layers with `trainable=False`, alone or in a frozen model, and the biases that a cell of Flax's has and
    Keras's, made with `use_bias=False`, has not: these are 0.

    Args:
      module: what `load_model` returned.
      params: `variables["params"]` of it, or a tree of the same form.

    Returns:
      A tree like `params`, for
      `optax.multi_transform({"trained": optax.adam(1e-3), "frozen": optax.set_to_zero()}, labels(module, params))`.

    Raises:
      TypeError: `module` is no module that `load_model` returned.
      ValueError: `params` are not the module's.

    Source: Keras `Layer.trainable`.

    >>> labels("model", {})
    Traceback (most recent call last):
    TypeError: `module` must be what `load_model` returned, got 'model' (str).
    """
    if not isinstance(module, Model) or module.structure is None:
        raise TypeError(f"`module` must be what `load_model` returned, got {validation.describe(module)}.")
    flat = weights.flat(params)
    given: dict[structure.Path, str] = dict.fromkeys(flat, "frozen")
    for slot in structure.slots(module.structure):
        own = weights.leaves(slot, flat) if slot.array.trained else []
        if slot.array.trained and not (own and set(own) <= flat.keys()):
            raise ValueError(f"`params` lacks {'/'.join(slot.path)!r}: they must be those of the model.")
        given |= dict.fromkeys(own, "trained" if slot.trainable else "frozen")
    return weights.nested(given)
