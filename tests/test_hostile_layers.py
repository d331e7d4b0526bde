"""Arrays and names of layers from strangers, and files of old Keras: a result or a ValueError, soon, and nothing shown that
steers a terminal.
"""

import json
import re
import struct

import h5py
import numpy as np
import pytest
from strangers import (
    at,
    call,
    functional,
    hostile,
    node,
    one,
    refused,
    relu,
    shown,
    source,
    tried,
    write_model,
    y,
)

from flax_srnn.__main__ import main
from flax_srnn.interop.keras import build, describe, description, load_model, load_weights

pytestmark = pytest.mark.usefixtures("nothing_is_written_and_nothing_hangs")
X = at("x")

# Arrays

KERNEL, BIAS = np.array([[1.0, 2], [3, 4], [5, 6]], "f4"), np.array([7.0, 8], "f4")
DENSE = {"layers/dense/vars/0": KERNEL, "layers/dense/vars/1": BIAS}


def gated(kind, *shapes, fill=1.0, dtype="f4", **config):
    arrays = {f"layers/{kind.lower()}/cell/vars/{i}": np.full(shape, fill, dtype) for i, shape in enumerate(shapes)}
    return y(kind, **{"units": 2, **config}), arrays


GATES = {
    "LSTM of three gates": (gated("LSTM", (3, 6), (2, 6), (6,)), "shape"),
    "LSTM of odd width": (gated("LSTM", (3, 7), (2, 7), (7,)), "shape"),
    "LSTM of two sizes": (gated("LSTM", (3, 8), (3, 8), (8,)), "shape"),
    "LSTM with a bias of rank 2": (gated("LSTM", (3, 8), (2, 8), (2, 8)), "shape"),
    "LSTM of other units": (gated("LSTM", (3, 8), (2, 8), (8,), units=3), "shape"),
    "LSTM of huge units": (gated("LSTM", (3, 8), (2, 8), (8,), units=2**31), "units"),
    "LSTM of nothing": (gated("LSTM", (3, 0), (0, 0), (0,)), "shape"),
    "LSTM of nothing, huge": (gated("LSTM", (0, 2**40), (0, 2**40), (0,)), "shape"),
    "LSTM of integers": (gated("LSTM", (3, 8), (2, 8), (8,), dtype="i4"), "floats"),
    "GRU of four gates": (gated("GRU", (3, 8), (2, 8), (2, 8), reset_after=True), "shape"),
    "GRU with a bias of five rows": (gated("GRU", (3, 6), (2, 6), (5, 6), reset_after=True), "bias"),
    "GRU with a bias of no rows": (gated("GRU", (3, 6), (2, 6), (0, 6), reset_after=True), "bias"),
    "GRU with a bias too many": (gated("GRU", (3, 6), (2, 6), (2, 6)), "bias"),
    "GRU with a bias of rank 3": (gated("GRU", (3, 6), (2, 6), (1, 2, 6), reset_after=True), "bias"),
    "GRU of NaN": (gated("GRU", (3, 6), (2, 6), (2, 6), reset_after=True, fill=np.nan), None),
    "LSTM of infinities": (gated("LSTM", (3, 8), (2, 8), (8,), fill=-np.inf), None),
    "GRU beyond float32": (gated("GRU", (3, 6), (2, 6), (2, 6), reset_after=True, fill=1e308, dtype="f8"), None),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if match else pytest.mark.slow) for name, (_, match) in GATES.items()]
)
def test_hostile_gates(name, inside, capsys):
    (config, arrays), match = GATES[name]
    hostile(inside / "a.keras", config, match, capsys, arrays)


def test_numbers_beyond_float32_are_infinite(inside):
    write_model(inside / "a.keras", y("Mine"), {"layers/mine/vars/0": np.array([1e308, 1.0])})
    np.testing.assert_array_equal(load_weights(inside / "a.keras")["y"]["vars/0"], [np.inf, 1])


