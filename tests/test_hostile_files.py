"""Model files from strangers: whatever stands in one, loading it ends in a result or a ValueError, soon, and writes nothing.

Hand-made attacks; `test_damaged_files.py` has genuine files with random damage.
"""

import json
import os
import struct
import zipfile

import cases
import h5py
import numpy as np
import pytest
from strangers import refused, simple_rnn, write_archive, write_h5, write_model

from flax_srnn.interop.keras import build, convert, hdf5, load_model, load_weights, reading

pytestmark = pytest.mark.usefixtures("nothing_is_written_and_nothing_hangs")

# What is no file of Keras


@pytest.mark.parametrize("load", [load_weights, load_model])
def test_no_keras_file(inside, load):
    with pytest.raises(FileNotFoundError):
        load(inside / "absent.keras")
    for name, content, match in [
        ("empty.keras", b"", "no Keras file"),
        ("text.h5", b"kernel = 3", "no Keras file"),
        ("pickle.h5", b"\x80\x04\x95\x10", "no Keras file"),
        ("signature.h5", hdf5.SIGNATURE, "damaged"),
        ("start.keras", b"PK\x03\x04", "archive is damaged"),
        ("end.keras", b"PK\x05\x06" + bytes(18), "no 'config.json'"),
    ]:
        (inside / name).write_bytes(content)
        refused(inside / name, match, load)
    refused(inside, "folder|directory", load)
    os.mkfifo(inside / "pipe.keras")
    refused(inside / "pipe.keras", "not a regular file", load)


def test_a_file_that_is_too_large_is_not_read(inside):
    with open(inside / "sparse.h5", "wb") as file:
        file.truncate(reading.MAX_FILE_BYTES + 1)
    refused(inside / "sparse.h5", f"at most {reading.MAX_FILE_BYTES}")


# HDF5


def replace(make):
    """A change that puts something else in the place of the kernel."""

    def change(file, group):
        del group["0"]
        make(group)

    return change


def filled(group, **options):
    group.create_dataset("0", dtype="f4", **options)


def hollow(group, shape=(2**20, 2**20)):
    """Declared contiguous, by default of 4 TB, and never written."""
    space, plist = h5py.h5s.create_simple(shape), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    h5py.h5d.create(group.id, b"0", h5py.h5t.IEEE_F32LE, space, plist)


def virtual(group):
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4, 3))
    group.create_virtual_dataset("0", layout)


def of_bits(bits):
    kind = h5py.h5t.STD_I8LE.copy()
    kind.set_precision(bits)
    return kind


def cycle(file, group):
    group["self"] = file["layers"]


def two_names(file, group):
    file["layers/again"] = file["layers/simple_rnn"]


def deep(file, group):
    file.create_group("/".join("x" * 200))


