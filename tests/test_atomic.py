"""Files and folders that appear whole or not at all."""

import itertools
import threading

import pytest

from flax_srnn import atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_what_fails_leaves_nothing(problem, tmp_path):

    def write(name):
        with atomic.writing_file(tmp_path / name) as unfinished:
            unfinished.write_text("half")
            raise problem

    def fill():
        with atomic.unfinished_folder(tmp_path) as unfinished:
            (unfinished / "part").write_text("half")
            raise problem

    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        with pytest.raises(problem):
            write(name)
    with pytest.raises(problem):
        fill()
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "new"
    with atomic.writing_file(str(target)) as unfinished:
        unfinished.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    with atomic.writing_file(target) as unfinished:
        unfinished.write_text("another")
        assert target.read_text() == "whole"
    assert target.read_text() == "another"
    assert names(tmp_path) == ["new"]
    with (
        pytest.raises(FileNotFoundError, match="file"),
        atomic.writing_file(tmp_path / "absent" / "file") as unfinished,
    ):
        unfinished.write_text("lost")


def test_a_folder_takes_the_first_free_place(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("")
    (tmp_path / "empty").mkdir()
    taken = [tmp_path / "file", tmp_path / "full"]
    with atomic.unfinished_folder(tmp_path) as unfinished:
        (unfinished / "part").write_text("")
        with pytest.raises(FileExistsError, match="full: it holds something"):
            atomic.move_folder(unfinished, taken)
        assert atomic.move_folder(unfinished, [*taken, tmp_path / "empty"]) == tmp_path / "empty"
    assert names(tmp_path) == ["empty", "file", "full"]
    assert names(tmp_path / "empty") == ["part"]
    assert names(tmp_path / "full") == ["precious"]


def test_folders_made_at_the_same_time_do_not_collide(tmp_path):
    barrier, found = threading.Barrier(8), []

    def make(number):
        with atomic.unfinished_folder(tmp_path) as unfinished:
            (unfinished / str(number)).write_text("")
            barrier.wait()
            found.append(atomic.move_folder(unfinished, (tmp_path / f"run-{i}" for i in itertools.count(1))))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in found) == names(tmp_path) == [f"run-{i}" for i in range(1, 9)]
    assert sorted(names(path)[0] for path in found) == [str(number) for number in range(8)]
