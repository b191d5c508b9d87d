from search.records import _holders
from storage.prepared import _compiled
from tests.storage.filled import local_catalog


def test_the_files_of_hits_are_looked_up_by_their_indexes(sqlite_template, tmp_path) -> None:
    with local_catalog(sqlite_template, tmp_path) as catalog, catalog.read() as conn:
        sql, order, _ = _compiled(_holders("sqlite"), conn.dialect)
        assert order is not None
        plan = conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", tuple("1" for _ in order))
        steps = [str(row[-1]) for row in plan]
    assert "(space_id=? AND row=?)" in steps[1]
    assert "(image_id=? AND state=?)" in steps[2]
