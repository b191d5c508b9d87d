"""What other people's files, names and folders can't do: see ``docs/threats.md``."""

import ast
import contextlib
import csv
import fnmatch
import io
import json
import os
import random
import re
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from extractor.decode import DecodeError, decode
from extractor.errors import UnknownModel, WeightsError
from extractor.loader import Source, load
from extractor.models import ModelRequest, open_model
from extractor.preprocess import Preprocess
from extractor.reading import Unread, opened
from extractor.weights import read_file
from flows.commands.show import printable
from flows.job.report import Report
from flows.samples import draw_families
from flows.server.process import Start, _environment
from search.query import open_engine
from search.sheet import sheet
from storage.catalog import Catalog
from storage.errors import PartError, SourceError, SpaceError, StorageError
from storage.home import Home
from storage.leases import start_run
from storage.npy import map_npy
from storage.sources.directory import DirectorySource
from storage.sources.opening import open_source
from storage.spaces import ensure_space
from tests.reliability.scale import scale, tally
from tests.storage.job import Job, digest_of, put

CHECKOUT = Path(__file__).parents[2]
SEED = 20261122
SMALL = ("--model", "shufflenet_v2_x0_5", "--weights", "random:0")
ROOMS = ("extractor", "flows", "search", "storage")
posix = pytest.mark.skipif(os.name == "nt", reason="links and permissions are those of POSIX")

# What a terminal obeys, what forges a line, what turns text round, and what is no text at all.
NAMES = [
    b"new\nline.jpg",
    b"\x1b]0;owned\x07title.jpg",
    b"\xc2\x9b31mred.jpg",
    b"\xe2\x80\xaegpj.exe.jpg",
    b"\r\x1b[2Kover.jpg",
    b"not-\xff\xfe-utf8.jpg",
    b"<img src=x onerror=alert(1)>.jpg",
    b"'; DROP TABLE file; --.jpg",
    b"100%_like\\.jpg",
    b'=cmd|"calc",x.jpg',
    b"--force.jpg",
]


def trees():
    for room in ROOMS:
        for path in sorted((CHECKOUT / room).rglob("*.py")):
            yield path, ast.parse(path.read_text())


# --- nothing unpickles ---------------------------------------------------------------------------