HDF5 = {
    "soft link": (replace(lambda g: g.__setitem__("0", h5py.SoftLink("/layers"))), "soft link"),
    "dangling soft link": (lambda f, g: f.__setitem__("layers/other", h5py.SoftLink("/nowhere")), "soft link"),
    "external link": (replace(lambda g: g.__setitem__("0", h5py.ExternalLink("/etc/passwd", "/x"))), "external link"),
    "stored outside": (replace(lambda g: filled(g, shape=(4, 3), external=[("/etc/passwd", 0, 48)])), "other files"),
    "virtual": (replace(virtual), "virtual"),
    "chunked": (replace(lambda g: filled(g, shape=(4, 3), chunks=(2, 3))), "in chunks"),
    "compressed": (replace(lambda g: filled(g, shape=(4, 3), compression="gzip")), "compressed"),
    "fill value": (replace(lambda g: filled(g, shape=(2**20, 2**20), chunks=(4, 4), fillvalue=1)), "in chunks"),
    "hollow": (replace(hollow), "not in the file"),
    "integers": (replace(lambda g: g.__setitem__("0", np.ones((4, 3), np.int32))), "'kernel' .* floats, got int32"),
    "integers of 3 bits": (replace(lambda g: g.create_dataset("0", (4, 3), of_bits(3))), "whole bytes"),
    "count that is no integer": (
        lambda f, g: [f.__setitem__(f"layers/normalization/vars/{i}", np.float32(1)) for i in range(3)],
        "'count' .* integers, got float32",
    ),
    "complex": (replace(lambda g: g.__setitem__("0", np.ones((4, 3), complex))), "compound|complex"),
    "long double": (replace(lambda g: g.__setitem__("0", np.ones((4, 3), np.longdouble))), "not IEEE"),
    "text": (replace(lambda g: g.__setitem__("0", [["a"] * 3] * 4)), "string"),
    "booleans": (replace(lambda g: g.__setitem__("0", np.ones((4, 3), bool))), "enum"),
    "unexplained bytes": (replace(lambda g: g.__setitem__("0", np.zeros((4, 3), "V2"))), "opaque"),
    "references": (replace(lambda g: g.__setitem__("0", np.array([g.ref], h5py.ref_dtype))), "reference"),
    "a group": (replace(lambda g: g.create_group("0")), "'kernel' .* is missing"),
    "missing": (replace(lambda g: None), "'kernel' .* is missing"),
    "cycle": (cycle, "twice"),
    "two names": (two_names, "twice"),
    "deep": (deep, "nested"),
    "kernel transposed": (replace(lambda g: g.__setitem__("0", np.ones((3, 4), "f4"))), "'recurrent_kernel' .* shape"),
    "kernel of rank 3": (replace(lambda g: g.__setitem__("0", np.ones((1, 4, 3), "f4"))), "'kernel' .* shape"),
    "a scalar": (replace(lambda g: g.__setitem__("0", np.float32(1))), "'kernel' .* shape"),
    "empty": (replace(lambda g: g.__setitem__("0", np.ones((0, 3), "f4"))), "'kernel' .* shape"),
    "null": (replace(lambda g: g.__setitem__("0", h5py.Empty("f4"))), "shape"),
    "an array too many": (lambda f, g: g.__setitem__("3", np.ones(3, "f4")), "not known here"),
    "same name": (
        lambda f, g: [
            simple_rnn(f, n) and f[f"layers/{n}"].create_group("vars").attrs.update(name="a") for n in ("b", "c")
        ],
        "two layers",
    ),
    "name that is no text": (
        lambda f, g: f["layers/simple_rnn"].create_group("vars").attrs.update(name=np.ones(3)),
        "strings",
    ),
    "name of a megabyte": (
        lambda f, g: f["layers/simple_rnn"].create_group("vars").attrs.update(name="x" * 2**20),
        "at most",
    ),
}


@pytest.mark.parametrize("name", HDF5)
def test_hostile_hdf5(name, inside):
    change, match = HDF5[name]
    path = inside / "a.weights.h5"
    write_h5(path, change)
    refused(path, match)


@pytest.mark.parametrize("dtype", [f"{order}{kind}{size}" for order in "<>" for kind in "iu" for size in (1, 2, 4, 8)])
def test_integers(dtype, inside):
    numbers = np.array([[0, 1, 100], [200, -1, -100]]).astype(dtype)
    with h5py.File(inside / "a.h5", "w") as file:
        file["numbers"] = numbers
    read = hdf5.read((inside / "a.h5").read_bytes()).dataset("numbers").array()
    assert read.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(read, numbers)


def test_a_layer_that_is_not_known_has_the_arrays_of_the_file(inside):
    array = np.arange(120, dtype="f4").reshape(2, 3, 4, 5)
    write_h5(inside / "a.weights.h5", lambda file, group: file.__setitem__("layers/conv2d/vars/0", array))
    loaded = load_weights(inside / "a.weights.h5")
    assert list(loaded) == ["simple_rnn", "conv2d"]
    np.testing.assert_array_equal(loaded["conv2d"]["vars/0"], array)


def test_what_is_beside_the_layers_is_not_read(inside):
    def change(file, group):
        file["optimizer/vars/0"] = np.int64(3)
        file["metrics/mean/vars/0"] = np.float32(3)
        file["layers/simple_rnn/cell/seed_generator/vars/0"] = np.ones(2, np.uint32)

    write_h5(inside / "a.weights.h5", change)
    assert list(load_weights(inside / "a.weights.h5")["simple_rnn"]) == ["kernel", "recurrent_kernel", "bias"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"libver": "latest"}, "superblock version"),
        ({"track_order": True}, "new-style|version"),
        ({"userblock_size": 512}, "no Keras file"),
    ],
)
def test_layouts_that_keras_does_not_write(options, match, inside):
    write_h5(inside / "a.weights.h5", lambda file, group: None, **options)
    refused(inside / "a.weights.h5", match)


