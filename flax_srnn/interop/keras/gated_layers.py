"""Keras's LSTM and GRU, from their configurations: the cells of `flax_srnn.interop.gated`, driven by this library's RNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax_srnn import RNN
from flax_srnn.interop.gated import GRUCell, LSTMCell
from flax_srnn.interop.keras.arguments import Arguments

__all__ = ["READERS"]

_FLAGS = (
    "return_sequences",
    "return_state",
    "go_backwards",
    "stateful",
    "unroll",
    "zero_output_for_mask",
    "time_major",
)
# Where biases begin, and what a kernel is that computes the same.
_ELSEWHERE = ("unit_forget_bias", "use_bias", "use_cudnn")
_CELLS: dict[str, Any] = {"LSTM": LSTMCell, "GRU": GRUCell}


def _layer(kind: str, given: Mapping[str, Any], keras_2: bool) -> RNN:
    arguments = Arguments(kind, given, keras_2)
    options: dict[str, Any] = {key: arguments.flag(key, False) for key in _FLAGS}
    penalty = arguments.take("activity_regularizer")
    return RNN(_read(kind, arguments), activity_regularizer=penalty, name=arguments.common["name"], **options)


def _cell(kind: str, given: Mapping[str, Any], keras_2: bool) -> Any:
    return _read(kind.removesuffix("Cell"), Arguments(kind, given, keras_2))


def _read(kind: str, arguments: Arguments) -> Any:
    for key in _ELSEWHERE:
        arguments.take(key)
    dropped = {key: arguments.number(key, 0.0, at_least=0, at_most=1) for key in ("dropout", "recurrent_dropout")}
    options = dropped | {key: value for key, value in arguments.common.items() if key != "name"}
    options["mask_per_gate"] = arguments.take("implementation", 2) != 2 or dropped["recurrent_dropout"] > 0
    if kind == "GRU":
        options["reset_after"] = arguments.flag("reset_after", False)
    cell = _CELLS[kind](
        arguments.size("units"),
        activation=arguments.activation(),
        recurrent_activation=arguments.activation("recurrent_activation"),
        **options,
    )
    arguments.expect_nothing_left()
    return cell


READERS = {"LSTM": _layer, "GRU": _layer, "LSTMCell": _cell, "GRUCell": _cell}
"""By class, what reads it: see `config.layer_from`."""
