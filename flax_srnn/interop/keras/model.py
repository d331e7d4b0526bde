"""Keras's models as Linen modules.

The mask goes from layer to layer as it goes in Keras, also where that is questionable: a layer that runs backwards passes it
on unreversed, and one that is given an initial state by name does not see it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_srnn import RNN, Bidirectional, SimpleRNN, validation
from flax_srnn.constraints import NonNeg
from flax_srnn.interop.gated import LSTMCell
from flax_srnn.interop.keras import weights
from flax_srnn.interop.keras.graph import Graph, Input, Ref, Slice
from flax_srnn.interop.keras.operations import Operation
from flax_srnn.interop.keras.shared import Masked
from flax_srnn.interop.keras.structure import Layer, slots
from flax_srnn.layers import options
from flax_srnn.linen import sown
from flax_srnn.linen.cells import listed

__all__ = ["MAX_UNROLLED_STEPS", "RECURRENT", "HoldingBidirectional", "Model", "Tensor", "TimeDistributed"]

MAX_UNROLLED_STEPS = 10_000
"""In the trial of a model, on the inputs that it declares."""
RECURRENT = (SimpleRNN, RNN, Bidirectional)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array on its way between layers, with the mask that goes with it."""

    x: Any
    mask: Any = None


class Model(nn.Module):
    """A graph of layers; the parameters of each stand under its Keras name.

    Attributes:
      layers: the layers, named.
      graph: which one is called on what.
      penalties: for each layer an ActivityRegularization of its outputs, or None.
      structure: where the arrays stand in Keras's files, with their regularizers and constraints; None inside another model.

    Call arguments:
      *inputs: each of the shape that the model declares, with any batch size unless a layer is stateful; one after the other, in
        a list, or in a mapping by name.
      mask: (B, T), True = use the step, as if the layer before had passed it on; for several inputs a list or a mapping.
      training: dropout is applied, and batch normalisation uses the batch: pass rngs={"dropout": key} and
        mutable=["batch_stats"] to `apply`.
      **named: inputs by name.

    The penalties of regularizers are sown in the collection "losses", which `regularization_loss` sums.

    Returns:
      What Keras's model returns: an array, or a list or a mapping of several.
    """

    layers: tuple[Any, ...]
    graph: Graph
    penalties: tuple[Any, ...]
    structure: Layer | None = None

    preserve_adopted_names = True  # Flax would call them layers_0, layers_1, …

    def __repr__(self) -> str:
        """Its layers; the whole tree of options is hundreds of lines."""
        return f"{type(self).__name__}({', '.join(f'{layer.name}: {type(layer).__name__}' for layer in self.layers)})"

    def __call__(self, *inputs: Any, mask: Any = None, training: bool = False, **named: Any) -> Any:
        validation.flag("training", training)
        given = _in_order("inputs", self.graph, inputs, named)
        masks = [None] * len(given)
        if mask is not None:
            masks = _in_order("mask", self.graph, mask if isinstance(mask, (list, tuple)) else (mask,), {})
        tensors = [_checked(*each) for each in zip(self.graph.inputs, given, masks, strict=True)]
        outputs = [tensor.x for tensor in self.run(tensors, training)]
        self._sow_penalties()
        tree = self.graph.output_tree
        returned = tuple(outputs) if tree is None else jax.tree.unflatten(tree, outputs)
        return returned[0] if isinstance(returned, (list, tuple)) and len(returned) == 1 else returned

    def run(self, inputs: Sequence[Tensor], training: bool) -> list[Tensor]:
        """The outputs for checked inputs."""
        values = [[tensor] for tensor in inputs]

        def at(leaf: Any) -> Any:
            if isinstance(leaf, Slice):
                return slice(leaf.start, leaf.stop, leaf.step)
            if not isinstance(leaf, Ref):
                return leaf
            outputs = values[leaf.node]
            if leaf.output is None:
                return outputs if len(outputs) > 1 else outputs[0]
            return outputs[leaf.output]

        for node in self.graph.nodes:
            args, kwargs = jax.tree.unflatten(node.tree, map(at, node.leaves))
            outputs = _call(self.layers[node.layer], args, kwargs, training)
            if (penalty := self.penalties[node.layer]) is not None:
                for tensor in outputs:
                    penalty.step(tensor.x, None, training)
            values.append(outputs)
        return [tensor for ref in self.graph.outputs for tensor in _several(at(ref))]

    def _sow_penalties(self) -> None:
        """Those on weights of layers that do not sow them."""
        if self.structure is None or self.is_initializing() or not self.is_mutable_collection(sown.COLLECTION):
            return
        params = weights.flat(self.variables.get("params", {}))
        penalties = [
            slot.array.regularizer(_joined(weights.leaves(slot, params), params))
            for slot in slots(self.structure)
            if slot.array.regularizer is not None and slot.kind != "SimpleRNNCell"
        ]
        if penalties:
            sown.sow(self, {"kernel_regularizer": options.total(penalties)})

    def constrained(self) -> dict[tuple[str, ...], tuple[Any, tuple[int, ...]]]:
        """The constraints of layers that do not tell them, each with the shape of its parameter, by places in the parameters.

        Raises:
          ValueError: one takes the gates of a cell together, which are apart here.
        """
        params = weights.flat(self.variables.get("params", {}))
        found: dict[tuple[str, ...], tuple[Any, tuple[int, ...]]] = {}
        for slot in () if self.structure is None else slots(self.structure):
            constraint = slot.array.constraint
            if constraint is None or slot.kind == "SimpleRNNCell":
                continue
            alone = isinstance(constraint, NonNeg) or (
                slot.array.name != "bias" and getattr(constraint, "axis", None) == 0
            )
            if slot.kind in weights.GATED and not alone:
                raise ValueError(
                    f"the constraint {constraint!r} of {'/'.join(slot.path)!r} takes all gates of a {slot.kind} together, which "
                    "are parameters by themselves here: only NonNeg, and norms of a kernel over axis 0, can be kept."
                )
            found |= {leaf: (constraint, params[leaf].shape) for leaf in weights.leaves(slot, params)}
        return found


