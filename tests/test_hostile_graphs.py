"""Graphs from strangers: whatever a configuration asks for, reading it ends in a result or a ValueError, soon.

Hand-made attacks on functional models; `test_hostile_files.py` has those on files, archives and Sequential models,
`test_hostile_layers.py` those on arrays and names.
"""

import itertools

import numpy as np
import pytest
from strangers import at, call, functional, hostile, node, one, operation, relu, source, write_model, y

from flax_srnn.interop.keras import build, graph, load_model

pytestmark = pytest.mark.usefixtures("nothing_is_written_and_nothing_hangs")
LIMIT = f"at most {graph.MAX_NODES}"


def op(kind, *args, **config):
    return one(operation(kind, "y", call(*(args or (at("x"),))), **config))


def named(count):
    """Pairs of names from x to y: of a layer before, and of the one that is called on it."""
    return itertools.pairwise(["x", *(f"a{i}" for i in range(count - 1)), "y"])


def expanded(count):
    return one(*(operation("ExpandDims", new, call(at(old)), axis=1) for old, new in named(count)))


def doubled(count, axis):
    """The result of each concatenation twice into the next."""
    return one(*(operation("Concatenate", new, call([at(old), at(old)]), axis=axis) for old, new in named(count)))


def nested(depth, times):
    """Models in models, each called several times by the one around it."""
    inner = relu("y", call(at("x")))
    for level in range(depth):
        its = functional(source(), inner, name="y")
        names = ["x", *(["y"] * times)]
        calls = [call(at(name, max(i - 1, 0))) for i, name in enumerate(names[:-1])]
        inner = {**its, "name": "y", "inbound_nodes": calls}
        its["config"]["output_layers"] = [["y", 0 if level == 0 else times, 0]]
    return one(inner, outputs=[["y", times, 0]])


def deep(times):
    value = at("x")
    for _ in range(times):
        value = [value]
    return value


def keras_2(*nodes, **ends):
    return one({**relu("y"), "inbound_nodes": list(nodes)}, **ends)


def piece(start=None, stop=None, step=None):
    return {"class_name": "__slice__", "config": {"start": start, "stop": stop, "step": step}}


