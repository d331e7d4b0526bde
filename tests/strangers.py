"""What the tests on model files from strangers share: genuine files, how to write others, and what being refused means."""

import io
import json
import re
import signal
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from flax_srnn.__main__ import main
from flax_srnn.interop.keras import describe, load_model, load_weights

DATA = Path(__file__).parent / "data"
SECONDS = 20  # for one file, on a busy machine


@pytest.fixture
def nothing_is_written_and_nothing_hangs(tmp_path, monkeypatch):
    """Runs in an empty folder, which must be empty in the end, but for what tests put into `tmp_path / "in"`."""
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)

    def too_long(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.fixture
def inside(tmp_path):
    return tmp_path / "in"


def refused(path, match, load=load_weights):
    """A ValueError that names the file, at little cost in memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=match or None) as caught:
            load(path)
        assert str(caught.value).startswith(str(path))
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def simple_rnn(file, name="simple_rnn", shapes=((4, 3), (3, 3), (3,))):
    group = file.create_group(f"layers/{name}/cell/vars")
    for i, shape in enumerate(shapes):
        group[str(i)] = np.ones(shape, np.float32)
    return group


def write_h5(path, change, **options):
    with h5py.File(path, "w", **options) as file:
        change(file, simple_rnn(file))


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    """Files of tf.keras 2.15 and Keras 3.6."""
    folder = tmp_path_factory.mktemp("genuine")
    for version in ("2.15.0", "3.6.0"):
        with zipfile.ZipFile(DATA / f"keras_{version}.zip") as archive:
            archive.extractall(folder / version)
    return folder


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """Files of all recorded versions, a folder for each."""
    folder = tmp_path_factory.mktemp("recorded")
    for path in sorted(DATA.glob("keras_*.zip")):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder / path.stem.removeprefix("keras_"))
    return folder


@pytest.fixture(scope="module")
def members(genuine):
    """The three members of a genuine archive."""
    with zipfile.ZipFile(genuine / "3.6.0" / "plain.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(path, members, *more, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of what it is made to write
        for name, content in [*members.items(), *more]:
            archive.writestr(name, content)


# Models in Keras 3's form, from their graphs


def at(layer, node=0, output=0):
    """A result of a call of a layer, as the argument of another one."""
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [layer, node, output]}}


def call(*args, **kwargs):
    return {"args": list(args), "kwargs": kwargs}


def node(kind, name, *calls, **config):
    """A layer and its calls."""
    config = {"name": name, "trainable": True, **config}
    return {"module": "keras.layers", "class_name": kind, "config": config, "name": name, "inbound_nodes": list(calls)}


def operation(kind, name, *calls, **config):
    return {**node(kind, name, *calls), "module": "keras.src.ops.numpy", "config": config}


def source(name="x", shape=(None, 4, 3)):
    return node("InputLayer", name, batch_shape=list(shape))


def functional(*layers, inputs=("x", 0, 0), outputs=("y", 0, 0), name="model"):
    config = {"name": name, "layers": list(layers), "input_layers": inputs, "output_layers": outputs}
    return {"module": "keras", "class_name": "Functional", "config": config}


def write_model(path, config, arrays=None, version="3.9.2"):
    """A .keras archive of a configuration, an object or text, and of arrays by their paths."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_group("layers")
        for place, array in (arrays or {}).items():
            file[place] = array
    text = config if isinstance(config, (str, bytes)) else json.dumps(config)
    metadata = json.dumps({"keras_version": version})
    write_archive(path, {"config.json": text, "metadata.json": metadata, "model.weights.h5": buffer.getvalue()})


def relu(name, *calls, **config):
    return node("Activation", name, *calls, activation="relu", **config)


def one(*layers, **ends):
    """A model of one input x."""
    return functional(source(), *layers, **ends)


def y(kind, *args, **config):
    """A model of one layer, which is called on x."""
    return one(node(kind, "y", call(*(args or (at("x"),))), **config))


# What everything that reads files is held to

SOON = 10  # seconds of this process, for any file


def tried(path, load):
    """The result of something, or the ValueError that names the file and quotes little of it; in time."""
    start = time.process_time()
    try:
        result = load(path)
    except ValueError as error:
        result = error
    if isinstance(result, ValueError):
        assert str(result).startswith(str(path))
        assert len(str(result)) < 100_000
    assert time.process_time() - start < SOON
    return result


def applied(module, variables):
    shapes = [each.shape for each in module.graph.inputs]
    module.apply(variables, *(np.zeros([n or 2 for n in shape], np.float32) for shape in shapes), mutable=["carry"])


def shown(path, capsys):
    """What the command line says, in printable characters."""
    code = main(["show", str(path)])
    captured = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in captured.out + captured.err)
    assert code == (0 if captured.out else 2)
    assert len(captured.err.splitlines()) == (code == 2)
    return captured.out


def hostile(path, config, match, capsys, arrays=None):
    """Everything that reads files is tried on a model: `match` is in what `load_model` says; None: whatever it says."""
    write_model(path, config, arrays)
    for load in (load_weights, describe):
        tried(path, load)
    result = tried(path, load_model)
    if match is not None:
        assert isinstance(result, ValueError)
        assert re.search(match, str(result)), result
    elif not isinstance(result, ValueError):
        applied(*result)
    shown(path, capsys)


def damaged_at(rng, data, at, length, values):
    """Bytes with one kind of damage at a place: a bit, one of some values, a piece from elsewhere, an end, a gap, an insertion."""
    data = bytearray(data)
    match rng.randrange(6):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            piece = rng.choice(values)
            data[at : at + len(piece)] = piece
        case 2:
            other = rng.randrange(len(data))
            data[at : at + length] = data[other : other + length]
        case 3:
            del data[at:]
        case 4:
            del data[at : at + length]
        case 5:
            data[at:at] = rng.randbytes(length)
    return bytes(data)
