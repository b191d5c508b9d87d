"""The whole job in this process: scan, extract, commit, publish; each case on a real tree."""

import hashlib
import http.server
import os
import shutil
import sqlite3
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError

from extractor.errors import DeviceError
from flows.errors import Stopped, WorkerLost
from flows.job.claiming import chunk_size
from flows.job.extraction import extract_step
from flows.job.loop import IndexOptions, run_index
from flows.job.orders import ChunkOrder, Place
from flows.job.patience import patiently
from flows.job.progress import Progress
from flows.job.remote import following, passing_on
from flows.job.spaces import SpaceChoice, make_space
from flows.job.steps import PlainSteps
from flows.job.worker import bench_for, bench_of, clear_bench
from flows.run import plan
from flows.samples import VARIATIONS, draw_families
from storage.catalog import Catalog
from storage.chunks import claim_chunk
from storage.errors import CatalogError, DiskFull, LeaseHeld, LeaseLost, SpaceError
from storage.files import scan_root
from storage.home import Home
from storage.leases import Lease, finish_run, start_run
from storage.roots import list_roots
from storage.runs import claim
from storage.spaces import drop_space, get_space, list_spaces
from storage.tables import Claim, Failure, File, Generation, Part, Root, Run, Space, Vector

TINY = SpaceChoice(model="resnet18", weights="random:0")


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "pictures"
    draw_families(str(folder), 2, seed=3)
    return folder


@pytest.fixture
def options(catalog_home, tree):
    made = IndexOptions(
        home=catalog_home.path,
        catalog_url=catalog_home.catalog_url,
        roots=(str(tree),),
        choice=TINY,
    )
    yield made
    clear_bench(made.home, made.catalog_url)


def go(options, **changes):
    """Run and forget what the process holds, as a command does."""
    options = IndexOptions(**{**vars(options), **changes})
    try:
        with PlainSteps() as steps:
            return run_index(options, steps=steps, progress=Progress("silent"))
    finally:
        clear_bench(options.home, options.catalog_url)


def opened(options, write=False):
    return Catalog.open(Home(options.home, options.catalog_url), write=write)


def count(options, table, *where):
    with opened(options) as catalog, catalog.read() as conn:
        return conn.execute(select(func.count()).select_from(table).where(*where)).scalar()


def settle():
    """Wait until the files just made are old enough to be trusted once they are read."""
    time.sleep(2.6)


def mirror(path):
    with Image.open(path) as picture:
        ImageOps.mirror(picture.convert("RGB")).save(path, quality=90)


def test_first_run_extracts_all_and_the_second_nothing(options):
    first = go(options)
    n = 2 * len(VARIATIONS)
    assert (first.scanned, first.new, first.extracted, first.failed) == (n, n, n, 0)
    assert first.space == "resnet18-avgpool"
    assert first.index is not None
    assert first.index["n"] == n
    assert first.exit_code() == 0
    assert {"scan", "forward", "commit", "publish"} <= set(first.stages)
    second = go(options, roots=(), choice=SpaceChoice())
    assert (second.scanned, second.extracted, second.failed) == (n, 0, 0)
    assert second.index is None
    assert count(options, Claim) == 0
    assert count(options, Run, Run.state == "done") == 2


def test_each_kind_of_change_is_told_apart_and_only_new_content_is_extracted(options, tree):
    settle()
    go(options)
    a, b = tree / "family-000", tree / "family-001"
    os.utime(a / "plain.jpg")  # touched
    mirror(a / "dark.jpg")  # edited
    os.rename(a / "warm.jpg", b / "moved.jpg")
    shutil.copy(a / "crop.jpg", b / "copied.jpg")
    (b / "blur.jpg").unlink()
    report = go(options, roots=())
    assert (report.extracted, report.touched, report.moved, report.copied) == (1, 1, 1, 1)
    assert report.missing == 2  # the deleted one, and where the moved one was
    assert report.new == 2
    assert report.failed == 0


def test_a_file_gone_and_back_is_not_extracted_again(options, tree, tmp_path):
    go(options)
    shutil.move(tree / "family-000" / "png.png", tmp_path / "aside.png")
    assert go(options, roots=()).missing == 1
    shutil.move(tmp_path / "aside.png", tree / "family-000" / "png.png")
    report = go(options, roots=())
    assert (report.back, report.extracted) == (1, 0)


def test_bad_pictures_are_recorded_once_and_cost_nothing_later(options, tree):
    (tree / "text.jpg").write_text("not a picture")
    whole = (tree / "family-000" / "plain.jpg").read_bytes()
    (tree / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tree / "empty.jpg").write_bytes(b"")
    first = go(options)
    assert first.failed == 3
    assert sum(first.failures.values()) == 3
    assert first.extracted == 2 * len(VARIATIONS)
    assert first.exit_code() == 3
    second = go(options, roots=())
    assert (second.failed, second.exit_code()) == (0, 0)
    assert count(options, Failure) == 3