@pytest.mark.slow
def test_layers_that_are_not_known(inside, capsys):
    path = inside / "a.keras"
    write_model(path, y("Mine"), {"layers/mine/vars/0": np.array([b"text"])})
    for load in (load_weights, describe):
        refused(path, "string, not numbers", load)
    write_model(path, y("Mine"), {f"layers/mine/vars/{i}": np.ones(1, "f4") for i in range(1000)})
    assert len(tried(path, load_weights)["y"]) == 1000
    assert len(tried(path, describe)[1].arrays) == 1000
    assert max(map(len, shown(path, capsys).splitlines())) < 500
    refused(path, "'Mine' cannot be represented", load_model)


def test_an_empty_array_of_impossible_size(inside):
    with h5py.File(inside / "a.h5", "w") as file:
        file["layers/mine/vars/0"] = np.zeros((0, 2**40), "f4")
    data = (inside / "a.h5").read_bytes()
    for size in (2**62, 2**63, 2**64 - 1):
        (inside / "a.h5").write_bytes(data.replace(struct.pack("<Q", 2**40), struct.pack("<Q", size)))
        refused(inside / "a.h5", "")


@pytest.mark.slow
@pytest.mark.parametrize("count", [12_000])
def test_arrays_by_the_thousand(count, inside):
    path = inside / "a.h5"
    for place in ("layers/mine/vars/{}", "layers/mine_{}/vars/0", "layers/simple_rnn/cell/cells/c_{}/vars/0"):
        with h5py.File(path, "w") as file:
            for i in range(count if "mine/" in place else count // 5):
                file[place.format(i)] = np.ones(1, "f4")
        tried(path, load_weights)
        tried(path, describe)
        path.unlink()


# Names

NAMES = [
    "name", "parent", "layers", "graph", "scope", "apply", "setup", "penalties", "structure", "run", "init", "variables",
    "_state", "__class__", "__call__", "layers_0", "batch_stats", "carry", "a/b", "/", ".", "..", "x y", "\x1b[31m", "\n", "\0",
    "\u202e", "0", "Ω", "n" * 10**5, "params", "\ud800", "",
]  # fmt: skip
REFUSED = {"params": "", "\ud800": "", "": "name"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(each, marks=() if each in ("name", "\x1b[31m") else pytest.mark.slow, id=repr(each)[:20])
        for each in NAMES
    ],
)
def test_names_of_layers(name, inside, capsys):
    """A layer of any name is the layer that it is, or refused; and what is shown steers no terminal."""
    path, x = inside / "a.keras", np.array([[[1.0, 2, 3]] * 4])
    dense = node("Dense", name, call(at("in")), units=2)
    first = source("in")
    for config in (
        functional(first, dense, inputs=["in", 0, 0], outputs=[name, 0, 0]),
        {"class_name": "Sequential", "config": {"name": "model", "layers": [first, dense]}},
    ):
        write_model(path, config, DENSE)
        shown(path, capsys)
        if name in REFUSED:
            refused(path, REFUSED[name], load_model)
            continue
        module, variables = load_model(path)
        assert list(variables["params"]) == [name]
        np.testing.assert_allclose(module.apply(variables, x), x @ KERNEL + BIAS)
        assert list(load_weights(path)) == [name]
        assert [each.name for each in describe(path)] == ["in", name]


def test_names_that_clash(inside):
    path, x = inside / "a.keras", np.ones((1, 4, 3))
    write_model(path, one(relu("y", call(X)), relu("y", call(X))))
    for load in (load_model, load_weights, describe):
        refused(path, "name 'y'", load)
    second = node("Dense", "y_activity", call(at("y")), units=2)
    first = node("Dense", "y", call(X), units=2, activity_regularizer="l2")
    write_model(
        path,
        one(first, second, outputs=["y_activity", 0, 0]),
        DENSE | {"layers/dense_1/vars/0": np.eye(2), "layers/dense_1/vars/1": np.zeros(2)},
    )
    result = tried(path, load_model)  # the penalty on y has that name too
    if not isinstance(result, ValueError):
        module, variables = result
        np.testing.assert_allclose(module.apply(variables, x), x @ KERNEL + BIAS)


