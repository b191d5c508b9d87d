import hashlib

import pytest

from storage.errors import SourceError
from storage.sources.shard import Shard, parse_shard

IDS = [f"photos/{number}.jpg".encode() for number in range(5000)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_parts_are_disjoint_complete_and_of_like_size(count: int) -> None:
    parts = [{name for name in IDS if Shard(i + 1, count).holds(name)} for i in range(count)]
    assert sum(map(len, parts)) == len(IDS)
    assert set().union(*parts) == set(IDS)
    expected = len(IDS) / count
    assert all(abs(len(part) - expected) < 5 * expected**0.5 + 1 for part in parts)


def test_an_image_stays_in_its_part() -> None:
    """Stored work of one version must be found by the next: the rule never changes."""
    for name in IDS[:200]:
        number = int(hashlib.sha256(name).hexdigest()[:16], 16)
        assert Shard(number % 5 + 1, 5).holds(name)
    # `printf 1 | sha256sum | cut -c1-16` ends in 1; that of 0 in 8, of 2 in e, of 3 in b.
    assert [name for name in (b"0", b"1", b"2", b"3") if Shard(2, 4).holds(name)] == [b"1"]


def test_a_part_is_written_as_it_is_read() -> None:
    assert parse_shard("2/4") == Shard(2, 4)
    assert str(parse_shard("2/4")) == "2/4"


@pytest.mark.parametrize("text", ["", "2", "2/", "/4", "a/4", "-1/4", "2/4/8", "1.5/2", "²/4"])
def test_what_names_no_part_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match="write I/N, such as 2/4"):
        parse_shard(text)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "0/0"])
def test_a_part_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match=r"counted from 1, so 1/\d is the first"):
        parse_shard(text)
