"""What the tests on model files from strangers share: genuine files, how to write others, and what being refused means."""

import signal
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from flax_srnn.interop.keras import load_weights

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