def test_steps_are_limited(inside, monkeypatch):
    write_h5(inside / "a.weights.h5", lambda file, group: None)
    load_weights(inside / "a.weights.h5")
    monkeypatch.setattr(hdf5, "MAX_STEPS", 20)
    refused(inside / "a.weights.h5", "more than 20 objects")


def test_overlapping_arrays(inside):
    """Twenty kernels at one and the same place would fill twenty times the memory of the file."""
    path = inside / "a.weights.h5"
    with h5py.File(path, "w") as file:
        first = simple_rnn(file, "simple_rnn", ((1000, 100), (100, 100), (100,)))
        for i in range(1, 20):
            group = simple_rnn(file, f"simple_rnn_{i}", ((1, 1), (100, 100), (100,)))
            del group["0"]
            hollow(group, (1000, 100))
        offset = first["0"].id.get_offset()
    nowhere, here = (struct.pack("<QQ", at, 400_000) for at in (2**64 - 1, offset))
    data = path.read_bytes()
    assert data.count(nowhere) == 19
    path.write_bytes(data.replace(nowhere, here))
    refused(path, "overlap")


# Archives and JSON


def test_archive_as_written_and_as_recompressed(members, inside):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write_archive(inside / "a.keras", members, ("assets/words.txt", "a"), method=method)
        assert list(load_weights(inside / "a.keras")) == ["simple_rnn", "both", "last", "dense"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil", "\\evil"])
def test_members_that_leave_the_folder(name, members, inside):
    write_archive(inside / "a.keras", members, (name, "x"))
    refused(inside / "a.keras", "leaves its folder")


@pytest.mark.parametrize("bomb", cases.thinned(["config.json", "model.weights.h5", "assets/other"], 1))
def test_bombs(bomb, members, inside):
    write_archive(inside / "a.keras", {**members, bomb: bytes(300 * 2**20)}, method=zipfile.ZIP_DEFLATED)
    refused(inside / "a.keras", "compressed more than")


def test_sizes_that_are_not_true(members, inside):
    path = inside / "a.keras"
    write_archive(path, members)
    size = struct.pack("<I", len(members["config.json"]))
    for wrong, match in ((2**31 - 1, "compressed more|at most"), (len(members["config.json"]) + 100, ""), (5, "")):
        path.write_bytes(path.read_bytes().replace(size, struct.pack("<I", wrong)))
        refused(path, match)
        write_archive(path, members)


def test_other_archives(members, inside):
    path = inside / "a.keras"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        write_archive(path, members, method=method)
        refused(path, "other than deflate")
    write_archive(path, members, ("config.json", "{}"))
    refused(path, "two members 'config.json'")
    write_archive(path, members, *((f"assets/{i}", "") for i in range(reading.MAX_MEMBERS)))
    refused(path, "more than 1000 members")
    for name in members:
        write_archive(path, {k: v for k, v in members.items() if k != name})
        refused(path, f"no '{name}'")
    write_archive(path, members)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused(path, "encrypted")
    write_archive(path, members)
    data = bytearray(path.read_bytes())
    data[data.index(hdf5.SIGNATURE) + 5000] ^= 1
    path.write_bytes(data)
    refused(path, "CRC|damaged")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "JSON is damaged"),
        (b"{", "JSON is damaged"),
        (b"\xff{}", "JSON is damaged"),
        (b"[]", "not an object"),
        (b"3", "not an object"),
        (b"1" * 10_000, "JSON is damaged"),
        (b"[" * 100_000, "nested 100000 deep"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested 200 deep"),
        (b'{"class_name": "' + b"[" * 10_000 + b'", "config": {}}', ""),
        (b'{"class_name": "' + b"\\\\" * 10_000 + b'"}', ""),
        (b'{"class_name": "\\ud800", "config": {}}', ""),
        (b'{"class_name": NaN, "config": {}}', ""),
        (b" " * (reading.MAX_JSON_BYTES + 1), "at most"),
    ],
)
def test_json(text, match, members, inside):
    write_archive(inside / "a.keras", {**members, "config.json": text})
    refused(inside / "a.keras", match, load_model)


# Models. Each change is made to the configuration of a genuine file.


def layer(config, position):
    return config["config"]["layers"][position]["config"]


def change_layer(position, **arguments):
    return lambda config: layer(config, position).update(arguments)


