"""Genuine files of Keras with random damage: to bytes, to the HDF5 file and the configuration inside an archive that is whole.

Whatever stands in one, loading and describing it ends in a result or a ValueError, soon, and writes nothing; and what loads,
works on the inputs that it declares. A few dozen are tried in every run, hundreds in the slow ones; for more, and a summary of
what happened:

    FLAX_SRNN_FUZZ=20000 pytest tests/test_damaged_files.py -m "" -k damaged_files -n0 -s
"""

import collections
import copy
import json
import os
import random
import re
import resource
import signal
import time
import zipfile

import h5py
import jax
import numpy as np
import pytest
from strangers import SECONDS, damaged_at, write_archive

from flax_srnn.interop.keras import describe, load_model, load_weights

FUZZ = int(os.environ.get("FLAX_SRNN_FUZZ", "1400"))
FIRST = int(os.environ.get("FLAX_SRNN_FUZZ_FIRST", "0"))
pytestmark = pytest.mark.usefixtures("nothing_is_written_and_nothing_hangs")
# What stands where a model's graph is written.
GRAPH = ("inbound_nodes", "input_layers", "output_layers")
ODD = [
    None, True, -1, 0, 3, 2**31, 2**63, -(2**40), 10**6, 1e308, 0.5, float("nan"), "", "x", "relu", "apply", "name",
    "mixed_bfloat16", [], [None], {}, [[]], {"class_name": "Dense"}, [["x", 0, 0]], [3, 3], ["dense", 0, 0],
]  # fmt: skip


def damaged_bytes(rng, data):
    """One kind of damage to a file's bytes, near its structure more often than not."""
    data = bytearray(data)
    marks = [
        m.start()
        for m in re.finditer(
            rb"TREE|SNOD|HEAP|GCOL|OHDR|\x89HDF|PK\x01\x02|PK\x03\x04|PK\x05\x06|\x01\x00.\x00\x01\x00\x00\x00", data
        )
    ]
    near = rng.choice(marks) + rng.randrange(96) if marks and rng.random() < 0.7 else rng.randrange(len(data))
    at = min(near, len(data) - 8)
    length = rng.choice([1, 2, 4, 8, 8, 32])
    values = [
        bytes(length),
        b"\xff" * length,
        rng.randbytes(length),
        rng.randrange(len(data)).to_bytes(8, "little"),
        (2**40).to_bytes(8, "little"),
    ]
    return damaged_at(rng, data, at, length, values)


def damaged_json(rng, text):
    """A configuration with one to three entries removed, repeated, shuffled, renamed or replaced by another or by something
    odd; half of them in the model's graph, if it has one."""
    config = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        entries, graph = [], []

        def collect(node, entries, graph):
            for key in node if isinstance(node, dict) else range(len(node)):
                entries.append((node, key))
                if isinstance(node[key], (dict, list)):
                    collect(node[key], entries, graph)
                    if key in GRAPH:
                        graph.append((node, key))
                        collect(node[key], graph, [])

        collect(config, entries, graph)
        if entries:
            damage(rng, rng.choice(graph if graph and rng.random() < 0.5 else entries), entries)
    return json.dumps(config)


def damage(rng, place, entries):
    """One kind of damage to one entry of a list or mapping."""
    node, key = place
    other, at = rng.choice(entries)
    another = copy.deepcopy(other[at])
    match rng.randrange(9):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[rng.choice(["name", "units", "x", "class_name", "stateful"])] = node.pop(key)
        case 2:
            node[key] = another
        case 3 if isinstance(node, list):
            node.insert(key, another if rng.random() < 0.3 else copy.deepcopy(node[key]))
        case 4 if isinstance(node[key], list):
            rng.shuffle(node[key])
        case 5 if isinstance(node[key], list):
            node[key] *= rng.choice([2, 3, 500])
        case 6 if type(node[key]) is int:
            node[key] += rng.choice([-1, 1, 2, 2**20])
        case _:
            node[key] = copy.deepcopy(rng.choice(ODD))


