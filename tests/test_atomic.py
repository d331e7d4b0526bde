"""Files and folders that appear whole or not at all."""

import errno
import itertools
import os
import re
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
        with atomic.unfinished_folder(tmp_path / "run") as unfinished:
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


def test_a_file_replaces_no_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match=r"no file that can be replaced: '.*pipe'"):
        write(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def write(target):
    with atomic.writing_file(target) as unfinished:
        unfinished.write_text("lost")


def fill_up(target):
    with atomic.writing_file(target), open("/dev/full", "w") as file:
        file.write("lost")


def make(target):
    with atomic.unfinished_folder(target) as unfinished:
        atomic.move_folder(unfinished, [target])


def make_without_room(target):
    with atomic.unfinished_folder(target) as unfinished:
        (unfinished / "absent" / "part").write_text("lost")


TOO_LONG = "n" * 256


@pytest.mark.parametrize(
    ("do", "name", "number", "named"),
    [
        (write, "absent/new", errno.ENOENT, "absent/new"),
        (write, "file/new", errno.ENOTDIR, "file/new"),
        (write, "full", errno.EISDIR, "full"),
        (write, TOO_LONG, errno.ENAMETOOLONG, TOO_LONG),
        (fill_up, "new", errno.ENOSPC, "new"),
        (make, "absent/new", errno.ENOENT, "absent/new"),
        (make, "file/new", errno.ENOTDIR, "file/new"),
        (make, TOO_LONG, errno.ENAMETOOLONG, TOO_LONG),
        (make_without_room, "new", errno.ENOENT, "new/absent/part"),
    ],
)
def test_an_error_names_what_was_asked_for(do, name, number, named, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("")
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        do(tmp_path / name)
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / named))
    assert ".unfinished" not in str(caught.value)
    assert names(tmp_path) == ["file", "full"]


def test_errors_about_other_files_are_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic.writing_file(tmp_path / "new"):
        (tmp_path / "absent").read_text()
    assert caught.value.filename == str(tmp_path / "absent")
    with pytest.raises(FileExistsError, match=r"^in words$"), atomic.unfinished_folder(tmp_path / "new"):
        raise FileExistsError("in words")


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path):
    write(tmp_path / TOO_LONG[:-1])
    assert names(tmp_path) == [TOO_LONG[:-1]]


def test_a_folder_takes_the_first_free_place(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("")
    (tmp_path / "empty").mkdir()
    taken = [tmp_path / "file", tmp_path / "full"]
    with atomic.unfinished_folder(tmp_path / "run") as unfinished:
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
        with atomic.unfinished_folder(tmp_path / "run") as unfinished:
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
