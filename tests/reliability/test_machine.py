"""The catalog equals a model of the tree after every scan, whatever happened in between."""

import contextlib
import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

import storage.changes
import storage.file_rows
import storage.files
import storage.guard
from storage.absence import Absence
from storage.changes import Reason, Unlisted
from storage.home import Home
from tests.reliability import tree_machine
from tests.reliability.scale import scale, tally

STEPS = 30
SEED = int(os.environ.get("LOOKALIKE_SEED", "1"))


def run(name, make_home, *, runs, seed):
    """Run the machine, and return what it counted."""
    machine = type(name, (tree_machine.TreeMachine,), {"make_home": staticmethod(make_home)})
    machine._hypothesis_internal_use_seed = seed
    options = settings(
        max_examples=runs, stateful_step_count=STEPS, deadline=None, database=None,
        derandomize=False, print_blob=True, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    before = dict(tree_machine.counts)
    try:
        run_state_machine_as_test(machine, settings=options)
    finally:
        did = {key: n - before[key] for key, n in tree_machine.counts.items()}
        print(f"{name}: seed {seed}, {did}")
    return did


def test_the_catalog_equals_a_model_of_the_tree(sqlite_template):
    homes = tree_machine.local_home(sqlite_template)
    did = run("Tree", homes, runs=scale(ci=25, long=500), seed=SEED)
    assert did["refused"] > did["runs"] / 8
    assert did["extracted"] > did["runs"]
    tally("machine", seed=SEED, **did)


@pytest.mark.postgres
def test_the_catalog_equals_a_model_of_the_tree_on_postgres(postgres_server, postgres_template):
    @contextlib.contextmanager
    def homes(path):
        path.mkdir(mode=0o700)
        name = postgres_server.create(postgres_template)
        try:
            yield Home(str(path), postgres_server.database(name))
        finally:
            postgres_server.drop(name)

    did = run("TreeOnPostgres", homes, runs=scale(ci=3, long=50), seed=SEED)
    assert did["extracted"] > did["runs"]
    tally("machine-postgres", seed=SEED, **did)


def _by_size_and_date(row, item):
    """Compare as most programs do."""
    if row is None or row.state != "live":
        return Reason.NEW if row is None else Reason.BACK
    same = (row.seen.size_bytes, row.seen.mtime_ns) == (item.sig.size_bytes, item.sig.mtime_ns)
    return None if same else Reason.MTIME


PLACES = [b"a/1.jpg", b"a/2.PNG", b"c/1.jpg"]
MUTANTS = {
    "any disk is believed": (
        (storage.guard, "refuse_stranger", lambda *_: None),
        [("put_a_disk_in", {"disk": "foreign"}), ("scan_all", {"confirm": False})],
    ),
    "any loss is believed": (
        (storage.files, "guard_losses", lambda *_, **__: None),
        [("delete_folder", {"folder": b"c"}), ("scan_all", {"confirm": False})],
    ),
    "size and date decide": (
        (storage.changes, "_difference", _by_size_and_date),
        [
            ("set_the_clock", {"by_s": 3}),
            ("scan_all", {"confirm": False}),
            ("edit_and_restore_the_time", {"choice": 0, "byte": 255}),
            ("scan_all", {"confirm": False}),
        ],
    ),
    "an unreadable folder is an empty one": (
        (Unlisted, "hides", lambda *_: False),
        (Absence, "confirms", lambda *_: True),
        [("scan_with_an_unreadable_folder", {"hidden": b"a"})],
    ),
    "one scan is enough to forget": (
        (storage.file_rows, "missed_twice", lambda *_: []),
        [
            ("delete", {"choice": 0, "back": False}),
            ("scan_a_part", {"under": b"a"}),
            ("let_a_month_pass", {}),
            ("scan_all", {"confirm": False}),
        ],
    ),
}
"""What is broken, and the steps of the machine in which that must show."""


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("broken", [False, True])
def test_the_machine_finds_what_is_taken_out(mutant, broken, sqlite_template, monkeypatch):
    *patches, steps = MUTANTS[mutant]
    homes = tree_machine.local_home(sqlite_template)
    machine = type("Steps", (tree_machine.TreeMachine,), {"make_home": staticmethod(homes)})()
    wrong = pytest.raises(AssertionError) if broken else contextlib.nullcontext()
    try:
        machine.begin(places=PLACES, many=44 if "loss" in mutant else 0)
        if broken:
            for patch in patches:
                monkeypatch.setattr(*patch)
        with wrong:
            for step, values in steps:
                getattr(machine, step)(**values)
    finally:
        machine.teardown()
    tally("machine-mutant", mutant=mutant, broken=broken, caught=int(broken))