BANNED = {"eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
MUST_SAY = {
    "np.load": ("allow_pickle", "False"),
    "numpy.load": ("allow_pickle", "False"),
    "torch.load": ("weights_only", "True"),
}
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def fault(node):
    """Return what is wrong with a piece of code that may run what a file says, or None."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
        return next((name for name in names if name.partition(".")[0] in MODULES), None)
    if not isinstance(node, ast.Call):
        return None
    called, said = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
    word, due = MUST_SAY.get(called, ("", None))
    wrong = called in BANNED or "shell" in said or said.get("allow_pickle", "False") != "False"
    return ast.unparse(node) if wrong or said.get(word) != due else None


def complaints(tree):
    """Yield the line and the fault of each way to run what a file says."""
    return [(node.lineno, what) for node in ast.walk(tree) if (what := fault(node))]


def test_no_module_reads_a_format_that_runs_code():
    modules = list(trees())
    found = [f"{path}:{line}: {what}" for path, tree in modules for line, what in complaints(tree)]
    assert found == []
    assert len(modules) > 150


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from cloudpickle import loads", "np.load(path)", "torch.load(path)",
        "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "eval(text)",
        "np.load(path, allow_pickle=flag)", "yaml.load(text)", "subprocess.run(line, shell=True)",
    ],
)  # fmt: skip
def test_the_rule_would_find_it(code):
    assert list(complaints(ast.parse(code)))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors"])
@pytest.mark.parametrize("how", ["zip", "old", "bare"])
def test_a_weights_file_runs_no_code_whatever_its_name(suffix, how, tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / f"weights{suffix}"
    if how == "bare":
        path.write_bytes(f"cposix\nmkdir\n(S'{sprung}'\ntR.".encode())
    else:
        state = {"state_dict": {"a": torch.ones(1)}, "trap": Trap(sprung)}
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(WeightsError):
        read_file(str(path))
    assert not sprung.exists()
    with contextlib.suppress(RuntimeError):  # what it holds beside the trap is no weights file
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert sprung.exists()  # it is a trap


OWN = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def test_a_network_of_ones_own_is_run_only_from_the_file_that_made_the_space(
    home, tmp_path, monkeypatch
):
    sprung = tmp_path / "sprung"
    for folder, code in (("mine", OWN), ("theirs", f"import os\nos.mkdir({str(sprung)!r})\n{OWN}")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own_and_only.py").write_text(code)
    monkeypatch.chdir(tmp_path / "mine")
    request = ModelRequest(model="own_and_only:net")
    spec = {**open_model(request).spec.to_json(), "dtype": "float32"}
    with Catalog.open(home, write=True) as catalog:
        asked = {"model": "own_and_only:net", "layer": None, "weights": "DEFAULT"}
        space = ensure_space(catalog, name="own", spec=spec, request=asked, key="own")
    assert open_engine(space, "cpu")
    del sys.modules["own_and_only"]
    monkeypatch.chdir(tmp_path / "theirs")
    with pytest.raises(SpaceError, match="was made by another file than what own_and_only:net is"):
        open_engine(space, "cpu")
    assert not sprung.exists()
    with contextlib.suppress(UnknownModel):
        open_model(request)  # a person who asks for it by name gets what lies here
    assert sprung.exists()


def test_an_array_of_objects_is_neither_a_part_nor_a_source(tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / "a.npy"
    np.save(path, np.array([Trap(sprung)] * 3, object), allow_pickle=True)
    for dtype in ("<f4", "<i8"):
        with pytest.raises(PartError):
            map_npy(str(path), dtype, (3,))
    with pytest.raises((SourceError, StorageError)):
        open_source(str(path))
    assert not sprung.exists()


# --- only pictures are decoded -------------------------------------------------------------------

LEFT_OUT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file closefile\n%%EOF\n",
    b"\xc5\xd0\xd3\xc6" + bytes(60),
    b"%PDF-1.4\n1 0 obj <</Type/Catalog>> endobj\n",
    b"\xd7\xcd\xc6\x9a" + bytes(60),
    b"\x01\0\0\0" + bytes(36) + b" EMF" + bytes(60),
    b"8BPS\0\1" + bytes(60),
    b"SIMPLE  =                    T" + bytes(60),
    b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    b"<?xml version='1.0'?><!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>",
    b"push graphic-context\nimage over 0,0 0,0 'https://x/y.jpg'\n",
    b"\0\0\1\0\1\0" + bytes(60),
    b"P6 9 9 255\n" + bytes(243),
    b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
    b"qoif" + bytes(60),
)

ONLY_THESE = """
import sys
from extractor.decode import DecodeError, decode
for line in sys.stdin:
    try:
        decode(bytes.fromhex(line))
        print("decoded")
    except DecodeError as error:
        print(error.failure_class)
print(*sorted(m for m in sys.modules if m.startswith("PIL.") and m.endswith("Plugin")))
"""


def test_no_other_decoder_is_even_loaded():
    done = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        data = io.BytesIO()
        Image.new("RGB", (9, 9)).save(data, kind)
        done.append(data.getvalue())
    said = subprocess.run(
        [sys.executable, "-c", ONLY_THESE], cwd=CHECKOUT, text=True, capture_output=True,
        input="".join(f"{data.hex()}\n" for data in (*done, *LEFT_OUT)), check=True, timeout=120,
    )  # fmt: skip
    *classes, plugins = said.stdout.splitlines()
    assert classes == ["decoded"] * len(done) + ["unsupported"] * len(LEFT_OUT)
    known = [
        "Avif",
        "Bmp",
        "Gif",
        "Jpeg",
        "Mpo",
        "Png",
        "Ppm",
        "Tiff",
        "WebP",
    ]  # Ppm is one of Pillow's own five
    assert {*plugins.split()} <= {f"PIL.{name}ImagePlugin" for name in known}


def claimed(rng):
    """Return the header of a picture that claims a size, and no more than a few bytes of it."""
    wide, high = (int(10 ** rng.uniform(4.4, 9.2)) for _ in range(2))
    if rng.random() < 0.5:
        head = b"IHDR" + struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 0)
        body = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        return b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 9) + b"IDAT" + bytes(9)
    return b"BM" + struct.pack("<IHHIIIIHHIIIIII", 99, 0, 0, 54, 40, wide, high, 1, 24, *[0] * 6)


def test_a_claim_of_any_size_is_refused_before_memory_is_taken():
    import resource

    rng, n = random.Random(SEED), scale(ci=300, long=20_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(n):
        with pytest.raises(DecodeError) as caught:
            decode(claimed(rng))
        assert caught.value.failure_class == "too_large"
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 64 << 10  # kB
    tally("claims", seed=SEED, claims=n, decoded=0)


# --- links lead nowhere else ---------------------------------------------------------------------

PREPROCESS = Preprocess(8, 8)


def tiny(catalog):
    """Return a space of no network."""
    return ensure_space(
        catalog,
        name=None,
        spec={"dim": 8, "dtype": "float32", "decode_version": 1, "architecture": "tiny"},
        request={"model": "tiny", "layer": "pool", "weights": "DEFAULT"},
        key="tiny:pool",
    )


def loaded(sources):
    return list(load(sources, wants=lambda _: False, preprocess=PREPROCESS, workers=1))


@pytest.fixture
def secret(tmp_path):
    """Return a folder outside of the root with a file that nobody is to have."""
    put(tmp_path / "outside", {"deep/a.jpg": b"secret"})
    return tmp_path / "outside"


def file_link(job, secret):
    (job.folder / "deep" / "a.jpg").unlink()
    (job.folder / "deep" / "a.jpg").symlink_to(secret / "deep" / "a.jpg")


def folder_link(job, secret):
    (job.folder / "deep").rename(job.folder / "away")
    (job.folder / "deep").symlink_to(secret / "deep")


def upper_link(job, secret):
    (job.folder / "top").mkdir()
    (job.folder / "deep").rename(job.folder / "top" / "deep")
    (job.folder / "deep").symlink_to("../outside/deep")


def device_link(job, secret):
    (job.folder / "deep" / "a.jpg").unlink()
    (job.folder / "deep" / "a.jpg").symlink_to("/dev/zero")


def pipe(job, secret):
    (job.folder / "deep" / "a.jpg").unlink()
    os.mkfifo(job.folder / "deep" / "a.jpg")


@posix
@pytest.mark.parametrize("swap", [file_link, folder_link, upper_link, device_link, pipe])
def test_what_is_put_in_place_of_a_file_after_the_scan_leads_nowhere(
    swap, catalog, secret, tmp_path
):
    space = tiny(catalog)
    folder = tmp_path / "photos"
    put(folder, {"deep/a.jpg": b"picture"})
    job = Job(catalog, start_run(catalog, "index"), space, folder)
    job.scan()
    chunk = job.claim()
    assert chunk is not None
    (work,) = chunk.work
    (honest,) = loaded([Source(1, work.path, inside=work.inside)])
    assert honest.digest == digest_of(b"picture")
    swap(job, secret)
    (swapped,) = loaded([Source(1, work.path, inside=work.inside)])
    assert swapped.digest is None
    assert swapped.failure is not None
    assert swapped.failure.failure_class in ("vanished", "not_a_file")
    assert job.scan().scanned == 0 or swap is folder_link or swap is upper_link
    if swap in (file_link, folder_link, upper_link):  # without the folder it would have been had
        (followed,) = loaded([Source(1, work.path)])
        assert followed.digest == digest_of(b"secret")


@posix
def test_a_link_that_comes_and_goes_is_never_followed(tmp_path, secret):
    folder, n = tmp_path / "photos", scale(ci=1_500, long=200_000)
    put(folder, {"real/a.jpg": b"picture"})
    (folder / "link").symlink_to(secret / "deep")
    path = os.fsencode(folder / "real" / "a.jpg")
    over = threading.Event()

    def swapping():
        """Let ``real`` be a folder and a link to another one by turns."""
        while not over.is_set():
            os.rename(folder / "real", folder / "kept")
            os.rename(folder / "link", folder / "real")
            os.rename(folder / "real", folder / "link")
            os.rename(folder / "kept", folder / "real")

    seen = {True: set(), False: set()}
    refused = 0
    thread = threading.Thread(target=swapping)
    thread.start()
    try:
        for i in range(n):
            inside = os.fsencode(folder) if i % 3 else None
            try:
                with opened(path, 100, inside) as file:
                    seen[inside is not None].add(file.read())
            except Unread:
                refused += 1
    finally:
        over.set()
        thread.join()
    assert seen[True] == {b"picture"}
    assert refused
    assert b"secret" in seen[False]  # the test bites: whoever follows links gets it
    tally("link races", opens=n, refused=refused, followed=0)


@posix
def test_the_root_may_be_a_link_and_a_manifest_may_name_one(tmp_path):
    put(tmp_path / "photos", {"a.jpg": b"picture", "b/c.jpg": b"other"})
    (tmp_path / "root").symlink_to("photos")
    root = os.fsencode(tmp_path / "root")
    for name in (b"a.jpg", b"b/c.jpg"):
        with opened(os.path.join(root, name), 100, root) as file:
            assert file.read() in (b"picture", b"other")
    (tmp_path / "named.jpg").symlink_to("photos/a.jpg")
    with opened(os.fsencode(tmp_path / "named.jpg"), 100) as file:
        assert file.read() == b"picture"
    with pytest.raises(Unread), opened(os.fsencode(tmp_path / "named.jpg"), 100, root):
        pass


@posix
def test_a_directory_of_extract_is_one_root_too(tmp_path, secret):
    from flows.batch.pictures import picture_of
    from storage.begun import Begun

    put(tmp_path / "photos", {"deep/a.jpg": b"picture"})
    with DirectorySource(os.fsencode(tmp_path / "photos")) as source:
        (item,) = source.items()
        picture = picture_of(source, 1, item, Begun(str(tmp_path / "work")))
    (tmp_path / "photos" / "deep" / "a.jpg").unlink()
    (tmp_path / "photos" / "deep" / "a.jpg").symlink_to(secret / "deep" / "a.jpg")
    (got,) = loaded([picture])
    assert got.digest is None


@posix
def test_a_sheet_waits_for_no_pipe_and_reads_no_device(tmp_path):
    from search.answers import Answer

    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    started = time.monotonic()
    for name in ("pipe.jpg", "zero.jpg"):
        sheet([Answer(os.fsencode(tmp_path / name), "s", ())])
    assert time.monotonic() - started < 20


# --- names ---------------------------------------------------------------------------------------


def command(capfd, *words):
    """Run a command in this process; return its code, stdout and stderr as bytes."""
    import flows.cli

    before = sys.argv
    sys.argv = ["lookalike", *words]
    try:
        code = flows.cli._run()
        sys.stdout.flush()
    finally:
        sys.argv = before
    out, err = capfd.readouterr()
    return code, out, err


def is_tame(text):
    """Return whether text holds nothing that a terminal obeys, but for the ends of its lines."""
    return all(line.isprintable() for line in text.split("\n"))


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Return a folder whose own name and pictures are odd, one picture broken, and a home."""
    place = tmp_path_factory.mktemp("odd")
    draw_families(str(place / "drawn"), 3, seed=5)
    drawn = sorted((place / "drawn").rglob("*.*"))
    root = os.fsencode(place) + b"/ro\x1b[31mot\n"
    os.mkdir(root)
    for i, name in enumerate(NAMES):
        os.rename(drawn[i], os.path.join(root, name))
    with open(os.path.join(root, b"bro\x1b[5mken\n\x07.jpg"), "wb") as file:
        file.write(b"\xff\xd8\xff broken")
    time.sleep(2.6)  # as old as pictures are that a person has
    old = os.umask(0)  # the most careless of all
    try:
        home = place / "home"
        home.mkdir(mode=0o755)
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "--home", str(home), "index", root, "--no-prefect",
             *SMALL],
            cwd=CHECKOUT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        os.umask(old)
    assert done.returncode == 3, done.stderr
    return root, home, done


