import os

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from storage.bulk import insert_rows
from storage.roots import add_root
from storage.tables import File

COLUMNS = (
    File.root_id,
    File.path,
    File.display,
    File.state,
    File.first_seen_at,
    File.source,
    File.label,
    File.seen_size_bytes,
    File.seen_mtime_ns,
    File.seen_ctime_ns,
    File.seen_inode,
)
AWKWARD = [
    (b"plain.jpg", "plain.jpg", None, None),
    (bytes(range(1, 256)), "all bytes but one", b"\\N", "\\N"),
    (b"\\x41\t\n\r.jpg", "tab\tline\nreturn\r\\.", b"\\.", "a\tb"),
    (b"'\"%s?:x", "'\"%s?:x", b"", ""),
    (b"\xff\xfe", "\U0001f5bc \u0130", b"\0", "été"),
]
NUMBERS = (0, -1, 2**63 - 1, -(2**63))


@pytest.fixture
def root_id(catalog, tmp_path):
    return add_root(catalog, os.fsencode(tmp_path)).id


def rows_of(root_id):
    return [
        (root_id, path, shown, "live", 1.25, source, label, *NUMBERS)
        for path, shown, source, label in AWKWARD
    ]


def test_values_come_back_as_they_were_given(catalog, root_id):
    given = rows_of(root_id)
    with catalog.write() as conn:
        insert_rows(conn, COLUMNS, (row for row in given))
        insert_rows(conn, COLUMNS, [])
    others = (File.trusted, File.image_id, File.missing_since, File.digest_inode)
    with catalog.read() as conn:
        found = conn.execute(select(*COLUMNS, *others).order_by(File.id)).all()
    assert [tuple(row) for row in found] == [(*row, False, None, None, None) for row in given]


def test_what_the_database_refuses_is_refused_as_by_any_other_statement(catalog, root_id):
    row = rows_of(root_id)[0]
    for wrong in ([row, row], [(10**9, *row[1:])]):
        with pytest.raises(IntegrityError), catalog.write() as conn:
            insert_rows(conn, COLUMNS, wrong)
        with catalog.read() as conn:
            assert conn.execute(select(File.id)).all() == []
    with catalog.write() as conn:
        insert_rows(conn, COLUMNS, [row])
    with catalog.read() as conn:
        assert len(conn.execute(select(File.id)).all()) == 1