class TimeDistributed(nn.Module):
    """Another layer at every step of every example, as if each were an example; its variables stand at this layer's place.

    So the batch statistics of a normalisation inside are those of all steps.
    """

    layer: Any

    def step(self, x: jax.Array, mask: Any, training: bool) -> Masked:
        if x.ndim < 3:
            raise ValueError(f"TimeDistributed needs inputs of rank 3 or more, got {validation.describe(x)}.")
        each = Tensor(_folded(x), None if mask is None else _folded(mask))
        # A model is cloned with its layers: Flax has them at a place of their own already.
        scope: Any = self.scope
        inner = self.layer.clone(parent=scope.rewound(), _deep_clone=True)
        output, *others = _call(inner, [each], {}, training)
        if others:
            raise ValueError("TimeDistributed needs a layer with one output.")
        return output.x.reshape(*x.shape[:2], *output.x.shape[1:]), mask


def _folded(x: jax.Array) -> jax.Array:
    """(B, T, …) -> (B · T, …)."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


class HoldingBidirectional(Bidirectional):
    """That of Keras before it moved into TensorFlow, which held outputs at masked steps."""

    holds_masked = True


def _joined(leaves: Sequence[Any], params: Mapping[Any, Any]) -> jax.Array:
    """The gates of a kernel side by side, as the regularizer saw them; their order does not matter to any."""
    return params[leaves[0]] if len(leaves) == 1 else jnp.concatenate([params[leaf] for leaf in leaves], -1)


def _several(tensors: Any) -> list[Tensor]:
    return list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]


# Inputs


def _in_order(what: str, graph: Graph, given: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    """What was given for each input: one after the other, in a list, or by name."""
    names = _names(graph)
    if len(given) == 1 and not named:
        (alone,) = given
        if isinstance(alone, Mapping):
            given, named = [], alone
        elif isinstance(alone, (list, tuple)) and (len(names) > 1 or graph.input_tree.num_nodes > 1):
            given = alone
    if given and named:
        raise TypeError(f"`{what}` must be given by position or by name, got {len(given)} and {sorted(named)}.")
    if named:
        keys = [next((key for key in keys if key in named), None) for keys in names]
        if None in keys or len(named) != len(keys):
            raise ValueError(f"`{what}` must be {' and '.join(_first(names))}, got {', '.join(map(repr, named))}.")
        return [named[key] for key in keys if key is not None]
    if len(given) != len(names):
        raise ValueError(
            f"`{what}` must be {len(names)}, one for each of {', '.join(_first(names))}, got {len(given)}."
        )
    return list(given)


def _first(names: Sequence[Sequence[str]]) -> list[str]:
    return [repr(each[0]) for each in names]


def _names(graph: Graph) -> list[list[str]]:
    """What each input is called: the key under which the model lists it, if there is one, and its layer's name."""
    tree = jax.tree.unflatten(graph.input_tree, graph.inputs)
    keys = sorted(tree) if isinstance(tree, Mapping) else []
    return [[*keys[i : i + 1], each.name] for i, each in enumerate(graph.inputs)]