def test_odd_names_are_indexed_and_told_tamely(odd):
    _, _, done = odd
    assert f"{len(NAMES)} images extracted" in done.stdout
    assert is_tame(done.stdout), done.stdout
    assert is_tame(done.stderr), done.stderr


def test_no_command_writes_a_name_that_a_terminal_obeys(odd, capfd, tmp_path):
    root, home, _ = odd
    first = os.fsdecode(os.path.join(root, NAMES[1]))
    broken = os.fsdecode(os.path.join(root, b"bro\x1b[5mken\n\x07.jpg"))
    place = ("--home", str(home))
    wild = "no\x1b[2Jthing\n"
    runs = [
        (0, ["search", first, "-k", "99", *place]),
        (2, ["search", broken, *place]),
        (2, ["search", os.fsdecode(root) + "/" + wild, *place]),
        (2, ["search", first, "--space", wild, *place]),
        (0, ["status", *place]),
        (0, ["failures", *place]),
        (0, ["roots", "list", *place]),
        (0, ["spaces", "list", *place]),
        (0, ["spaces", "show", *place]),
        (0, ["check", *place]),
        (0, ["export", "-", str(tmp_path / "o\x1bdd.csv"), *place]),
        (2, ["export", wild, str(tmp_path / "x.csv"), *place]),
        (2, ["index", os.fsdecode(root) + wild, *place]),
        (0, ["index", os.fsdecode(root), "--plan", *place]),
        (2, ["failures", wild, *place]),
        (2, ["status", f"--{wild}", *place]),
        (2, [wild]),
        (2, ["roots", "remove", os.fsdecode(root) + wild, *place]),
        (2, ["extract", os.fsdecode(root), str(tmp_path / "no" / "o\x1b.npy"), "--model", wild]),
    ]
    for code, words in runs:
        got, out, err = command(capfd, *words)
        assert got == code, (words, got, out, err)
        assert is_tame(out), (words, out)
        assert is_tame(err), (words, err)
        assert out or err, words
        assert "Traceback" not in err, words
        assert "a bug" not in err, (words, err)


