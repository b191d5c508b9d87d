"""The files of whitenings: kept, found again in a moved home, checked, and deleted."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from storage.catalog import Catalog
from storage.check import check
from storage.cleanup import delete_old_files
from storage.home import Home
from storage.leases import Lease
from storage.spaces import SpaceInfo, drop_space, ensure_space
from storage.whitenings import (
    delete_unused,
    keep_whitening,
    resolved,
    whitening_of,
    whitening_path,
)

DATA = b"as good as any bytes"


def whitened(catalog: Catalog, space: SpaceInfo, name: str, data: bytes = DATA) -> str:
    digest = keep_whitening(catalog.home, data)
    spec = {**space.spec, "whitening": digest, "note": name}
    request = {**space.request, "whitening": digest}
    ensure_space(catalog, name=name, spec=spec, request=request, key=name)
    return digest


def test_a_file_is_named_by_its_bytes_and_private(tmp_path):
    home = Home(str(tmp_path / "home"))
    digest = keep_whitening(home, DATA)
    assert digest == hashlib.sha256(DATA).hexdigest()
    path = Path(whitening_path(home, digest))
    assert path == tmp_path / "home" / "whitening" / f"{digest}.npz"
    assert path.read_bytes() == DATA
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert keep_whitening(home, DATA) == digest
    assert os.listdir(path.parent) == [path.name]


def test_a_request_leads_to_the_file_wherever_the_home_lies(tmp_path):
    request = {"model": "tiny", "whitening": "ab" * 32}
    for name in ("one", "two"):
        found = resolved(Home(str(tmp_path / name)), request)
        assert found == {**request, "whitening": f"{tmp_path}/{name}/whitening/{'ab' * 32}.npz"}
    assert resolved(Home("x"), {"model": "tiny"}) == {"model": "tiny"}
    assert whitening_of({"model": "tiny"}) is None


def test_a_file_goes_with_the_last_space_that_needs_it(
    catalog: Catalog, lease: Lease, space: SpaceInfo
):
    digest = whitened(catalog, space, "one")
    whitened(catalog, space, "two")
    other = whitened(catalog, space, "three", b"others")
    drop_space(catalog, lease, "one")
    assert os.path.exists(whitening_path(catalog.home, digest))
    drop_space(catalog, lease, "two")
    assert not os.path.exists(whitening_path(catalog.home, digest))
    assert os.path.exists(whitening_path(catalog.home, other))


def test_files_of_killed_runs_go_after_a_day(catalog: Catalog, lease: Lease, space: SpaceInfo):
    used = whitened(catalog, space, "one")
    unused = whitening_path(catalog.home, keep_whitening(catalog.home, b"nobody made the space"))
    broken = f"{unused}.0123.tmp"
    Path(broken).write_bytes(b"half")
    assert delete_old_files(catalog, lease) == 0
    old = time.time() - 2 * 86400
    for path in (unused, broken, whitening_path(catalog.home, used)):
        os.utime(path, (old, old))
    assert delete_old_files(catalog, lease) == 2
    assert os.listdir(os.path.dirname(unused)) == [f"{used}.npz"]
    assert delete_unused(catalog) == 0


@pytest.mark.parametrize(
    ("harm", "deep", "said"),
    [
        (None, False, "can't be read: No such file"),
        (b"", False, "does not have the SHA-256"),
        (DATA[:-1], False, "does not have the SHA-256"),
        (DATA + b"s", False, "does not have the SHA-256"),
        (b"as good as many bytes", True, "does not have the SHA-256"),
    ],
)
def test_a_check_names_the_space_and_what_to_do(
    catalog: Catalog, space: SpaceInfo, harm: bytes | None, deep: bool, said: str
):
    path = whitening_path(catalog.home, whitened(catalog, space, "one"))
    assert check(catalog, deep=deep) == []
    if harm is None:
        os.unlink(path)
    else:
        Path(path).write_bytes(harm)
    [found] = check(catalog, deep=deep)
    assert (found.severity, found.repaired) == ("error", False)
    assert found.what.startswith(f"space one: {path}")
    assert said in found.what
    assert "lookalike whiten" in found.what