def damaged(rng, recorded, inside):
    """A damaged file, at a new path."""
    folder = rng.choice(sorted(recorded.iterdir()))
    source = rng.choice(sorted(path for path in folder.iterdir() if path.suffix in (".keras", ".h5")))
    path = inside / source.name
    whole = source.suffix == ".keras" or (".weights" not in source.name and "_legacy" not in source.name)
    if not whole or rng.random() < 0.2:
        path.write_bytes(damaged_bytes(rng, source.read_bytes()))
        return path
    if source.suffix == ".h5":
        path.write_bytes(source.read_bytes())
        with h5py.File(path, "r+") as file:
            text = file.attrs["model_config"]
            del file.attrs["model_config"]
            file.attrs["model_config"] = np.bytes_(damaged_json(rng, text))[:60000]
        return path
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if rng.random() < 0.2:
        members["model.weights.h5"] = damaged_bytes(rng, members["model.weights.h5"])
    else:
        members["config.json"] = damaged_json(rng, members["config.json"])
    write_archive(path, members)
    return path


def works(module, variables):
    """Whether a model that loaded works on inputs that it declares, of one of the sizes that are tried in loading."""
    shapes = [each.shape for each in module.graph.inputs]
    if None in shapes:
        return True
    batch = next((shape[0] for shape in shapes if shape[0] is not None), 2)
    errors = []
    for size in dict.fromkeys((3, *sorted({n for shape in shapes for n in shape[1:] if n}), 64, 1024)):
        inputs = [np.zeros((shape[0] or batch, *(n or size for n in shape[1:])), np.float32) for shape in shapes]
        if sum(x.size for x in inputs) > 10**6:
            return True
        try:
            for each in jax.tree.leaves(module.apply(variables, *inputs, mutable=["carry"])[0]):
                assert isinstance(each, jax.Array)
            return True
        except Exception as error:
            errors.append(error)
    raise errors[0]


def tried(numbers, recorded, inside, applied):
    """Loads and describes damaged files, and applies one in `applied` of the models that load."""
    outcomes: collections.Counter = collections.Counter()
    slowest, which = 0.0, None
    for number in numbers:
        rng = random.Random(number)
        path = damaged(rng, recorded, inside)
        for load in (load_weights, load_model, describe):
            signal.alarm(SECONDS)
            start = time.perf_counter()
            try:
                result = load(path)
                taken = time.perf_counter() - start
                if load is load_model and rng.randrange(applied) == 0:
                    works(*result)
                    outcomes["applied"] += 1
            except ValueError as error:
                taken = time.perf_counter() - start
                if not str(error).startswith(str(path)):
                    raise AssertionError(f"number {number}, {path.name}, {load.__name__}: {error!r}") from error
                outcomes[f"{load.__name__}: ValueError"] += 1
            except BaseException as error:
                raise AssertionError(f"number {number}, {path.name}, {load.__name__}: {error!r}") from error
            else:
                outcomes[f"{load.__name__}: result"] += 1
                arrays = () if load is describe else result[1] if load is load_model else result
                assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arrays))
            if taken > slowest:
                slowest, which = taken, f"number {number}, {path.name}, {load.__name__}"
        path.unlink()
    signal.alarm(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{len(numbers)} files: {dict(outcomes)}, slowest {slowest:.2f} s ({which}), peak memory {peak:.0f} MB")
    assert peak < 4000
    return outcomes


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 8))])
def test_damaged_files(part, recorded, inside):
    """Part 0 is tried in every run, and small; the others share the rest."""
    quick = min(FUZZ, 24)
    numbers = range(FIRST, FIRST + quick) if part == 0 else range(FIRST + quick + part - 1, FIRST + FUZZ, 7)
    outcomes = tried(numbers, recorded, inside, applied=100 if part == 0 else 4)
    assert part == 0 or len(numbers) < 100 or outcomes["applied"]