def test_too_many_failures_are_an_exit_code_of_their_own(options, tree):
    (tree / "text.jpg").write_text("not a picture")
    assert go(options, max_failures=0.9).exit_code() == 3
    (tree / "text2.jpg").write_text("not a picture either")
    report = go(options, roots=(), max_failures=0.01)
    assert report.exit_code() == 7


def test_the_vectors_of_good_pictures_do_not_shift_beside_bad_ones(options, tree, tmp_path):
    from tests.reliability.test_kill import vectors_by_digest

    go(options)
    alone = vectors_by_digest(Home(options.home, options.catalog_url))
    for n in range(5):
        (tree / "family-000" / f"a{n}.jpg").write_text(f"bad {n}")
    other = Home(str(tmp_path / "other"))
    go(options, home=other.path, catalog_url=None, batch_size=3)
    together = vectors_by_digest(other)
    assert alone.keys() == together.keys()
    for digest, vector in alone.items():
        assert float(vector @ together[digest]) >= 0.999999


def test_a_root_that_is_gone_changes_nothing_and_the_others_go_on(options, tree, tmp_path):
    go(options)
    other = tmp_path / "more"
    draw_families(str(other), 1, seed=9)
    tree.rename(tmp_path / "elsewhere")
    with opened(options, write=True) as catalog:
        from storage.roots import add_root

        add_root(catalog, os.fsencode(other))
    report = go(options, roots=())
    assert report.exit_code() == 4
    assert report.extracted == len(VARIATIONS)
    assert count(options, File, File.state == "live") == 3 * len(VARIATIONS)


def test_nothing_of_a_root_that_cannot_be_scanned_is_extracted(options, tree, tmp_path):
    other = tmp_path / "more"
    draw_families(str(other), 1, seed=9)
    go(options, roots=(str(tree), str(other)))  # too fresh to be trusted: pending again
    for path in tree.rglob("*.*"):
        path.unlink()
    before = files_under(options, tree)
    report = go(options, roots=())
    assert report.exit_code() == 4
    assert report.failed == 0
    assert report.touched == len(VARIATIONS)  # the other root went on
    assert files_under(options, tree) == before
    assert count(options, Failure) == 0
    shutil.rmtree(other)
    other.mkdir()
    report = go(options, roots=(str(tree), str(other)))
    assert (report.exit_code(), report.failed, report.touched) == (4, 0, 0)


def files_under(options, root):
    query = select(File).join(Root, Root.id == File.root_id).where(Root.path == os.fsencode(root))
    columns = File.__table__.columns.keys()
    with opened(options) as catalog, catalog.read() as conn:
        rows = conn.execute(query.with_only_columns(*(getattr(File, name) for name in columns)))
        return sorted(map(tuple, rows))


def test_pending_files_of_a_root_in_other_hands_are_left_to_them(options, monkeypatch):
    import flows.job.worker

    go(options)  # too fresh to be trusted: pending again
    monkeypatch.setattr(flows.job.worker, "ROOT_WAIT_S", 0.2)
    with opened(options, write=True) as catalog:
        other = start_run(catalog, "index")
        claim(catalog, other, "root", list_roots(catalog)[0].id)
        report = go(options, roots=(), index_spec="Flat")
        finish_run(catalog, other, "done")
    assert (report.exit_code(), report.touched) == (6, 0)
    assert report.index["factory"] == "Flat"  # what is there is published all the same
    assert go(options).touched == 2 * len(VARIATIONS)


def test_a_second_model_is_a_space_beside_the_first(options):
    go(options)
    report = go(options, choice=SpaceChoice(model="squeezenet1_0", weights="random:1"))
    assert report.extracted == 2 * len(VARIATIONS)
    with opened(options) as catalog:
        assert [space.current for space in list_spaces(catalog)] == [True, False]
        assert get_space(catalog, None).name == "resnet18-avgpool"
    both = go(options, roots=(), choice=SpaceChoice(space="all"))
    assert both.extracted == 0
    assert ", " in both.space


def test_a_name_that_means_another_space_is_refused(options):
    go(options)
    with pytest.raises(SpaceError, match="resnet18-avgpool"):
        go(options, choice=SpaceChoice(model="resnet18", weights="random:0", space="other"))
    assert count(options, Run, Run.state == "failed") == 1


def test_a_stop_keeps_what_is_finished_and_gives_the_rest_back(options):
    stop_after = 6
    bench = bench_for(options.home, options.catalog_url)

    class Stopping(Progress):
        def advance(self, n=1, failed=0):
            super().advance(n, failed)
            if self.done >= stop_after:
                bench.stop.set()

    progress = Stopping("silent")
    options = IndexOptions(**{**vars(options), "batch_size": 2, "chunk_size": 12})
    with PlainSteps() as steps:
        report = run_index(options, steps=steps, progress=progress)
    clear_bench(options.home, options.catalog_url)
    assert report.exit_code() == 130
    assert stop_after <= report.extracted < 2 * len(VARIATIONS)
    assert count(options, Claim) == 0
    assert count(options, Vector) == report.extracted
    rest = go(options, roots=())
    assert rest.extracted == 2 * len(VARIATIONS) - report.extracted