X = at("x")
HUGE = 2**31 - 1
GRAPHS = {
    "cycle": (lambda: one(relu("y", call(at("a"))), relu("a", call(at("y")))), "a cycle"),
    "loop": (lambda: one(relu("y", call(at("y")))), "a cycle"),
    "loop of calls": (lambda: one(relu("y", call(at("y", 1)), call(at("y", 0)))), "a cycle"),
    "long cycle": (
        lambda: one(*(relu(f"a{i}", call(at(f"a{(i + 1) % 250}"))) for i in range(250)), relu("y", call(X))),
        "a cycle",
    ),
    "unknown layer": (lambda: one(relu("y", call(at("z")))), "nothing computes it"),
    "unknown call": (lambda: one(relu("y", call(at("x", 1)))), "nothing computes it"),
    "unknown output": (lambda: one(relu("y", call(at("x", 0, 1)))), "cannot be applied|nothing computes"),
    "negative call": (lambda: one(relu("y", call(at("x", -1)))), "number of a call"),
    "negative output": (lambda: one(relu("y", call(at("x", 0, -1)))), "number of a call"),
    "huge output": (lambda: one(relu("y", call(at("x", 0, 10**30)))), "number of a call"),
    "half a call": (lambda: one(relu("y", call(at("x", 0.5)))), "number of a call"),
    "call of text": (lambda: one(relu("y", call(at("x", "0")))), "number of a call"),
    "call that is true": (lambda: one(relu("y", call(at("x", False)))), "number of a call"),
    "layer that is a list": (lambda: one(relu("y", call(at(["x"])))), "number of a call"),
    "no history": (lambda: one(relu("y", call({"class_name": "__keras_tensor__", "config": {}}))), "number of a call"),
    "class of an argument": (lambda: one(relu("y", call(X, {"class_name": "os.system", "config": {}}))), "os.system"),
    "class that is a list": (lambda: one(relu("y", call({"class_name": [], "config": {}}))), "class"),
    "calls by the hundred thousand": (lambda: one(relu("y", *([call(X)] * 100_000))), "at most"),
    "calls together": (lambda: one(*(relu(f"a{i}", *([call(X)] * 600)) for i in range(6))), "at most"),
    "arguments by the hundred thousand": (lambda: y("Add", [X] * 200_000), "at most"),
    "arguments in the old form": (lambda: keras_2([["x", 0, 0, {}]] * 500_000), "at most"),
    "layers by the hundred thousand": (
        lambda: one(*(relu(f"a{i}") for i in range(100_000)), relu("y", call(X))), "at most"
    ),
    "operations by the hundred thousand": (
        lambda: one(*(operation("Negative", f"a{i}") for i in range(100_000)), relu("y", call(X))), "at most"
    ),
    "outputs by the million": (lambda: one(relu("y", call(X)), outputs=[["y", 0, 0]] * 10**6), "at most"),
    "inputs by the million": (lambda: one(relu("y", call(X)), inputs=[["x", 0, 0]] * 10**6), "at most|each once"),
    "no outputs": (lambda: one(relu("y", call(X)), outputs=[]), "output_layers"),
    "no inputs": (lambda: one(relu("y", call(X)), inputs=[]), "input_layers"),
    "null outputs": (lambda: one(relu("y", call(X)), outputs=None), "number of a call"),
    "outputs of text": (lambda: one(relu("y", call(X)), outputs="y"), "number of a call"),
    "outputs of a number": (lambda: one(relu("y", call(X)), outputs=3), "number of a call"),
    "outputs of nothing": (lambda: one(relu("y", call(X)), outputs={"a": []}), "output_layers"),
    "uncomputed output": (lambda: one(relu("y", call(X)), outputs=[["z", 0, 0]]), "nothing computes it"),
    "output that is not there": (lambda: one(relu("y", call(X)), outputs=[["y", 0, 7]]), "cannot be applied"),
    "same input twice": (lambda: one(relu("y", call(X)), inputs=[["x", 0, 0]] * 2), "each once"),
    "input that is a layer": (lambda: one(relu("y", call(X)), inputs=[["y", 0, 0]]), "InputLayers"),
    "input without a name": (
        lambda: one(relu("y", call(at("z"))), {"class_name": "InputLayer", "config": {}}), "name"
    ),
    "InputLayer that is no input": (lambda: one(source("z"), relu("y", call(at("z")))), "nothing computes it"),
    "InputLayer with a call": (
        lambda: one({**source("z"), "inbound_nodes": [call(X)]}, relu("y", call(at("z")))), "computes nothing"
    ),
    "layers that are no list": (lambda: {"class_name": "Functional", "config": {"layers": {"a": 1}}}, "'layers'"),
    "layers of text": (lambda: one("Dense"), "configuration of a layer"),
    "layers of lists": (lambda: one([["Dense"]]), "configuration of a layer"),
    "no ends": (lambda: {"class_name": "Functional", "config": {"layers": [source()]}}, ""),
    "only inputs": (lambda: one(outputs=[["x", 0, 0]]), "no layers"),
    "calls that are null": (lambda: one({**relu("y"), "inbound_nodes": None}), "must be a list"),
    "calls of text": (lambda: one({**relu("y"), "inbound_nodes": ["x"]}), "must be a list"),
    "calls that are a mapping": (lambda: one({**relu("y"), "inbound_nodes": {"args": []}}), "must be a list"),
    "call of nothing": (lambda: one(relu("y", call())), "'args'"),
    "call without results": (lambda: one(relu("y", call(3))), ""),
    "call on text": (lambda: one(relu("y", call("x"))), ""),
    "arguments of text": (lambda: one(relu("y", {"args": "x", "kwargs": {}})), "'args'"),
    "keywords that are a list": (lambda: one(relu("y", {"args": [X], "kwargs": [1]})), "'kwargs'"),
    "unknown keyword": (lambda: one(relu("y", call(X, surprise=3))), "surprise"),
    "unknown keyword of an operation": (lambda: one(operation("Add", "y", call(X, X, out=3))), ""),
    "keyword for inputs": (lambda: one(relu("y", call(X, inputs=3))), ""),
    "deep arguments": (lambda: one(relu("y", call(deep(80)))), ""),
    "very deep arguments": (lambda: one(relu("y", call(deep(200)))), "deep"),
    "mask of text": (lambda: one(node("SimpleRNN", "y", call(X, mask="x"), units=2)), ""),
    "mask of rank 3": (lambda: one(relu("a", call(X, mask=X)), node("SimpleRNN", "y", call(at("a")), units=2)), ""),
    "state of rank 3": (lambda: one(node("LSTM", "y", call(X, initial_state=[X, X]), units=2)), ""),
    "states too many": (lambda: one(node("GRU", "y", call([X, X, X]), units=2)), ""),
    "old form": (lambda: keras_2([["x", 0, 0, {}]]), None),
    "old form without options": (lambda: keras_2([["x", 0, 0]]), None),
    "old form with odd options": (lambda: keras_2([["x", 0, 0, []]]), "must list"),
    "old form of two": (lambda: keras_2([["x", 0]]), "must list"),
    "old form of nothing": (lambda: keras_2([]), "called on nothing"),
    "old form with unknown keyword": (lambda: keras_2([["x", 0, 0, {"surprise": 1}]]), "surprise"),
    "both forms": (lambda: keras_2([["x", 0, 0, {}]], call(X), outputs=[["y", 1, 0]]), None),
    "nested model that is never called": (
        lambda: one(
            {"class_name": "Functional", "config": one(relu("y", call(X)))["config"], "name": "y"}, outputs=[["y", 1, 0]]
        ),
        "nothing computes it",
    ),
    "nested once": (lambda: nested(3, 2), None),
    "exponential calls": (lambda: nested(28, 2), LIMIT),
    "many calls at every level": (lambda: nested(12, 40), LIMIT),
    "stateful without end": (
        lambda: functional(
            source(shape=(HUGE, 4, 3)), node("SimpleRNN", "y", call(X), units=2, stateful=True, use_bias=False)
        ),
        "",
    ),
    "recurrent calls by the hundred": (
        lambda: one(
            node("SimpleRNN", "y", *(call(at("y", i - 1) if i else X) for i in range(200)), units=3, return_sequences=True),
            outputs=[["y", 199, 0]],
        ),
        LIMIT,
    ),
    "unrolled behind a repetition": (
        lambda: one(
            node("Flatten", "f", call(X)), node("RepeatVector", "r", call(at("f")), n=10**6),
            node("SimpleRNN", "y", call(at("r")), units=2, unroll=True),
        ),
        "",
    ),
}  # fmt: skip
OPERATIONS = {
    "unknown": (lambda: op("Einsum"), "'Einsum' cannot be represented"),
    "code": (lambda: op("Vectorize", pyfunc="print"), "'Vectorize'"),
    "huge axis": (lambda: op("Any", axis=10**30), ""),
    "axis of text": (lambda: op("Any", axis="0"), "axis"),
    "axis that is a mapping": (lambda: op("Any", axis={"a": 1}), "axis"),
    "axes of lists": (lambda: op("Any", axis=[[1], [2]]), "axis"),
    "axes without end": (lambda: op("Any", axis=list(range(10**5))), "axis"),
    "keepdims of text": (lambda: op("Any", axis=-1, keepdims="yes"), "keepdims"),
    "dtype": (lambda: op("Cast", dtype="nonsense"), "dtype"),
    "dtype of objects": (lambda: op("Cast", dtype="O"), "dtype"),
    "dtype that is a list": (lambda: op("Cast", dtype=[["a", "f4"]]), "dtype"),
    "no dtype": (lambda: op("Cast"), ""),
    "unknown option": (lambda: op("Any", where=3), "where"),
    "huge index": (lambda: op("GetItem", X, [piece(), 10**30]), ""),
    "huge slice": (lambda: op("GetItem", X, [piece(-(10**30), 10**30, 1)]), None),
    "slice of step 0": (lambda: op("GetItem", X, [piece(step=0)]), ""),
    "slice of text": (lambda: op("GetItem", X, [piece("a", "b")]), None),
    "indices by the hundred thousand": (lambda: op("GetItem", X, [0] * 10**5), "at most"),
    "new axes by the thousand": (lambda: op("GetItem", X, [None] * 1000), ""),
    "list of indices": (lambda: op("GetItem", X, [[0, 1]]), None),
    "index of text": (lambda: op("GetItem", X, "a"), ""),
    "index that is a mapping": (lambda: op("GetItem", X, {"a": 1}), ""),
    "no index": (lambda: op("GetItem", X), ""),
    "no results": (lambda: op("Add", 3, 4), None),
    "huge numbers": (lambda: op("Add", X, 10**30), ""),
    "numbers that are none": (lambda: op("Add", X, float("nan")), None),
    "text": (lambda: op("Add", X, "a"), ""),
    "zeros without end": (lambda: one(operation("ZerosLike", "y", call(X, shape=[10**6, 10**6]))), ""),
    "zeros without end, batch": (lambda: one(operation("OnesLike", "y", call(X, shape=[10**12]))), ""),
    "batch without end": (lambda: doubled(40, axis=0), "more examples"),
    "features without end": (lambda: doubled(40, axis=-1), "elements"),
    "dimensions without end": (lambda: expanded(100), "dimensions"),
    "outer product": (
        lambda: functional(
            source(shape=(None, 2**16)), source("z", (None, 2**16)),
            operation("ExpandDims", "a", call(X), axis=1), operation("ExpandDims", "b", call(at("z")), axis=2),
            operation("Multiply", "y", call(at("a"), at("b"))), inputs=[["x", 0, 0], ["z", 0, 0]],
        ),
        "elements",
    ),
    "outer sum": (
        lambda: functional(
            source(shape=(None, 2**16, 1)), source("z", (None, 1, 2**16)), node("Add", "y", call([X, at("z")])),
            inputs=[["x", 0, 0], ["z", 0, 0]],
        ),
        "elements",
    ),
    "outer dot": (
        lambda: functional(
            source(shape=(None, 2**16, 1)), source("z", (None, 1, 2**16)), node("Dot", "y", call([X, at("z")]), axes=[2, 1]),
            inputs=[["x", 0, 0], ["z", 0, 0]],
        ),
        "elements",
    ),
    "batch of a layer": (lambda: y("Concatenate", [X, X], axis=0), "axis|batch"),
}  # fmt: skip
OPTIONS = {
    "Reshape": [{"target_shape": [HUGE, HUGE]}, {"target_shape": []}, {"target_shape": [-1, -1]}, {"target_shape": [0]},
                {"target_shape": [2**64]}, {"target_shape": [1] * 100}, {"target_shape": "12"}, {"target_shape": {"a": 1}}, {}],
    "RepeatVector": [{"n": HUGE}, {"n": 2**31}, {"n": 0}, {"n": -1}, {"n": "3"}, {"n": [3]}, {"n": True}, {}],
    "ZeroPadding1D": [{"padding": HUGE}, {"padding": [HUGE, HUGE]}, {"padding": -1}, {"padding": [1, 2, 3]},
                      {"padding": [[1, 1]]}, {"padding": "1"}, {"padding": []}],
    "MaxPooling1D": [{"pool_size": HUGE, "padding": "same"}, {"pool_size": 5}, {"pool_size": 0}, {"strides": HUGE},
                     {"strides": 0}, {"padding": "reflect"}, {"pool_size": [2, 2]}, {"pool_size": {}}],
    "AveragePooling1D": [{"pool_size": HUGE, "padding": "same"}, {"strides": 2**40}],
    "GlobalMaxPooling1D": [{"keepdims": "yes"}, {"data_format": "channels_first"}],
    "Conv1D": [{"filters": HUGE, "kernel_size": 1}, {"filters": 1, "kernel_size": HUGE, "padding": "same"},
               {"filters": 1, "kernel_size": 2, "dilation_rate": HUGE, "padding": "causal"},
               {"filters": 1, "kernel_size": 1, "groups": 3 * 10**6}, {"filters": 1, "kernel_size": 1, "strides": 2**31},
               {"filters": 2**70, "kernel_size": 1}, {"filters": 1}, {"filters": 1, "kernel_size": []},
               {"filters": "1", "kernel_size": 1}],
    "LSTM": [{"units": 2**31}, {"units": HUGE}, {"units": 0}, {"units": "2"}, {"units": None}, {}, {"units": 2, "dropout": 2},
             {"units": 2, "recurrent_activation": {"class_name": "__lambda__", "config": {}}}],
    "GRU": [{"units": 2**31}, {"units": 2, "reset_after": "yes"}, {"units": 2, "reset_after": None}],
    "Embedding": [{"input_dim": HUGE, "output_dim": HUGE}, {"input_dim": 0, "output_dim": 1}],
    "Permute": [{"dims": [1, 1]}, {"dims": [3, 2, 1]}, {"dims": [0, 1]}, {"dims": list(range(1, 10**4))}, {"dims": "12"}],
    "Dot": [{"axes": 0}, {"axes": [1, 2, 3]}, {"axes": HUGE}, {"axes": "1"}, {}],
    "Concatenate": [{"axis": HUGE}, {"axis": [1, 2]}, {"axis": None}, {"axis": "1"}],
    "Normalization": [{"mean": 0, "variance": [1] * 10**6}, {"mean": [[1], [1, 2]], "variance": 1}, {"mean": "a", "variance": 1},
                      {"axis": 10**6, "mean": 0, "variance": 1}],
    "Rescaling": [{"scale": [[1] * 1000] * 1000}, {"scale": "a"}, {"scale": {"a": 1}}, {"scale": 10**400}, {}],
    "Lambda": [{"function": {"class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAA"}}}],
    "TimeDistributed": [{"layer": None}, {"layer": {"class_name": "Lambda", "config": {}}}, {"layer": 3},
                        {"layer": {"class_name": "InputLayer", "config": {"name": "i", "batch_shape": [None, 3]}}}],
    "Bidirectional": [{"layer": {"class_name": "SimpleRNNCell", "config": {"units": 2}}}, {"layer": None}, {},
                      {"layer": {"class_name": "Dense", "config": {"units": 2}}},
                      {"layer": {"class_name": "RNN", "config": {"cell": {"class_name": "Dense", "config": {"units": 2}}}}}],
    "RNN": [{"cell": {"class_name": "StackedRNNCells", "config": {"cells": []}}}, {"cell": []}, {"cell": 3},
            {"cell": {"class_name": "StackedRNNCells", "config": {"cells": {}}}},
            {"cell": {"class_name": "StackedRNNCells", "config": {"cells": [
                {"class_name": "SimpleRNNCell", "config": {"units": 2}, "shared_object_id": {"a": [i]}} for i in range(3)]}}}],
    "ActivityRegularization": [{"l1": "a"}, {"l1": -1}, {"l2": 10**400}],
    "Activation": [{"activation": "relu", "activity_regularizer": each} for each in (
        3, "x", {}, [], {"class_name": "L2", "config": {"l2": "a"}}, {"class_name": "L2", "config": {"x": 1}})],
    "Dense": [{"units": 2, "kernel_regularizer": 3}, {"units": 2, "kernel_regularizer": {"class_name": "L2", "config": {"l2": "a"}}},
              {"units": 2, "kernel_constraint": [1]}, {"units": 2, "use_bias": "no"}, {"units": 2, "kernel_constraint": {}}],
}  # fmt: skip
# What takes long because the file is large, or because JAX traces it.
LARGE = ("hundred thousand", "million", "old form", "without end", "exponential", "long cycle", "many calls")
CASES = {f"graph, {name}": case for name, case in GRAPHS.items()} | {
    f"option, {name}": case for name, case in OPERATIONS.items()
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=pytest.mark.slow) if any(word in each for word in LARGE) else each for each in CASES],
)
def test_hostile_graphs(name, inside, capsys):
    make, match = CASES[name]
    hostile(inside / "a.keras", make(), match, capsys)