def test_no_class_of_a_file_steers_a_terminal(inside, capsys):
    red = "\x1b[31m\r"
    write_model(
        inside / "a.keras", one(node(f"Mine{red}", red, call(X), **{red: red}), outputs=[[red, 0, 0]]), version=red
    )
    assert "\\x1b[31m" in shown(inside / "a.keras", capsys)
    write_model(inside / "a.keras", {"class_name": red, "config": {"layers": [red]}})
    shown(inside / "a.keras", capsys)
    write_model(inside / "a.keras", one(node("Flatten", "y", call(X), **{red: 1})))
    assert "\\x1b[31m" in shown(inside / "a.keras", capsys) + str(tried(inside / "a.keras", load_model))
    assert main(["convert", str(inside / "a.keras"), str(inside / "out")]) == 2
    said = capsys.readouterr().err
    assert "\\x1b[31m" in said
    assert said.rstrip("\n").isprintable()


# Files of old Keras, in which a Sequential model is a list


def old(path, config, *names):
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array([name.encode() for name in names], "S20")
        for name in names:
            group.create_group(name).attrs["weight_names"] = np.array([], "S1")


def listed(*layers):
    return {"class_name": "Sequential", "config": list(layers)}


RELU = {"class_name": "Activation", "config": {"name": "a", "activation": "relu", "batch_input_shape": [None, 3]}}
UNNAMED = {"class_name": "Activation", "config": {"activation": "relu", "batch_input_shape": [None, 3]}}
OLD = {
    "as it was": (listed(RELU), None),
    "list in a list": (listed([RELU]), "configuration of a layer"),
    "text": (listed("Dense"), "configuration of a layer"),
    "null": (listed(None), "configuration of a layer"),
    "nothing": (listed(), "no layers"),
    "models in models": (listed(listed(listed(RELU))), "before it was built"),
    "no names": (listed(UNNAMED), "name None"),
    "name that is a list": (listed({**UNNAMED, "config": {**UNNAMED["config"], "name": ["a"]}}), "name"),
    "names that are mappings": (listed(listed(RELU), {**UNNAMED, "config": {"name": {"a": 1}}}), "name"),
    "configuration of text": ({"class_name": "Sequential", "config": "a"}, "configuration of a layer"),
    "functional": ({"class_name": "Model", "config": [RELU]}, ""),
    "cells with odd names": (
        listed({"class_name": "RNN", "config": {"name": "a", "cell": {"class_name": "StackedRNNCells", "config": {
            "cells": [{"class_name": "SimpleRNNCell", "config": {"units": 2, "name": {"a": [i]}}} for i in range(3)]}}}}),
        "name",
    ),
    "models without end": (listed(*[listed()] * 50_000), "at most"),
    "cells without end": (
        listed({"class_name": "RNN", "config": {"name": "a", "cell": {"class_name": "StackedRNNCells", "config": {
            "cells": [{"class_name": "SimpleRNNCell", "config": {"name": str(i)}} for i in range(50_000)]}}}}),
        "at most",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(each, marks=pytest.mark.slow if "end" in each else ()) for each in OLD])
def test_hostile_lists_of_layers(name, inside, capsys):
    config, match = OLD[name]
    path = inside / "a.h5"
    old(path, config, "a")
    for load in (load_weights, describe):
        tried(path, load)
    result = tried(path, load_model)
    assert match is None or re.search(match, str(result)), result
    assert isinstance(result, ValueError) == (match is not None)
    shown(path, capsys)


# Limits


def test_layers_that_are_described_are_limited(inside, monkeypatch):
    write_model(inside / "a.keras", one(relu("a"), relu("y", call(X))))
    assert len(describe(inside / "a.keras")) == 3
    monkeypatch.setattr(description, "MAX_DESCRIBED", 2)
    refused(inside / "a.keras", "more than 2 layers", describe)


def test_states_are_limited(inside, monkeypatch):
    arrays = {
        f"layers/simple_rnn/cell/vars/{i}": np.ones(shape, "f4") for i, shape in enumerate([(3, 2), (2, 2), (2,)])
    }
    config = functional(source(shape=(5, 4, 3)), node("SimpleRNN", "y", call(X), units=2, stateful=True))
    write_model(inside / "a.keras", config, arrays)
    load_model(inside / "a.keras")
    monkeypatch.setattr(build, "MAX_STATE_ELEMENTS", 9)
    refused(inside / "a.keras", "10 elements; at most 9", load_model)
