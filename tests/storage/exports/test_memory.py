"""Memory does not grow with the number of images: a process of its own for each format."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.exports.formats import FORMATS

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
WRITTEN_MIB = 96
GROWTH_MIB = 48
PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from storage.exports import parquet
from storage.exports.formats import open_writer
from tests.storage.exports.made import records, unit
parquet.GROUP_BYTES = 4 << 20
x = unit(1024, 1024)

def peak():
    with open("/proc/self/status") as status:  # ru_maxrss would be that of the parent as well
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

with open_writer(sys.argv[1], sys.argv[2], {{"pool": 1024}}) as writer:
    for _ in range(4):
        writer.write(records(x, 20))
    before = peak()
    for _ in range({WRITTEN_MIB} // 4 - 4):
        writer.write(records(x, 20))
print(peak() - before)
"""


@pytest.mark.parametrize("format", FORMATS)
def test_memory_is_constant(tmp_path, format):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "x"), format],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < GROWTH_MIB
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    halves = 2 if format == "clip-retrieval" else 1
    assert written >= (WRITTEN_MIB << 20) / halves