def test_json_and_csv_give_every_name_back(odd, capfd, tmp_path):
    root, home, _ = odd
    first = os.fsdecode(os.path.join(root, NAMES[0]))
    code, out, _ = command(capfd, "search", first, "-k", "99", "--json", "--home", str(home))
    assert code == 0
    assert out.isascii()
    assert is_tame(out)
    (answer,) = json.loads(out)
    paths = {os.fsencode(hit["path"]) for hit in answer["hits"]}
    assert {os.path.basename(path) for path in paths} == {*NAMES}
    target = tmp_path / "vectors.csv"
    assert command(capfd, "export", "-", str(target), "--home", str(home))[0] == 0
    with open(target, encoding="utf-8", errors="surrogateescape", newline="") as file:
        ids = {os.fsencode(row[0]) for row in csv.reader(file)}
    assert ids == {*NAMES}


def test_a_report_is_tame_wherever_it_is_shown():
    report = Report()
    report.add_scan(
        {"scanned": 1, "unchanged": 0, "reasons": {}, "unreadable_count": 1, "future": 0,
         "unreadable": [("/p/\x1b[2J\n# All is well\n", "permission")]}
    )  # fmt: skip
    report.add_unavailable("/q", "/q\x1b]0;x\x07\n- forged is gone")
    report.finish(1.0)
    for text in (report.to_text(), report.to_markdown(), "\n".join(report.trouble_lines())):
        assert is_tame(text), text
        assert "\n# All is well" not in text
        assert "\n- forged" not in text
    assert json.loads(json.dumps(report.to_json()))["troubles"]["4"] == report.troubles[4]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_one_line_and_is_told_apart(name):
    shown = printable(name)
    assert shown.isprintable()
    assert len({printable(other) for other in NAMES}) == len(NAMES)