def _checked(declared: Input, value: Any, mask: Any) -> Tensor:
    x = validation.array("inputs", value)
    shape = declared.shape or x.shape
    if len(shape) != x.ndim or any(d not in (None, n) for d, n in zip(shape[1:], x.shape[1:], strict=True)):
        raise ValueError(
            f"`inputs` must have the shape {shape} (None: any size) for {declared.name!r}, got {validation.describe(x)}."
        )
    if mask is None:
        return Tensor(x)
    if x.ndim < 2:
        raise ValueError(f"`mask` is for inputs over time, and {declared.name!r} is {validation.describe(x)}.")
    return Tensor(x, validation.step_flags("mask", mask, x.shape[:1], x.shape[1]))


# Calls of layers


def _call(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any], training: bool) -> list[Tensor]:
    """The outputs of a layer."""
    if isinstance(layer, Operation):
        xs, options = jax.tree.map(lambda each: each.x if isinstance(each, Tensor) else each, (args, dict(kwargs)))
        return [Tensor(layer.apply_to(xs, options))]
    named = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    unknown = [name for name, value in named.items() if name not in _ARGUMENTS and value is not None]
    if unknown or len(args) > len(_ARGUMENTS):
        raise ValueError(f"{layer.name!r} is called with {unknown or len(args)}, which cannot be represented.")
    inputs, mask = named["inputs"], named.get("mask")
    if (always := named.get("training")) is not None:
        validation.flag("training", always)
        training = always
    if isinstance(layer, Model):
        tensors = _in_order("inputs", layer.graph, [inputs], {})
        masks = [None] * len(tensors) if mask is None else _in_order("mask", layer.graph, [mask], {})
        given = [t if m is None else Tensor(t.x, m.x) for t, m in zip(tensors, masks, strict=True)]
        return layer.run(given, training)
    if isinstance(layer, RECURRENT):
        return _recur(layer, inputs, named.get("initial_state"), mask, training)
    x, masks = jax.tree.map(lambda each: each.x, inputs), jax.tree.map(lambda each: each.mask, inputs)
    y, mask = layer.step(x, masks if mask is None else mask.x, training)
    return [Tensor(y, mask)]


_ARGUMENTS = ("inputs", "initial_state", "mask", "training")


def _recur(layer: Any, inputs: Any, initial_state: Any, mask: Any, training: bool) -> list[Tensor]:
    """A recurrent layer, whose states are arrays one after the other in Keras, those of a cell perhaps in a list of their own.

    Keras 2 lists the initial states behind the inputs, Keras 3 gives them by name, and hides the inputs' mask from the layer if
    it does.
    """
    tensor, *states = _several(inputs)
    implicit = tensor.mask if initial_state is None else None
    states = jax.tree.leaves(states if initial_state is None else initial_state)
    used = implicit if mask is None else mask.x
    if tensor.x.ndim != 3:  # ours would take the batch for time
        raise ValueError(f"{layer.name!r} needs inputs of the shape (B, T, F), got {validation.describe(tensor.x)}.")
    one = layer.layer if isinstance(layer, Bidirectional) else layer
    if one.unroll and layer.is_initializing() and tensor.x.shape[1] > MAX_UNROLLED_STEPS:
        raise ValueError(f"`unroll` over {tensor.x.shape[1]} steps; at most {MAX_UNROLLED_STEPS} are unrolled.")
    given = _in_cells(layer, [state.x for state in states]) if states else None
    returned = layer(tensor.x, initial_state=given, mask=used, training=training)
    passed = (tensor.mask if mask is None else mask.x) if one.return_sequences else None
    outputs = 2 if isinstance(layer, Bidirectional) and layer.merge_mode is None else 1
    returned = list(returned) if isinstance(returned, tuple) else [returned]
    flat = [part for state in returned[outputs:] for part in (state[::-1] if isinstance(state, tuple) else (state,))]
    return [Tensor(output, passed) for output in returned[:outputs]] + [Tensor(state) for state in flat]


def _in_cells(layer: Any, states: Sequence[Any]) -> list[Any]:
    """One state a cell, in the form that the cell has it: Keras's h and c are one after the other, Flax's are (c, h)."""
    cells = _cells(layer)
    counts = [2 if isinstance(cell, LSTMCell) else 1 for cell in cells]
    if sum(counts) != len(states):
        raise ValueError(f"{layer.name!r} needs {sum(counts)} arrays as its initial state, got {len(states)}.")
    rest = iter(states)
    parts = [[next(rest) for _ in range(count)] for count in counts]
    return [tuple(part[::-1]) if len(part) > 1 else part[0] for part in parts]


def _cells(layer: Any) -> list[Any]:
    if isinstance(layer, Bidirectional):
        return _cells(layer.layer) + _cells(layer.backward_layer or layer.layer)
    return list(listed(layer.cell)) if isinstance(layer, RNN) else [layer]