def inserted(kind, position=1, **arguments):
    added = {
        "module": "keras.layers",
        "class_name": kind,
        "config": {"name": "added", **arguments},
        "registered_name": None,
    }
    return lambda config: config["config"]["layers"].insert(position, added)


def wrapped(times):
    def change(config):
        inner = config["config"]["layers"][1:]
        for i in range(times):
            inner = [{"class_name": "Sequential", "config": {"name": f"s{i}", "layers": inner}}]
        config["config"]["layers"][1:] = inner

    return change


def doubled(times):
    """A Bidirectional has its layer twice: one in the other would be 2**times layers."""

    def change(config):
        for _ in range(times):
            outer = layer(config, 3)
            outer["layer"] = {"class_name": "Bidirectional", "config": {"name": "b", "layer": outer["layer"]}}
            outer.pop("backward_layer", None)

    return change


CODE = {"class_name": "__lambda__", "config": {"value": "4wEAAAAAAAAA", "defaults": None, "closure": None}}

# Positions: 0 InputLayer (None, 5, 3), 1 Masking, 2 SimpleRNN(4), 3 Bidirectional, 4 RNN, 5 Dense.
MODELS = {
    "functional": (lambda c: c.update(class_name="Functional"), "number of a call"),
    "custom model": (lambda c: c.update(class_name="Mine", module="mine", registered_name="Mine"), "Mine"),
    "lambda": (inserted("Lambda", function=CODE), "'Lambda' cannot be represented"),
    "code as activation": (change_layer(2, activation=CODE), "__lambda__"),
    "module as activation": (
        change_layer(5, activation={"module": "os", "class_name": "function", "config": "system"}),
        "os",
    ),
    "threshold": (change_layer(5, activation="threshold"), "threshold"),
    "unknown argument": (change_layer(2, surprise=1), "'surprise'"),
    "unknown argument of Dense": (change_layer(5, surprise=1), "`surprise`"),
    "unknown layer": (inserted("Conv2D"), "'Conv2D' cannot be represented"),
    "custom layer": (
        lambda c: c["config"]["layers"][5].update(module="mine", registered_name="mine>Dense"),
        "custom object",
    ),
    "wrong units": (change_layer(5, units=3), "shape"),
    "huge units": (change_layer(5, units=2**31 - 1), "shape"),
    "huge recurrent units": (change_layer(2, units=2**31 - 1), ""),
    "impossible units": (change_layer(2, units=2**70), ""),
    "impossible dense units": (change_layer(5, units=-1), "`units`"),
    "units that are text": (change_layer(2, units="4"), "units"),
    "rate that is text": (inserted("Dropout", rate="half"), "rate"),
    "rate above 1": (inserted("Dropout", rate=2), "rate"),
    "momentum that is text": (inserted("BatchNormalization", momentum="0.9"), "momentum"),
    "epsilon below 0": (inserted("LayerNormalization", epsilon=-1), "epsilon"),
    "axis that is text": (inserted("LayerNormalization", axis="last"), "axis"),
    "mask value": (change_layer(1, mask_value=[0.5]), "mask_value"),
    "noise shape": (inserted("Dropout", rate=0.5, noise_shape=[1]), "noise_shape"),
    "channels first": (inserted("Flatten", data_format="channels_first"), "data_format"),
    "time distributed too deep": (
        inserted("TimeDistributed", layer={"class_name": "SimpleRNN", "config": {"units": 3}}),
        "'kernel' of .*time_distributed/layer/cell.* is missing",
    ),
    "repeated without end": (
        lambda c: [
            inserted(kind, name=f"{kind}{i}", **arguments)(c)
            for i in range(9)
            for kind, arguments in (("RepeatVector", {"n": 10**4}), ("Flatten", {}))
        ],
        "elements of one example",
    ),
    "padded without end": (inserted("ZeroPadding1D", padding=[0, 2**31 - 1]), "elements of one example"),
    "time distributed of nothing": (inserted("TimeDistributed"), "'layer'"),
    "dtype": (change_layer(5, dtype="int8"), "dtype"),
    "several outputs inside": (change_layer(2, return_state=True), "applied"),
    "no sequence for an RNN": (change_layer(2, return_sequences=False), "applied"),
    "stateful without a batch": (change_layer(2, stateful=True), "batch size"),
    "time major": (change_layer(2, time_major=True), "time_major"),
    "both forwards": (lambda c: layer(c, 3)["backward_layer"]["config"].update(go_backwards=False), "directions"),
    "merge mode": (change_layer(3, merge_mode="max"), "merge_mode"),
    "no name": (lambda c: layer(c, 2).pop("name"), "name"),
    "same names": (change_layer(5, name="last"), "name"),
    "no layers": (lambda c: c["config"].update(layers=[]), "no layers"),
    "layers of text": (lambda c: c["config"].update(layers=["Dense"]), "configuration"),
    "shape of text": (change_layer(0, batch_shape="ab"), "shape"),
    "negative shape": (change_layer(0, batch_shape=[None, -1, 3]), "shape"),
    "shape of too few": (change_layer(0, batch_shape=[None]), "applied"),
    "impossible shape": (change_layer(0, batch_shape=[None, 2**62, 3]), "shape"),
    "other features": (change_layer(0, batch_shape=[None, 5, 30]), "shape"),
    "overflowing product": (
        lambda c: (change_layer(0, batch_shape=[None, 2**31 - 1, 2**31 - 1])(c), inserted("Flatten")(c)),
        "",
    ),
    "long unrolled": (
        lambda c: (change_layer(0, batch_shape=[None, 10**6, 3])(c), change_layer(2, unroll=True)(c)),
        "at most 10000 are unrolled",
    ),
    "ragged": (change_layer(0, ragged=True), "ragged"),
    "too many layers": (
        lambda c: [inserted("Activation", name=f"a{i}", activation="relu")(c) for i in range(build.MAX_LAYERS)],
        f"at most {build.MAX_LAYERS}",
    ),
    "nested too deeply": (wrapped(50), "deep"),
    "doubled at every level": (doubled(12), "cannot lie inside"),
}


