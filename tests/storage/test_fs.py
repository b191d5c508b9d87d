import ast
import os
from pathlib import Path

import pytest

from storage.fs import Fs, fs, open_stream, using

ROOMS = Path(__file__).parents[2]
CALLS = {
    "fsync", "fdatasync", "sync", "rename", "renames", "replace", "unlink", "remove", "rmdir",
    "O_CREAT",
}  # fmt: skip
ALLOWED = {
    "storage/fs.py": CALLS,
    "storage/folder_lock.py": {"O_CREAT"},  # a lock ends with its process: nothing to keep
    "storage/scratch.py": {"O_CREAT", "rename"},  # the same
}


class Recording(Fs):
    """The real file system, which remembers what was written."""

    def __init__(self):
        self.written = []

    def write(self, fd, data):
        self.written.append(bytes(data))
        return super().write(fd, data)


def test_a_stand_in_is_in_force_until_its_end_and_after_trouble_too():
    real, other = fs(), Recording()
    with using(other):
        assert fs() is other
    assert fs() is real
    with pytest.raises(FileNotFoundError), using(other):
        fs().unlink("/nowhere/at all")
    assert fs() is real


def test_what_is_written_to_a_stream_goes_through_the_file_system(tmp_path):
    path = str(tmp_path / "file")
    Path(path).write_bytes(b"what was there before")
    disk = Recording()
    with using(disk), open_stream(path, 4) as file:
        file.write(b"abcdef")
        file.seek(1)
        assert file.read(2) == b"bc"
        file.seek(0)
        file.write(b"A")
        file.flush()
        fs().fsync(file.fileno())
        file.truncate(3)
    assert Path(path).read_bytes() == b"Abc"
    assert b"".join(disk.written) == b"abcdefA"


def test_a_new_file_is_never_one_that_is_there(tmp_path):
    path = str(tmp_path / "file")
    os.close(fs().open_new(path))
    with pytest.raises(FileExistsError):
        fs().open_new(path)


def found_in(source):
    """Return the calls that change files and go past the file system in force."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "os" and node.attr in CALLS:
                yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            mode = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "mode")]
            if node.func.id == "open" and mode and set(ast.literal_eval(mode[0])) & set("wxa+"):
                yield "open"


def test_every_durable_write_goes_through_the_file_system_in_force():
    paths = [*(ROOMS / "storage").rglob("*.py"), *(ROOMS / "flows" / "batch").rglob("*.py")]
    past = {
        (name, call)
        for path in paths
        for name in [str(path.relative_to(ROOMS))]
        for call in found_in(path.read_text())
        if call not in ALLOWED.get(name, ())
    }
    assert past == set()


@pytest.mark.parametrize(
    "line",
    ["os.fsync(1)", "os.replace(a, b)", "f(os.O_CREAT)", "open(p, 'r+b')", "open(p, mode='x')"],
)
def test_a_call_past_it_is_seen(line):
    assert list(found_in(f"import os\nx = {line}\n"))