class Noting(Progress):
    """Keeps what is said, and stops the run at a word."""

    def __init__(self, stop=None, at=""):
        super().__init__("silent")
        self.said = []
        self.stop, self.at = stop, at

    def note(self, line):
        self.said.append(line)
        if self.stop is not None and self.at in line:
            self.stop.set()


def stopped_at(options, at):
    """Run until ``at`` is said, and stop there."""
    progress = Noting(bench_for(options.home, options.catalog_url).stop, at)
    try:
        with PlainSteps() as steps:
            return run_index(options, steps=steps, progress=progress)
    finally:
        clear_bench(options.home, options.catalog_url)


def test_a_stop_in_a_scan_ends_it_between_two_files(options, tree):
    settle()
    go(options)
    (tree / "more.jpg").write_bytes(b"x")
    before = files_under(options, tree)
    bench = bench_for(options.home, options.catalog_url)

    class Stopping(Progress):
        def scanning(self, root, n):
            bench.stop.set()

    with PlainSteps() as steps:
        report = run_index(options, steps=steps, progress=Stopping("silent"))
    clear_bench(options.home, options.catalog_url)
    assert report.exit_code() == 130
    assert (report.scanned, report.roots, report.troubles, report.pending) == (0, [], {}, 0)
    assert files_under(options, tree) == before
    assert count(options, Claim) == 0
    assert count(options, Run, Run.state == "interrupted") == 1
    assert go(options).new == 1


def test_a_stop_while_the_index_is_built_leaves_the_former_one(options):
    first = go(options)
    report = stopped_at(replace(options, index_spec="Flat"), "building the index")
    assert report.exit_code() == 130
    assert report.index is None
    assert count(options, Generation) == 1
    assert count(options, Claim) == 0
    with opened(options) as catalog:
        folder = catalog.home.index_dir(get_space(catalog, None).fingerprint)
    assert len(os.listdir(folder)) == 2
    assert go(options, index_spec="Flat").index["generation"] > first.index["generation"]


def test_an_interrupted_run_says_how_many_files_are_left(options):
    report = stopped_at(options, "to read for space")
    assert (report.extracted, report.pending) == (0, 2 * len(VARIATIONS))
    assert f"{2 * len(VARIATIONS)} files left" in report.to_text().splitlines()[0]


