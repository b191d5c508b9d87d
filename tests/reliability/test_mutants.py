"""The battery bites: each mutant of our own code is caught, and the code as it is passes."""

import itertools
import os
import shutil

import pytest
from sqlalchemy.exc import IntegrityError

from storage.errors import StorageError
from tests.reliability import mutants
from tests.reliability.checks import Bench
from tests.reliability.lives import Wrong
from tests.reliability.scale import scale, tally

SEED = 20261122
RUNS = {"paused": scale(ci=20, long=200), "beside": scale(ci=20, long=200)}
"""Of a check that strikes at one place of the work; of any other `MANY`."""
MANY = scale(ci=10, long=200)
MUTANTS = {
    mutants.no_fsync: "power",
    mutants.no_sync_of_the_folder_of_a_file: "power",
    mutants.no_sync_of_the_folders_above: "power",
    mutants.committed_before_it_is_durable: "power",
    mutants.catalog_not_synced: "power",
    mutants.old_parts_deleted_before_the_swap: "power",
    mutants.rows_allocated_outside_the_lock: "power",
    mutants.run_of_before_the_boot_taken_for_alive: "power",
    mutants.renamed_before_the_sync: "saves",
    mutants.written_in_place: "saves",
    mutants.no_sync_of_the_name_of_a_work_folder: "batch",
    mutants.no_checksum_of_a_part: "flip",
    mutants.no_checksum_of_an_index: "flip",
    mutants.no_checksum_of_a_rowmap: "flip",
    mutants.no_lease_check_in_a_commit: "paused",
    mutants.no_lease_check_in_a_publishing: "paused",
    mutants.no_lease_check_in_a_compaction: "paused",
    mutants.no_lease_check_in_the_clearing: "paused",
    mutants.two_runs_compact_at_once: "beside",
    mutants.running_run_taken_for_ended: "beside",
    mutants.half_a_write_taken_for_a_whole: "short",
    mutants.failed_sync_taken_for_a_success: "unsynced",
    mutants.foreign_catalog_taken: "foreign",
}
"""Which check has to catch each."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory, sqlite_template):
    """Return the bench, in memory where there is one: no sync of the tests' own takes time."""
    folder = str(tmp_path_factory.mktemp("bench"))
    if os.access("/dev/shm", os.W_OK):
        folder = f"/dev/shm/lookalike-mutants-{os.getpid()}"
        os.mkdir(folder)
    yield Bench(folder, sqlite_template)
    shutil.rmtree(folder)


def runs(bench, check):
    """Yield what each run of a check has found: an exception, or None."""
    many = RUNS.get(check, MANY)
    for number in range(many):
        try:
            getattr(bench, check)(SEED + number, number / many)
        except (Wrong, StorageError, IntegrityError) as error:
            yield error
        else:
            yield None


@pytest.mark.timeout(scale(ci=600, long=3600))
@pytest.mark.parametrize("check", sorted(set(MUTANTS.values())))
def test_the_code_as_it_is_passes(bench, check):
    assert [error for error in runs(bench, check) if error is not None] == []


@pytest.mark.timeout(scale(ci=600, long=3600))
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_caught(bench, mutant):
    check = MUTANTS[mutant]
    with mutant():
        found = list(runs(bench, check))
    caught = sum(error is not None for error in found)
    name = mutant.__name__.replace("_", " ")
    tally(f"mutant: {name}", check=check, runs=len(found), caught=caught, seed=SEED)
    assert caught, f"{name}: survives {len(found)} runs of the check {check!r}"


def test_every_mutant_that_there_is_is_planted():
    tools = {mutants.planted, mutants.without}
    here = {
        each
        for each in vars(mutants).values()
        if getattr(each, "__module__", "") == mutants.__name__ and not isinstance(each, type)
    }
    named = {each for each in here if not each.__name__.startswith("_")}
    assert named - tools == set(itertools.chain(MUTANTS))
