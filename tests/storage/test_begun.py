"""What a process was at when it died, by the notes that it left."""

import os
import subprocess
import sys
import threading

import pytest

from storage.begun import NOTE, Begun
from storage.errors import StorageError

DIES = """
import os, sys
from storage.begun import Begun
with Begun(sys.argv[1]).at_work([os.fsencode(name) for name in sys.argv[2:]]):
    os._exit(7)
"""


def die(folder, *names):
    child = subprocess.run([sys.executable, "-c", DIES, str(folder), *names], check=False)
    assert child.returncode == 7


def notes(folder):
    return [name for name in os.listdir(folder) if NOTE.fullmatch(name)]


def test_only_what_the_dead_were_at_is_suspect(tmp_path):
    folder = tmp_path / "work"
    assert not Begun(str(folder)).is_suspect(b"a")
    die(folder, "a", "b\udcff")
    die(folder, "c")
    living = Begun(str(folder))
    with living.at_work([b"d"]):
        assert len(notes(folder)) == 3
        seen = Begun(str(folder))
        found = [name for name in (b"a", b"b\xff", b"c", b"d") if seen.is_suspect(name)]
        assert found == [b"a", b"b\xff", b"c"]
    assert len(notes(folder)) == 2


def test_no_note_is_left_where_the_work_fails_and_none_made_for_nothing(tmp_path):
    begun = Begun(str(tmp_path))

    def fail():
        with begun.at_work([b"a"]):
            assert notes(tmp_path)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with begun.at_work([]):
        assert not notes(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_note_goes_when_all_of_it_is_settled(tmp_path):
    die(tmp_path, "a", "b")
    die(tmp_path, "c")
    begun = Begun(str(tmp_path))
    begun.settle([b"a", b"c", b"x"])
    assert len(notes(tmp_path)) == 1
    assert Begun(str(tmp_path)).is_suspect(b"a"), "its note stands while b is open"
    begun.settle([b"b"])
    assert notes(tmp_path) == []


def test_damaged_notes_are_nothing_and_others_files_stay(tmp_path):
    for n, text in enumerate([b"", b"[]", b'{"owner": {}, "paths": []}', b'{"paths": 3}']):
        (tmp_path / f"begun-{n:032x}.json").write_bytes(text)
    (tmp_path / "mine.json").write_bytes(b"{}")
    assert Begun(str(tmp_path)).suspects == frozenset()
    assert os.listdir(tmp_path) == ["mine.json"]


def test_threads_work_in_a_folder_that_others_remove(tmp_path):
    folder = str(tmp_path / "work")
    begun, trouble = Begun(folder), []

    def work(n):
        try:
            for i in range(20):
                with begun.at_work([b"%d-%d" % (n, i)]):
                    pass
        except StorageError as error:
            trouble.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trouble == []
    assert os.listdir(folder) == []