class Trickle(http.server.BaseHTTPRequestHandler):
    """Sends a file of weights that takes an hour."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "44000000")
        self.end_headers()
        with suppress(OSError):
            for _ in range(36_000):
                self.wfile.write(b"x" * 1000)
                time.sleep(0.1)

    def log_message(self, *args):
        pass


@pytest.fixture
def slow_weights(monkeypatch, tmp_path):
    """Let the published weights of resnet18 come from a server that takes its time."""
    from torchvision.models import ResNet18_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    member = ResNet18_Weights.IMAGENET1K_V1
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trickle) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/resnet18-f37072fd.pth"
        monkeypatch.setattr(member, "_value_", replace(member.value, url=url))
        yield tmp_path / "torch" / "hub" / "checkpoints"
        server.shutdown()
        thread.join()


def test_a_stop_during_a_download_ends_it_at_once(options, slow_weights):
    bench = bench_for(options.home, options.catalog_url)
    timer = threading.Timer(3.0, bench.stop.set)
    progress = Noting()
    timer.start()
    choice = SpaceChoice(model="resnet18", weights="IMAGENET1K_V1")
    try:
        with PlainSteps() as steps:
            report = run_index(replace(options, choice=choice), steps=steps, progress=progress)
        timer.join()
        stopped = time.monotonic()
    finally:
        clear_bench(options.home, options.catalog_url)
    assert time.monotonic() - stopped < 5
    assert "downloading resnet18-f37072fd.pth (44.0 MB)" in progress.said
    assert (report.exit_code(), report.failed, report.troubles) == (130, 0, {})
    assert list(slow_weights.iterdir()) == []
    assert count(options, Run, Run.state == "interrupted") == 1


def test_a_stop_while_a_chunk_fetches_its_model_gives_the_chunk_back(options, slow_weights):
    choice = SpaceChoice(model="resnet18", weights="random:0")
    go(options, choice=choice)
    with opened(options, write=True) as catalog, catalog.write() as conn:
        request = {"model": "resnet18", "layer": None, "weights": "IMAGENET1K_V1"}
        conn.execute(update(Space).values(request=request))
    mirror(os.path.join(options.roots[0], "family-000", "dark.jpg"))
    report = stopped_at(replace(options, choice=choice), "downloading resnet18")
    # The note comes from the step's own thread, in the middle of the chunk.
    assert (report.exit_code(), report.failed, report.extracted) == (130, 0, 0)
    assert report.pending > 0
    assert count(options, Claim) == 0
    assert list(slow_weights.iterdir()) == []


def test_a_run_that_only_publishes_says_so(options):
    settle()
    go(options)
    go(options)
    report = go(options, roots=(), index_spec="Flat")
    assert report.to_text().startswith("Done: 0 images extracted into space resnet18-avgpool")
    assert report.index["space"] == "resnet18-avgpool"
    assert "Flat, 18 vectors" in report.to_text()


def test_a_run_waits_for_what_another_live_run_has_claimed(options):
    go(options, choice=SpaceChoice(model="squeezenet1_0", weights="random:1"))
    # Another run of this process holds half of the files in a second space.
    bench = bench_for(options.home, options.catalog_url)
    space, _ = make_space(bench.catalog, TINY)
    other = start_run(bench.catalog, "index")
    held = claim_chunk(bench.catalog, other, space, number=1, limit=9)
    assert len(held.work) == 9
    timer = threading.Timer(3.0, finish_run, (bench.catalog, other, "done", {}))
    timer.start()
    try:
        report = go(options)
    finally:
        timer.join()
    assert report.extracted == 2 * len(VARIATIONS)


def test_what_another_run_gives_back_behind_this_one_is_taken_up(options):
    go(options, choice=SpaceChoice(model="squeezenet1_0", weights="random:1"))
    bench = bench_for(options.home, options.catalog_url)
    space, _ = make_space(bench.catalog, TINY)
    other = start_run(bench.catalog, "index")
    held = claim_chunk(bench.catalog, other, space, number=1, limit=9)
    assert len(held.work) == 9  # the files with the lowest numbers

    class GivingBack(Progress):
        def advance(self, n=1, failed=0):
            super().advance(n, failed)
            if self.done == 1:
                finish_run(bench.catalog, other, "interrupted")

    again = replace(options, chunk_size=4, batch_size=1)
    with PlainSteps() as steps:
        report = run_index(again, steps=steps, progress=GivingBack("silent"))
    clear_bench(options.home, options.catalog_url)
    assert report.extracted == 2 * len(VARIATIONS)


def test_a_root_that_is_named_twice_is_scanned_once(options, tree):
    report = go(options, roots=(str(tree), str(tree / "family-000"), str(tree)))
    assert (report.scanned, report.extracted) == (2 * len(VARIATIONS), 2 * len(VARIATIONS))


def test_a_root_that_another_run_scans_is_left_to_it(options, monkeypatch):
    import flows.job.worker

    go(options)
    monkeypatch.setattr(flows.job.worker, "ROOT_WAIT_S", 0.2)
    with opened(options, write=True) as catalog:
        other = start_run(catalog, "index")
        claim(catalog, other, "root", list_roots(catalog)[0].id)
        report = go(options)
        assert report.exit_code() == 6
        assert other.run_id in report.trouble_lines()[0]
        finish_run(catalog, other, "done")
    assert go(options).exit_code() == 0


def test_a_manifest_with_wrong_lines_stops_no_other_root(options, tmp_path, tree):
    manifest = tmp_path / "list.tsv"
    manifest.write_text(f"id\tpath\n1\t{tree}/family-000/plain.jpg\n")
    go(options, roots=(str(manifest), str(tree)))
    manifest.write_text(f"id\tpath\n1\t{tree}/family-000/plain.jpg\n1\t{tree}/other.jpg\n")
    mirror(tree / "family-000" / "dark.jpg")
    report = go(options, roots=())
    assert report.exit_code() == 4
    assert "2" in report.trouble_lines()[0]
    assert "3" in report.trouble_lines()[0]
    assert report.extracted == 1


def test_full_disks_are_refused_before_the_first_forward_pass(options, monkeypatch):
    import flows.job.loop

    monkeypatch.setattr(flows.job.loop, "free_bytes", lambda _path: 1000)
    with pytest.raises(DiskFull, match="float16"):
        go(options)
    assert count(options, Vector) == 0


def test_a_working_run_clears_what_was_replaced_a_day_ago(options, tree):
    go(options)
    mirror(tree / "family-000" / "dark.jpg")
    go(options)  # publishes anew: the first index is replaced
    with opened(options, write=True) as catalog:
        folder = catalog.home.index_dir(get_space(catalog, None).fingerprint)
        assert len(os.listdir(folder)) == 4
        with catalog.write() as conn:
            past = catalog.now(conn) - 90_000
            old = update(Generation).where(Generation.state == "replaced")
            conn.execute(old.values(replaced_at=past))
    assert go(options).extracted == 0
    assert len(os.listdir(folder)) == 4  # nothing was done, nothing is looked for
    mirror(tree / "family-000" / "plain.jpg")
    go(options)
    assert len(os.listdir(folder)) == 4  # one went, one came


def test_the_plan_touches_nothing(options, tree):
    before = plan(options)
    assert not os.path.exists(os.path.join(options.home, "store.json"))
    assert before.scans[0]["reasons"] == {"new": 2 * len(VARIATIONS)}
    assert not before.idle
    settle()
    go(options)
    known = IndexOptions(home=options.home, catalog_url=options.catalog_url)
    assert plan(known).idle
    mirror(tree / "family-000" / "plain.jpg")
    planned = plan(known)
    assert planned.spaces[0]["pending"] == 1
    assert "nothing was touched" in planned.to_text()
    assert count(options, Run) == 1
    assert go(options, roots=()).extracted == 1


def test_chunks_grow_towards_thirty_seconds_of_work(options):
    go(options)
    with opened(options) as catalog:
        space = get_space(catalog, None)
    size = chunk_size(space, None)
    limits = []
    for _ in range(6):
        limits.append(size.limit)
        size.learn(size.limit, size.limit / 100)
    assert limits == [64, 256, 1024, 3000, 3000, 3000]
    assert chunk_size(space, 7).limit == 7


PAIR = "cpu,cpu"


def doubled(folder, number=12):
    """Make pictures that each lie there twice, side by side, and two broken ones likewise."""
    draw_families(str(folder / "drawn"), 2, seed=7)
    drawn = sorted((folder / "drawn").rglob("*.*"))[:number]
    data = [path.read_bytes() for path in drawn] + [b"\xff\xd8\xff broken", b"not a picture"]
    shutil.rmtree(folder / "drawn")
    for n, content in enumerate(data):
        for copy in "ab":
            (folder / f"{n:03}{copy}.jpg").write_bytes(content)


def live_and_written(options):
    """Return how many vectors are live, and how many were ever written."""
    with opened(options) as catalog, catalog.read() as conn:
        written = conn.execute(select(func.sum(Part.n))).scalar()
    return count(options, Vector), int(written)


def test_two_devices_come_to_what_one_comes_to(options, tmp_path):
    from tests.reliability.test_kill import vectors_by_digest

    folder = tmp_path / "doubled"
    folder.mkdir()
    doubled(folder)
    common = {"roots": (str(folder),), "chunk_size": 1, "batch_size": 1}
    other = Home(str(tmp_path / "other"))
    one = go(options, home=other.path, catalog_url=None, **common)
    two = go(options, device=PAIR, **common)
    assert (two.extracted, two.copied, two.failed) == (12, 12, 4)
    for name in ("scanned", "extracted", "copied", "reused", "touched", "failed", "failures"):
        assert getattr(two, name) == getattr(one, name), name
    assert live_and_written(options) == (12, 12)  # none was made twice
    assert count(options, Claim) == 0
    expected = vectors_by_digest(other)
    found = vectors_by_digest(Home(options.home, options.catalog_url))
    assert found.keys() == expected.keys()
    for digest, vector in expected.items():
        assert float(vector @ found[digest]) >= 0.999999


def test_files_of_one_known_image_are_left_to_the_chunk_that_has_it(options, tmp_path):
    folder = tmp_path / "doubled"
    folder.mkdir()
    doubled(folder)
    settle()
    first = replace(options, roots=(str(folder),))
    go(first)
    other = SpaceChoice(model="squeezenet1_0", weights="random:1")
    report = go(first, choice=other, device=PAIR, chunk_size=1, batch_size=1)
    assert (report.extracted, report.failed) == (12, 0)
    assert live_and_written(options) == (24, 24)


def test_each_device_keeps_a_model_of_its_own(options):
    bench = bench_for(options.home, options.catalog_url)
    try:
        with PlainSteps() as steps:
            paired = replace(options, device=PAIR, chunk_size=2, batch_size=1)
            run_index(paired, steps=steps, progress=Progress("silent"))
        space = get_space(bench.catalog, None)
        with ExitStack() as stack:
            seats = [
                stack.enter_context(bench.engines.seat(PAIR, space.id, 0, bench.check))
                for _ in range(2)
            ]
            one, other = (seat.engine for seat in seats)
            assert one is not other
            assert one.module is not other.module
            threading.Timer(0.3, bench.stop.set).start()
            with pytest.raises(Stopped), bench.engines.seat(PAIR, space.id, 0, bench.check):
                pass
    finally:
        clear_bench(options.home, options.catalog_url)


def test_an_error_in_one_of_two_chunks_ends_both(options, monkeypatch):
    import flows.job.extraction

    commit = flows.job.extraction.commit_chunk
    meet = threading.Barrier(2, timeout=60)

    def failing(catalog, lease, space, chunk, **kwargs):
        if chunk.number <= 2:
            meet.wait()  # both chunks are in flight
        if chunk.number == 2:
            raise CatalogError("the disk is gone")
        return commit(catalog, lease, space, chunk, **kwargs)

    monkeypatch.setattr(flows.job.extraction, "commit_chunk", failing)
    with pytest.raises(CatalogError, match="the disk is gone"):
        go(options, device=PAIR, chunk_size=4)
    monkeypatch.undo()
    assert count(options, Claim) == 0
    assert count(options, Run, Run.state == "failed") == 1
    assert count(options, Vector) == 4  # what the other chunk had finished
    rest = go(options)
    assert rest.extracted == 2 * len(VARIATIONS) - 4


def test_a_stop_ends_both_chunks_in_flight(options):
    bench = bench_for(options.home, options.catalog_url)
    lock = threading.Lock()
    seen = set()

    class Stopping(Progress):
        def advance(self, n=1, failed=0):
            with lock:
                seen.add(threading.current_thread().name)
            if len(seen) == 2:
                bench.stop.set()

    again = replace(options, device=PAIR, chunk_size=9, batch_size=1)
    with PlainSteps() as steps:
        report = run_index(again, steps=steps, progress=Stopping("silent"))
    clear_bench(options.home, options.catalog_url)
    assert report.exit_code() == 130
    assert 2 <= report.extracted < 2 * len(VARIATIONS)
    assert report.pending > 0
    assert count(options, Claim) == 0
    assert live_and_written(options) == (report.extracted, report.extracted)


def test_small_work_does_not_ask_for_the_devices(options):
    with pytest.raises(DeviceError, match="no device 'cuda:7'"):
        go(options, device="cpu,cuda:7", chunk_size=4)
    assert go(options).extracted == 2 * len(VARIATIONS)
    report = go(options, device="cpu,cuda:7")  # too fresh to be trusted, and no image is new
    assert (report.touched, report.extracted) == (2 * len(VARIATIONS), 0)


def test_a_device_that_is_not_here_is_refused_before_the_space_is_made(options):
    with pytest.raises(DeviceError, match="no device 'cuda:7'"):
        go(options, device="cuda:7")
    assert count(options, Space) == 0
    assert count(options, Run, Run.state == "failed") == 1


def test_an_order_that_comes_again_does_nothing(options):
    go(options, choice=SpaceChoice(model="squeezenet1_0", weights="random:1"))
    bench = bench_for(options.home, options.catalog_url)
    space, _ = make_space(bench.catalog, TINY)
    lease = start_run(bench.catalog, "index")
    chunk = claim_chunk(bench.catalog, lease, space, number=1, limit=5)
    place = Place(options.home, options.catalog_url, lease)
    order = ChunkOrder(place, space.name, chunk, "cpu", 2, 2)
    first = extract_step(order)
    assert first["outcomes"]["extracted"] == 5
    assert first["duration_s"] > 0
    assert extract_step(order) == {}
    finish_run(bench.catalog, lease, "done")
    assert count(options, Part, Part.space_id == space.id) == 1


def once(act, error):
    """Return ``act``, which raises the error the first time."""
    left = [error]

    def trying(*given, **named):
        if left:
            raise left.pop()
        return act(*given, **named)

    return trying


@pytest.fixture
def one_chunk(options):
    """Return an order of five files, of a run that is going."""
    go(options, choice=SpaceChoice(model="squeezenet1_0", weights="random:1"))
    bench = bench_for(options.home, options.catalog_url)
    space, _ = make_space(bench.catalog, TINY)
    lease = start_run(bench.catalog, "index")
    chunk = claim_chunk(bench.catalog, lease, space, number=1, limit=5)
    yield ChunkOrder(
        Place(options.home, options.catalog_url, lease), space.name, chunk, "cpu", 2, 2
    )
    finish_run(bench.catalog, lease, "done")


def test_a_catalog_that_does_not_answer_holds_no_image_for_ever(one_chunk, monkeypatch):
    import flows.job.extraction

    ask = once(flows.job.extraction.known_digest, CatalogError("the server restarts"))
    monkeypatch.setattr(flows.job.extraction, "known_digest", ask)
    with pytest.raises(CatalogError, match="restarts"):
        extract_step(one_chunk)
    again = extract_step(one_chunk)
    assert (again["outcomes"], again["left"]) == ({"extracted": 5}, [])


def busy():
    """Return what the catalog raises where it is out of reach for a while."""
    error = CatalogError("the server does not answer")
    error.__cause__ = OperationalError("COMMIT", {}, ConnectionError("lost"))
    return error


@pytest.fixture
def committing(monkeypatch):
    """Return what replaces the commit of a chunk, with little patience."""
    import flows.job.extraction
    import flows.job.patience

    monkeypatch.setattr(flows.job.patience, "AGAIN_AFTER_S", (0.05,))
    commit = flows.job.extraction.commit_chunk

    def replaced(make):
        monkeypatch.setattr(flows.job.extraction, "commit_chunk", make(commit))

    return replaced


def unanswered(*numbers):
    """Return what commits the chunks of these numbers, and raises as if it had not."""

    def make(commit):
        def committing(catalog, lease, space, chunk, **what):
            result = commit(catalog, lease, space, chunk, **what)
            if chunk.number in numbers:
                raise busy()
            return result

        return committing

    return make


def test_a_busy_catalog_costs_no_work_at_the_commit(one_chunk, options, committing):
    committing(lambda commit: once(commit, busy()))
    assert extract_step(one_chunk)["outcomes"] == {"extracted": 5}
    parts = Home(options.home).parts_dir(space_of(options, one_chunk.space).fingerprint)
    assert len(list(Path(parts).glob("*.ids.npy"))) == 1


def test_a_commit_without_an_answer_is_not_repeated(one_chunk, options, committing):
    committing(unanswered(1))
    assert extract_step(one_chunk) == {}
    space = space_of(options, one_chunk.space)
    assert count(options, Vector, Vector.space_id == space.id) == 5
    assert count(options, Claim) == 0


def space_of(options, name):
    with opened(options) as catalog:
        return get_space(catalog, name)


class Repeating(PlainSteps):
    """Steps that carry out one chunk twice, as where a worker leaves before it has told."""

    def extract(self, order):
        if order.chunk.number == 2:
            extract_step(order)
        return super().extract(order)


@pytest.mark.parametrize("steps", [PlainSteps, Repeating])
def test_what_is_committed_without_an_answer_is_in_the_report(options, committing, steps):
    if steps is PlainSteps:
        committing(unanswered(2))
    try:
        with steps() as carrying:
            asked = replace(options, chunk_size=4)
            report = run_index(asked, steps=carrying, progress=Progress("silent"))
    finally:
        clear_bench(options.home, options.catalog_url)
    n = 2 * len(VARIATIONS)
    assert (report.extracted, report.index["n"], report.exit_code()) == (n, n, 0)
    assert report.warnings == [
        "4 files: the answer of their worker was lost after the commit; 4 extracted are counted "
        "from the catalog, the other numbers of this report lack these files"
    ]


def test_a_run_ends_though_an_image_stays_in_work(options, tree):
    shutil.copy(tree / "family-000" / "plain.jpg", tree / "copy.jpg")
    go(options, choice=SpaceChoice(model="squeezenet1_0", weights="random:1"))
    bench = bench_for(options.home, options.catalog_url)
    space, _ = make_space(bench.catalog, TINY)
    held = (tree / "copy.jpg").read_bytes()
    assert bench.digests.take(space.id, hashlib.sha256(held).digest())  # never let go
    with PlainSteps() as steps:
        report = run_index(options, steps=steps, progress=Progress("silent"))
    clear_bench(options.home, options.catalog_url)
    assert report.extracted == 2 * len(VARIATIONS) - 1
    assert count(options, Claim) == 0
    assert go(options).extracted == 1


def at_another_process(options, lease, boot=None):
    """Make a run that of another process, of this machine or of another one."""
    values = {"pid": 2**22 + 1, **({"boot": boot, "host": "elsewhere"} if boot else {})}
    with opened(options, write=True) as catalog, catalog.write() as conn:
        conn.execute(update(Run).where(Run.id == lease.run_id).values(values))


def test_a_worker_of_another_process_stops_with_its_run(options, monkeypatch):
    import flows.job.remote

    monkeypatch.setattr(flows.job.remote, "LOOK_EVERY_S", 0.05)
    go(options)
    bench = bench_for(options.home, options.catalog_url)
    lease = start_run(bench.catalog, "index")
    place = Place(options.home, options.catalog_url, lease)
    with following(bench, place) as own:
        assert own is bench
    at_another_process(options, lease)
    with following(bench, place) as view:
        assert view.stop is not bench.stop
        assert not view.ending.is_set()
        stop = threading.Event()
        with passing_on(stop, bench.catalog, lease):
            stop.set()
            deadline = time.monotonic() + 20
            while not view.ending.is_set():
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert not bench.ending.is_set()
    space, _ = make_space(bench.catalog, SpaceChoice(model="squeezenet1_0", weights="random:1"))
    chunk = claim_chunk(bench.catalog, lease, space, number=1, limit=5)
    ended = extract_step(ChunkOrder(place, space.name, chunk, "cpu", 2, 2))
    assert (ended["outcomes"], ended["left"]) == ({}, [])
    assert count(options, Claim) == 0


def test_hosts_cannot_share_a_catalog_in_sqlite(one_chunk, options, database):
    place = one_chunk.place
    at_another_process(options, place.lease, boot="another-boot pid:[1]")
    if database == "postgres":
        with following(bench_of(place), place) as view:
            assert not view.ending.is_set()
        return
    with pytest.raises(CatalogError, match="Postgres one, LOOKALIKE_CATALOG_URL"):
        extract_step(one_chunk)


def test_a_worker_with_another_catalog_or_without_one_is_refused(one_chunk, tmp_path):
    place = one_chunk.place
    strange = replace(place, lease=Lease("19700101T000000-abcdef", "no token"))
    with pytest.raises(CatalogError, match="knows no run 19700101T000000-abcdef: all hosts"):
        extract_step(replace(one_chunk, place=strange))
    elsewhere = replace(place, home=str(tmp_path / "nowhere"))
    with pytest.raises(CatalogError, match=r"no store is at .*nowhere on .*: all hosts"):
        extract_step(replace(one_chunk, place=elsewhere))
    assert not os.path.exists(elsewhere.home)  # a worker makes none
    if place.catalog_url is None:
        os.makedirs(elsewhere.home)
        shutil.copy(Home(place.home).store_json, elsewhere.home)
        with pytest.raises(CatalogError, match="no store is at"):
            extract_step(replace(one_chunk, place=elsewhere))
        assert os.listdir(elsewhere.home) == ["store.json"]


def test_what_is_locked_for_long_is_tried_again(tmp_path, monkeypatch):
    import flows.job.patience
    import storage.database

    monkeypatch.setattr(storage.database, "BUSY_S", 0.1)
    monkeypatch.setattr(flows.job.patience, "AGAIN_AFTER_S", (0.1, 2.0))
    home = Home(str(tmp_path / "home"))
    with Catalog.open(home, write=True) as catalog, closing(sqlite3.connect(home.sqlite)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogError, match="locked"):
            start_run(catalog, "index")
        stopped = threading.Event()
        stopped.set()
        with pytest.raises(CatalogError, match="locked"):
            patiently(stopped, lambda: start_run(catalog, "index"))
        tries = []

        def trying():
            tries.append(time.monotonic())
            if len(tries) == 2:
                other.rollback()
            return start_run(catalog, "index")

        lease = patiently(threading.Event(), trying)
        assert len(tries) == 2
        finish_run(catalog, lease, "done")
        with pytest.raises(LeaseLost):  # no trouble that goes away
            patiently(threading.Event(), lambda: finish_run(catalog, lease, "done"))


def test_a_back_fill_publishes_at_its_end_what_is_not_due(options, tree):
    draw_families(str(tree / "more"), 1, seed=11)
    go(options)
    mirror(tree / "family-000" / "dark.jpg")
    asked = {"kind": "backfill", "flow_run": "of-prefect"}
    report = go(options, kind="index")
    assert (report.extracted, report.index) == (1, None)
    mirror(tree / "family-000" / "plain.jpg")
    with opened(options, write=True) as catalog:  # a back-fill scans nothing itself
        lease = start_run(catalog, "index")
        scan_root(catalog, list_roots(catalog)[0], confirm_missing=False, skip=None, lease=lease)
        finish_run(catalog, lease, "done")
    report = go(options, **asked)
    assert (report.extracted, report.scanned) == (1, 0)
    assert report.index["n"] == 3 * len(VARIATIONS) + 2
    assert go(options, **asked).index is None  # nothing was extracted
    assert count(options, Run, Run.kind == "backfill", Run.flow_run == "of-prefect") == 2


class BetweenChunks(PlainSteps):
    """Steps that do something while their run has no chunk in work, after the first one."""

    def __init__(self, options, act):
        super().__init__()
        self.options, self.act, self.acted = options, act, 0

    def slots(self, device):
        held = count(self.options, Claim, Claim.kind == "file")
        if not held and count(self.options, Part):
            self.act()
            self.acted += 1
        return super().slots(device)


def test_a_space_is_not_dropped_between_two_chunks_of_a_run(options):
    bench = bench_for(options.home, options.catalog_url)

    def drop():
        other = start_run(bench.catalog, "drop")
        try:
            drop_space(bench.catalog, other, "resnet18-avgpool")
        finally:
            finish_run(bench.catalog, other, "done")

    def refused():
        with pytest.raises(LeaseHeld, match="works in the space 'resnet18-avgpool'; wait for it"):
            drop()

    with BetweenChunks(options, refused) as steps:
        again = replace(options, chunk_size=6)
        report = run_index(again, steps=steps, progress=Progress("silent"))
        assert steps.acted >= 2
    assert report.extracted == 2 * len(VARIATIONS)
    drop()
    assert count(options, Space) == 0


class Losing(PlainSteps):
    """Steps whose workers are lost with some of the chunks, as often as is said."""

    def __init__(self, files, times):
        super().__init__()
        self.files, self.times, self.lost = files, times, 0

    def extract(self, order):
        ids = {work.file_id for work in order.chunk.work}
        if not self.files & ids or self.lost == self.times:
            return super().extract(order)
        self.lost += 1
        handle = Future()
        handle.set_exception(WorkerLost("its worker was lost"))
        return handle


@pytest.mark.parametrize(("times", "left"), [(1, 0), (99, 4)])
def test_a_chunk_that_is_lost_with_its_worker_is_tried_again_twice(options, times, left):
    n = 2 * len(VARIATIONS)
    asked = replace(options, chunk_size=4)
    try:
        with Losing({5, 6, 7, 8}, times) as steps:
            report = run_index(asked, steps=steps, progress=Progress("silent"))
    finally:
        clear_bench(options.home, options.catalog_url)
    assert (report.extracted, report.exit_code()) == (n - left, 3 if left else 0)
    assert steps.lost == (3 if left else 1)
    assert report.warnings[0] == "chunk 2, 4 files: its worker was lost; they are tried again"
    given_up = (
        "4 files were given up: its worker was lost, each time; the next run tries them again"
    )
    assert report.troubles == ({3: [given_up]} if left else {})
    assert count(options, Claim) == 0
    assert go(options).extracted == left