QUICK = {
    ("Reshape", 0),
    ("RepeatVector", 0),
    ("Conv1D", 2),
    ("LSTM", 0),
    ("Bidirectional", 0),
    ("Activation", 0),
    ("Dense", 1),
}


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (kind, i) if (kind, i) in QUICK else pytest.param(kind, i, marks=pytest.mark.slow)
        for kind, several in OPTIONS.items()
        for i in range(len(several))
    ],
)
def test_hostile_options(kind, number, inside, capsys):
    hostile(inside / "a.keras", y(kind, **OPTIONS[kind][number]), None, capsys)


def test_the_graphs_here_are_read(inside):
    """Without what is hostile in them."""
    write_model(inside / "a.keras", one(relu("y", call(X))))
    module, variables = load_model(inside / "a.keras")
    np.testing.assert_array_equal(module.apply(variables, np.full((1, 4, 3), -1.0)), np.zeros((1, 4, 3)))
    write_model(inside / "a.keras", nested(3, 2))
    module, variables = load_model(inside / "a.keras")
    assert build._calls(module) == 8
    write_model(inside / "a.keras", expanded(10))
    module, variables = load_model(inside / "a.keras")
    assert module.apply(variables, np.ones((1, 4, 3))).shape == (1, *[1] * 10, 4, 3)
