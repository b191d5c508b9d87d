import re
from pathlib import Path

import numpy as np
import pytest

from storage.tables import Base
from tests.storage.filled import Filled, clustered, local_catalog

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_example_reads_a_store_without_us(sqlite_template, tmp_path, dtype):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, 16, dtype)
        filled.add(clustered(20, 16), duplicates=(3,), folder="a/")
        filled.add(clustered(3, 16, seed=1), offsets=np.array([0, 4, 9]))
        filled.set_state([5], "missing")
        names = {"home": catalog.home.path, "space": filled.space.name}
        exec(compile(example, "docs/format.md", "exec"), names)
        names["catalog"].close()
    rows = [row for row in range(20) if row not in (3, 5)]
    root = catalog.home.path.encode() + b"-root"
    paths = [b"%s/a/%07d.jpg" % (root, row) for row in rows]
    paths += [b"%s/%07d.jpg" % (root, row) for row in (20, 24, 29)]
    stored = filled.x.astype(dtype).astype(np.float32)[[*rows, 20, 21, 22]]
    assert sorted(names["by_path"]) == sorted(paths)
    np.testing.assert_array_equal([names["by_path"][path] for path in paths], stored)


@pytest.mark.parametrize("table", Base.metadata.sorted_tables, ids=lambda table: table.name)
def test_every_column_is_described(table):
    section = re.search(
        rf"^\*\*{table.name}\*\*(.*?)(?=^\*\*|^## )", PAGE, re.DOTALL | re.MULTILINE
    )
    assert section, f"docs/format.md lacks the table {table.name}"
    described = set(re.findall(r"`(\w+)`", section[1]))
    assert {column.name for column in table.columns} <= described