def rewritten(members, change):
    config = json.loads(members["config.json"])
    change(config)
    return {**members, "config.json": json.dumps(config)}


@pytest.mark.parametrize("name", MODELS)
def test_hostile_models(name, members, inside):
    change, match = MODELS[name]
    path = inside / "a.keras"
    write_archive(path, rewritten(members, change))
    refused(path, match, load_model)


@pytest.mark.slow
def test_odd_models_that_are_fine(members, inside):
    path = inside / "a.keras"
    for name in ("apply", "layers", "scope", "parent", "name", "a/b", "cells_0", "Ω", "__class__"):
        write_archive(path, rewritten(members, change_layer(5, name=name)))
        module, variables = load_model(path)
        assert name in variables["params"]
        assert module.apply(variables, np.ones((1, 5, 3))).shape == (1, 2)
    write_archive(path, rewritten(members, change_layer(0, batch_shape=[None, 10**9, 3])))
    module, _ = load_model(path)
    assert module.graph.inputs[0].shape == (None, 10**9, 3)


@pytest.mark.slow
def test_a_model_without_a_shape(members, inside):
    """The features are those of the first kernel; without a kernel nothing tells them."""

    def shapeless(config):
        config["config"]["layers"].pop(0)
        config["config"].pop("build_input_shape", None)

    write_archive(inside / "a.keras", rewritten(members, shapeless))
    module, variables = load_model(inside / "a.keras")
    assert module.apply(variables, np.ones((1, 5, 3))).shape == (1, 2)
    layers = [{"class_name": "Activation", "config": {"name": "y", "activation": "relu"}}]
    write_model(inside / "a.keras", {"class_name": "Sequential", "config": {"name": "model", "layers": layers}})
    refused(inside / "a.keras", "before it was built", load_model)


def test_weights_alone_are_no_model(inside):
    write_h5(inside / "a.weights.h5", lambda file, group: None)
    refused(inside / "a.weights.h5", "weights and no model", load_model)


def test_folders_of_convert(members, inside):
    write_archive(inside / "a.keras", members)
    convert(inside / "a.keras", inside / "out")
    path = inside / "out" / "variables.msgpack"
    good = path.read_bytes()
    load_model(inside / "out")
    for bad in (
        b"",
        b"\xc1",
        good[:-9],
        good[:100],
        b"\xdd\xff\xff\xff\xff",
        b"\x81\xa6params" + b"\x81\xa1a" * 5000 + b"\xc0",
    ):
        path.write_bytes(bad)
        refused(inside / "out", "", load_model)
    path.write_bytes(good.replace(b"float32", b"complex"))
    refused(inside / "out", "", load_model)
    path.unlink()
    refused(inside / "out", "no 'variables.msgpack'", load_model)