# --- the home ------------------------------------------------------------------------------------


@posix
def test_the_home_is_for_its_owner_alone_whatever_the_umask(odd):
    _, home, _ = odd
    assert stat.S_IMODE(home.stat().st_mode) == 0o755  # it was there before: its owner's choice
    below = sorted(home.rglob("*"))
    assert {path.name for path in below} >= {"catalog.sqlite", "store.json", "spaces", "parts"}
    open_to_others = [str(path) for path in below if path.stat().st_mode & 0o077]
    assert open_to_others == []


@posix
def test_a_home_that_is_made_is_for_its_owner_alone(tmp_path):
    old = os.umask(0)
    try:
        with Catalog.open(Home(str(tmp_path / "a" / "home")), write=True):
            pass
    finally:
        os.umask(old)
    for path in (tmp_path / "a", *(tmp_path / "a").rglob("*")):
        assert not path.stat().st_mode & 0o077, path


# --- servers -------------------------------------------------------------------------------------


def test_the_page_of_another_site_may_not_ask_prefects_server(monkeypatch, tmp_path):
    monkeypatch.delenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", raising=False)
    told = _environment(Start(str(tmp_path), 4321))
    assert told["PREFECT_SERVER_API_HOST"] == "127.0.0.1"
    origins = told["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert origins == ["http://127.0.0.1:4321", "http://localhost:4321"]
    program = (
        "from prefect.settings import PREFECT_SERVER_CORS_ALLOWED_ORIGINS as origins\n"
        "print(origins.value())"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], env=told, capture_output=True, text=True, timeout=120
    )
    assert said.stdout.strip() == ",".join(origins)  # Prefect reads it by this name
    monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "https://mine")
    told = _environment(Start(str(tmp_path), 4321))
    assert told["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "https://mine"


# --- the pages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["promises.md", "threats.md"])
def test_every_test_that_a_page_names_is_there(page):
    text = (CHECKOUT / "docs" / page).read_text()
    text = text.replace("`S::", "`tests/reliability/test_security.py::")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) >= 15
    for path, name in named:
        assert not name or f"def {name}(" in (CHECKOUT / path).read_text(), (path, name)
        assert (CHECKOUT / path).is_file(), path


