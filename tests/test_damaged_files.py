"""Genuine files of Keras with random damage: to bytes, to the HDF5 file and the configuration inside an archive that is whole.

Whatever stands in one, loading it ends in a result or a ValueError, soon, and writes nothing. A few hundred are tried in every
run; for more, and a summary of what happened:

    FLAX_SRNN_FUZZ=20000 pytest tests/test_damaged_files.py -k damaged_files -n0 -s
"""

import collections
import json
import os
import random
import re
import resource
import signal
import time
import zipfile

import cases
import jax
import numpy as np
import pytest
from strangers import SECONDS, write_archive

from flax_srnn.interop.keras import load_model, load_weights

FUZZ = int(os.environ.get("FLAX_SRNN_FUZZ", "400"))
pytestmark = pytest.mark.usefixtures("nothing_is_written_and_nothing_hangs")


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


def damaged_json(rng, text):
    """A configuration with one entry removed, repeated, renamed or replaced by another or by something odd."""
    config = json.loads(text)
    entries = []

    def collect(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            entries.append((node, key))
            if isinstance(node[key], (dict, list)):
                collect(node[key])

    collect(config)
    node, key = rng.choice(entries)
    odd = [
        None,
        True,
        -1,
        0,
        3,
        2**63,
        1e308,
        float("nan"),
        "",
        "x",
        "relu",
        "apply",
        "mixed_bfloat16",
        [],
        [None],
        {},
        [[]],
        {"class_name": "Dense"},
    ]
    match rng.randrange(5):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[rng.choice(["name", "units", "x", "class_name", "stateful"])] = node.pop(key)
        case 2:
            other, at = rng.choice(entries)
            node[key] = (
                json.loads(json.dumps(other[at]))
                if not isinstance(other[at], (dict, list)) or rng.random() < 0.5
                else 3
            )
        case _:
            node[key] = rng.choice(odd)
    return json.dumps(config)


def damaged(rng, genuine, inside):
    """A damaged file, at a new path."""
    folder = genuine / rng.choice(["2.15.0", "3.6.0"])
    source = rng.choice(sorted(path for path in folder.iterdir() if path.suffix in (".keras", ".h5")))
    path = inside / source.name
    if source.suffix != ".keras" or rng.random() < 0.2:
        path.write_bytes(damaged_bytes(rng, source.read_bytes()))
        return path
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if rng.random() < 0.4:
        members["model.weights.h5"] = damaged_bytes(rng, members["model.weights.h5"])
    else:
        members["config.json"] = damaged_json(rng, members["config.json"])
    write_archive(path, members)
    return path


@pytest.mark.parametrize("part", cases.thinned(range(4), 1))
def test_damaged_files(part, genuine, inside):
    outcomes: collections.Counter = collections.Counter()
    slowest = 0.0
    for number in range(part, FUZZ, 4):
        rng = random.Random(number)
        path = damaged(rng, genuine, inside)
        for load in (load_weights, load_model):
            signal.alarm(SECONDS)
            start = time.perf_counter()
            try:
                result = load(path)
            except ValueError as error:
                outcomes[f"{load.__name__}: ValueError{'' if str(path) in str(error) else ' without the path'}"] += 1
            except BaseException as error:
                raise AssertionError(f"number {number}, {path.name}, {load.__name__}: {error!r}") from error
            else:
                outcomes[f"{load.__name__}: loaded"] += 1
                for leaf in jax.tree.leaves(result[1] if load is load_model else result):
                    assert isinstance(leaf, jax.Array)
            slowest = max(slowest, time.perf_counter() - start)
        path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\n{sum(outcomes.values()) // 2} files: {dict(outcomes)}, slowest {slowest:.2f} s, peak memory {peak:.0f} MB"
    )
    assert peak < 4000
    assert not any("without" in outcome for outcome in outcomes)


@pytest.mark.slow
def test_a_damaged_model_that_loads_applies(genuine, inside):
    """What loads, works: a few of the configurations that survived damage are really computed."""
    rng, computed = random.Random(0), 0
    with zipfile.ZipFile(genuine / "3.6.0" / "plain.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    while computed < 5:
        write_archive(inside / "a.keras", {**members, "config.json": damaged_json(rng, members["config.json"])})
        try:
            module, variables = load_model(inside / "a.keras")
        except ValueError:
            continue
        batch, *sizes = module.input_shape
        module.apply(variables, np.ones((batch or 2, *(size or 3 for size in sizes)), np.float32))
        computed += 1
