"""Unfinished work beside an output: what is kept, what is refused, who is kept out."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from storage.errors import LeaseHeld, PartError, StorageError, WorkMismatch
from storage.work_plan import differences
from storage.workfolder import WorkFolder

PLAN = {"model": "vgg19", "layers": ["fc6", "fc7"], "source": {"path": "/a"}, "shard": None}
KEY, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out.tsv")


def arrays(seed, n=4):
    x = np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)
    return {"vectors-0": x, "records": np.frombuffer(b'["a"]', np.uint8)}


def test_what_is_written_is_there_for_the_next_one(out):
    with WorkFolder(out, PLAN) as work:
        work.write(4, 4, OTHER, arrays(1))
        work.write(0, 4, KEY, arrays(0))
    with WorkFolder(out, PLAN) as work:
        assert [chunk.start for chunk in work.in_order()] == [0, 4]
        assert [chunk.key for chunk in work.in_order()] == [KEY, OTHER]
        for seed, chunk in enumerate(work.in_order()):
            assert work.take(chunk.start, chunk.key) == chunk
            found = work.read(chunk)
            assert found.keys() == arrays(seed).keys()
            for name, array in arrays(seed).items():
                np.testing.assert_array_equal(found[name], array)
        work.remove()
    assert not os.path.exists(out + ".partial")


def test_nothing_is_left_where_nothing_was_finished(out):
    with pytest.raises(KeyError), WorkFolder(out, PLAN):
        raise KeyError
    assert os.listdir(os.path.dirname(out)) == []


def test_chunks_of_other_items_and_damaged_ones_are_deleted(out):
    with WorkFolder(out, PLAN) as work:
        for start in (0, 4, 8):
            work.write(start, 4, KEY, arrays(start))
        damaged = os.path.join(work.path, work.finished[8].name)
    with open(damaged, "r+b") as file:
        file.seek(-70, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with WorkFolder(out, PLAN) as work:
        with pytest.raises(PartError, match="damaged; run again"):
            work.read(work.finished[8])
        assert work.take(0, KEY) is not None
        assert work.take(4, OTHER) is None
        assert work.take(8, KEY) is None
        assert work.take(12, KEY) is None
        assert [chunk.start for chunk in work.in_order()] == [0]
        assert sum(name.endswith(".npz") for name in os.listdir(work.path)) == 1


def test_a_source_that_became_shorter_drops_what_lies_behind(out):
    with WorkFolder(out, PLAN) as work:
        for start in (0, 4, 8):
            work.write(start, 4, KEY, arrays(start))
        work.cut(4)
        assert list(work.finished) == [0]
    with WorkFolder(out, PLAN) as work:
        assert list(work.finished) == [0]


def test_a_chunk_that_was_being_written_is_thrown_away(out):
    with WorkFolder(out, PLAN) as work:
        done = work.write(0, 4, KEY, arrays(0))
        half = os.path.join(work.path, done.name.replace(KEY, OTHER) + ".tmp")
        with open(half, "wb") as file:
            file.write(b"half")
    with WorkFolder(out, PLAN) as work:
        assert not os.path.exists(half)
        assert list(work.finished) == [0]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model": "vgg16"}, 'model was "vgg19", is "vgg16"'),
        ({"layers": ["fc7"]}, 'layers was ["fc6", "fc7"], is ["fc7"]'),
        ({"source": {"path": "/b"}}, 'source.path was "/a", is "/b"'),
        ({"shard": "1/2"}, 'shard was null, is "1/2"'),
        ({"model": "x", "shard": "1/2", "layers": []}, "and 1 more"),
        ({"recipe": "new"}, 'recipe was null, is "new"'),
    ],
)
def test_another_request_is_refused_with_what_differs(out, other, said):
    with WorkFolder(out, PLAN) as work:
        work.write(0, 4, KEY, arrays(0))
    with pytest.raises(WorkMismatch) as refused, WorkFolder(out, {**PLAN, **other}):
        pass
    assert said in str(refused.value)
    assert "--restart" in str(refused.value)
    assert "\n" not in str(refused.value)
    with WorkFolder(out, PLAN) as work:
        assert list(work.finished) == [0]
    with WorkFolder(out, {**PLAN, **other}, restart=True) as work:
        assert work.finished == {}
        assert not [name for name in os.listdir(work.path) if name.endswith(".npz")]


def test_differences_are_named_by_their_place():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": None}) == [
        "a.c was 2, is 3"
    ]
    assert differences({"a": {"b": 1}}, {"a": None}) == ['a was {"b": 1}, is null']
    assert len(differences({"a": "x" * 1000}, {"a": "y"})[0]) < 100


@pytest.mark.parametrize("plan", [b"{", b"[]", b'{"format": 1}'])
def test_a_damaged_plan_says_how_to_begin_anew(out, plan):
    with WorkFolder(out, PLAN) as work:
        work.write(0, 4, KEY, arrays(0))
    with open(f"{out}.partial/plan.json", "wb") as file:
        file.write(plan)
    with (
        pytest.raises(WorkMismatch, match=r"plan\.json is damaged; --restart"),
        WorkFolder(out, PLAN),
    ):
        pass
    with WorkFolder(out, PLAN, restart=True) as work:
        assert work.finished == {}


def test_a_later_format_is_refused(out):
    with WorkFolder(out, PLAN) as work:
        work.write(0, 4, KEY, arrays(0))
    with open(f"{out}.partial/plan.json", "w") as file:
        file.write('{"format": 2, "fingerprint": {}}')
    with pytest.raises(WorkMismatch, match="format 2, this version of lookalike knows 1"):
        WorkFolder(out, PLAN).__enter__()


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(out, restart):
    os.mkdir(out + ".partial")
    with open(out + ".partial/thesis.doc", "w") as file:
        file.write("mine")
    with (
        pytest.raises(WorkMismatch, match=r"thesis\.doc, which is none of lookalike's"),
        WorkFolder(out, PLAN, restart=restart),
    ):
        pass
    with open(out + ".partial/thesis.doc") as file:
        assert file.read() == "mine"


def test_a_folder_that_was_being_removed_is_begun_anew(out):
    with WorkFolder(out, PLAN) as work:
        work.write(0, 4, KEY, arrays(0))
        work.assembling()
    os.unlink(f"{out}.partial/plan.json")  # goes first
    with WorkFolder(out, PLAN) as work:
        assert work.finished == {}
        assert not work.was_assembling


def test_a_missing_folder_above_is_one_line(tmp_path):
    with (
        pytest.raises(StorageError, match="can't be used: No such file or directory"),
        WorkFolder(str(tmp_path / "none" / "out.tsv"), PLAN),
    ):
        pass


HOLD = """
import sys, time
from storage.workfolder import WorkFolder
with WorkFolder(sys.argv[1], {}) as work:
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_kept_out_until_the_first_has_died(out):
    with subprocess.Popen([sys.executable, "-c", HOLD, out], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(LeaseHeld) as refused, WorkFolder(out, {}, restart=True):
            pass
        assert f"process {child.pid} on " in str(refused.value)
        assert out in str(refused.value)
        child.send_signal(signal.SIGKILL)
        child.wait()
    with WorkFolder(out, {}) as work:
        work.write(0, 1, KEY, arrays(0))


def test_many_processes_that_begin_and_remove_never_share(tmp_path):
    program = """
import os, sys, time
from storage.errors import LeaseHeld
from storage.workfolder import WorkFolder
out, mark = sys.argv[1:]
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        with WorkFolder(out, {}) as work:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            time.sleep(0.001)
            os.unlink(mark)
            work.remove()
            print("turn")
    except LeaseHeld:
        pass
"""
    words = [sys.executable, "-c", program, str(tmp_path / "out"), str(tmp_path / "mark")]
    children = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(3)]
    turns = [child.communicate(timeout=60)[0].count(b"turn") for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert all(turns)


def test_a_file_is_placed_complete_or_not_at_all(out):
    def fail(work):
        with work.placed("failures.tsv", out) as file:
            file.write(b"half")
            raise KeyError

    with WorkFolder(out, PLAN) as work:
        with pytest.raises(KeyError):
            fail(work)
        assert not os.path.exists(out)
        with work.placed("failures.tsv", out) as file:
            file.write(b"whole")
    with open(out, "rb") as file:
        assert file.read() == b"whole"
    assert os.stat(out).st_mtime <= time.time()