def test_every_place_for_counts_is_that_of_a_test_which_counts():
    tests = "".join(path.read_text() for path in (CHECKOUT / "tests/reliability").glob("*.py"))
    written = re.findall(r"\b(?:tally|judged)\(f?\"([^\"]+)\"", tests)
    names = [re.sub(r"\{.+?\}", "x", name) for name in written]
    places = re.findall(r"<!--counts (.+?)-->", (CHECKOUT / "docs/promises.md").read_text())
    assert [place for place in places if not fnmatch.filter(names, place)] == []


def test_the_counts_of_a_long_run_are_filled_in(tmp_path):
    entries = [
        {"name": "kills of a writer, sqlite", "long": True, "seed": 7, "kills": 9000, "lost": 0},
        {"name": "kills of a writer, postgres", "long": True, "seed": 7, "kills": 1000, "lost": 0},
        {"name": "kills of a writer, sqlite", "long": False, "seed": 7, "kills": 5},
        {"name": "power cuts", "long": True, "seconds": 3, "cuts": 50_000, "lost": 0},
        {"name": "mutant: no_fsync", "long": True, "check": "power", "runs": 40, "caught": 12},
    ]
    shutil.copy(CHECKOUT / "docs" / "promises.py", tmp_path)
    page = tmp_path / "promises.md"
    shutil.copy(CHECKOUT / "docs" / "promises.md", page)
    (tmp_path / "tally").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    for _ in range(2):  # a second time it replaces what it wrote
        script = [sys.executable, str(tmp_path / "promises.py"), str(tmp_path / "tally")]
        subprocess.run(script, check=True, timeout=60)
        cells = dict(re.findall(r"<!--counts (.+?)-->(.*?)<!--end-->", page.read_text()))
        assert cells["kills*"] == "2 entries, 10,000 kills, 0 lost"
        assert cells["power cuts*"] == "50,000 cuts, 0 lost"
        assert cells["mutant: *"] == "40 runs, 12 caught"
        assert cells["link races"] == "not run"
