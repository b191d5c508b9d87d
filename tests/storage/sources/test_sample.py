import collections
import csv
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from flows.cli import cli
from storage.errors import SourceError
from storage.exports.errors import ExportError
from storage.sources.choice import Choice, choose, largest_remainder
from storage.sources.items import Item
from storage.sources.opening import SourceOptions, open_source
from storage.sources.sample import Sampled, write_sample

NAMES = [f"photos/{number}.jpg" for number in range(1000)]


def sample(source: Path, out: Path, choice: Choice, **options: Any) -> Sampled:
    overwrite = options.pop("overwrite", False)
    with open_source(str(source), SourceOptions(**options)) as opened:
        return write_sample(opened, str(out), choice, overwrite=overwrite)


def items(path: Path, **options: Any) -> list[Item]:
    with open_source(str(path), SourceOptions(**options)) as source:
        return [item for item in source.items() if isinstance(item, Item)]


def entries(labels: list[str | None]) -> list[Item]:
    return [Item(str(n).encode(), b"/x", label) for n, label in enumerate(labels)]


# Choosing


def test_a_seed_always_chooses_the_same_and_another_one_others() -> None:
    all_ = entries([None] * 1000)
    first = choose(all_, Choice(n=50)).positions.tolist()
    assert choose(all_, Choice(n=50)).positions.tolist() == first
    assert first == sorted(set(first))
    others = choose(all_, Choice(n=50, seed=1)).positions.tolist()
    assert len(set(first) & set(others)) < 15  # 2.5 by chance


def test_what_a_seed_chooses_stays_from_version_to_version() -> None:
    chosen = choose(entries([None] * 20), Choice(n=5, seed=3))
    assert chosen.positions.tolist() == [4, 7, 11, 13, 18]


def test_a_smaller_sample_is_part_of_a_larger_one_in_any_order() -> None:
    all_ = entries([None] * 500)
    found: dict[int, set[bytes]] = {}
    for n in (0, 1, 10, 200, 500):
        found[n] = {all_[i].id for i in choose(all_, Choice(n=n)).positions}
        backward = all_[::-1]
        assert {backward[i].id for i in choose(backward, Choice(n=n)).positions} == found[n]
    assert found[0] < found[1] < found[10] < found[200] < found[500]


def test_each_image_has_the_same_chance() -> None:
    all_ = entries([None] * 50)
    counts = np.zeros(50)
    for seed in range(2000):
        counts[choose(all_, Choice(n=10, seed=seed)).positions] += 1
    chi = ((counts - 400) ** 2 / (400 * 0.8)).sum()  # 49 degrees of freedom
    assert 20 < chi < 95


@pytest.mark.parametrize(
    ("fraction", "total", "n"), [(0.1, 1000, 100), (0.29, 100, 29), (0.001, 10, 1), (1.0, 7, 7)]
)
def test_a_fraction_is_rounded_and_never_nothing(fraction: float, total: int, n: int) -> None:
    assert len(choose(entries([None] * total), Choice(fraction=fraction)).positions) == n
    assert choose([], Choice(fraction=fraction)).positions.tolist() == []


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(SourceError, match="has 3 images, fewer than the 4 wanted"):
        choose(entries([None] * 3), Choice(n=4))


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=30), st.data())
def test_shares_are_as_even_as_they_can_be(counts: list[int], data: st.DataObject) -> None:
    wanted = data.draw(st.integers(0, sum(counts)))
    shares = largest_remainder(counts, wanted)
    exact = [Fraction(wanted * count, sum(counts)) for count in counts]
    assert sum(shares) == wanted
    assert all(0 <= share <= count for share, count in zip(shares, counts, strict=True))
    assert all(abs(share - due) < 1 for share, due in zip(shares, exact, strict=True))
    up = [due % 1 for share, due in zip(shares, exact, strict=True) if share > due]
    down = [due % 1 for share, due in zip(shares, exact, strict=True) if share <= due]
    assert not up or not down or min(up) >= max(down)


def test_each_label_keeps_its_share_and_its_first_images() -> None:
    labels: list[str | None] = ["a"] * 600 + ["b"] * 300 + [None] * 100
    all_ = entries([labels[i * 7919 % 1000] for i in range(1000)])
    chosen = choose(all_, Choice(n=50, by_label=True))
    assert collections.Counter(all_[i].label for i in chosen.positions) == {
        "a": 30,
        "b": 15,
        None: 5,
    }
    assert chosen.labels == {"a": (30, 600), "b": (15, 300), None: (5, 100)}
    for label, n in (("a", 30), ("b", 15)):
        alone = [item for item in all_ if item.label == label]
        of = {alone[i].id for i in choose(alone, Choice(n=n)).positions}
        assert of == {all_[i].id for i in chosen.positions if all_[i].label == label}


def test_labels_that_are_not_there_are_refused() -> None:
    with pytest.raises(SourceError, match="--by-label: the source has no labels"):
        choose(entries([None] * 3), Choice(n=2, by_label=True))


# Lists


def test_lines_are_kept_as_they_are(tmp_path: Path) -> None:
    rows = [f"{n}\tcat{n % 3}\tx y\t{name}" for n, name in enumerate(NAMES)]
    source, out = tmp_path / "m.tsv", tmp_path / "few.tsv"
    source.write_text("\n".join(["id\tlabel\tother\tpath", *rows]))
    done = sample(source, out, Choice(n=30, by_label=True))
    head, *lines = out.read_text().splitlines()
    assert (head, len(lines), done.files, done.notes) == (
        "id\tlabel\tother\tpath",
        30,
        (str(out),),
        (),
    )
    assert lines == [row for row in rows if row in lines]
    kept = items(out)
    assert kept == [item for item in items(source) if item in kept]


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.txt"])
def test_a_sample_reads_as_the_source_does(tmp_path: Path, name: str) -> None:
    separator, unsaid = (",", {}) if name == "m.csv" else ("\t", {"columns": "label,path"})
    for rows, options in (
        ([[f"c{n % 2}", path] for n, path in enumerate(NAMES[:40])], unsaid),
        ([[f"u{n}", path] for n, path in enumerate(NAMES[:40])], {}),
        ([[f"u{n}", path] for n, path in enumerate(NAMES[:40])], {"columns": "label,path"}),
        ([["x", f"u{n}", path] for n, path in enumerate(NAMES[:40])], {"columns": "-,id,path"}),
        ([["file", "what"]] + [[path, f"c{n % 5}"] for n, path in enumerate(NAMES[:40])], {}),
        ([[path] for path in NAMES[:40]], {}),
    ):
        source, out = tmp_path / name, tmp_path / f"few-{name}"
        source.write_text("".join(separator.join(row) + "\n" for row in rows))
        whole = items(source, **options)
        for n in (1, 2, 3, 20, 40):
            sample(source, out, Choice(n=n), overwrite=True, **options)
            kept = items(out)
            assert len(kept) == n
            assert kept == [item for item in whole if item in kept], (rows[:2], n)


def test_a_header_is_added_only_where_it_has_to_be(tmp_path: Path) -> None:
    source, out = tmp_path / "m.csv", tmp_path / "few.csv"
    lines = [f"c{n % 500},{name}\n" for n, name in enumerate(NAMES)]
    source.write_text("what,file\n" + "".join(lines))  # its values tell that these are labels
    sample(source, out, Choice(n=900))
    assert set(out.read_text().splitlines()) < set(source.read_text().splitlines())
    sample(source, out, Choice(n=2), overwrite=True)
    assert out.read_text().splitlines()[0] == "label,path"
    source.write_text("".join(lines))  # a CSV's first column holds labels
    sample(source, out, Choice(n=2), overwrite=True)
    assert set(out.read_text().splitlines()) < set(source.read_text().splitlines())


def test_cells_that_need_quotes_have_them(tmp_path: Path) -> None:
    source, out = tmp_path / "m.csv", tmp_path / "few.csv"
    odd = ['a"b', "a,b", "a\nb", "a\r\nb", "\r", " x ", "é", ""]
    frame = pandas.DataFrame({"path": NAMES[:8], "label": odd, "n": [str(n) for n in range(8)]})
    frame.to_csv(source, index=False, quoting=csv.QUOTE_ALL)
    sample(source, out, Choice(n=8))
    read = [pandas.read_csv(each, dtype=str, keep_default_na=False) for each in (source, out)]
    assert read[0].equals(read[1])
    assert items(source) == items(out)


def test_bytes_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_bytes(b"caf\xe9.jpg\nx\r\r\n")
    sample(tmp_path / "m.txt", tmp_path / "few.txt", Choice(n=2))
    assert (tmp_path / "few.txt").read_bytes() == b"caf\xe9.jpg\nx\r\r\n"


def test_a_sample_in_another_folder_names_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    source, out = tmp_path / "m.txt", tmp_path / "other" / "few.txt"
    source.write_text("a.jpg\n/x/b.jpg\n")
    done = sample(source, out, Choice(n=2))
    assert out.read_text().splitlines() == [f"{tmp_path}/a.jpg", "/x/b.jpg"]
    assert done.notes == (
        "paths, which are the ids, are written in full, because the sample lies in another folder",
    )
    assert [item.path for item in items(out)] == [item.path for item in items(source)]


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("m.csv", "few.tsv", r"its name must end with \.csv"),
        ("m.csv", "few", r"its name must end with \.csv"),
        ("m.tsv", "few.csv", r"its name must not end with \.csv"),
        ("m.txt", "few.csv", r"its name must end with \.txt"),
    ],
)
def test_a_name_of_another_form_is_refused(
    tmp_path: Path, source: str, out: str, message: str
) -> None:
    (tmp_path / source).write_text("a.jpg\nb.jpg\n")
    with pytest.raises(SourceError, match=message):
        sample(tmp_path / source, tmp_path / out, Choice(n=1))
    assert os.listdir(tmp_path) == [source]


def test_nothing_is_replaced_unasked_or_left_of_a_failure(tmp_path: Path) -> None:
    source, out = tmp_path / "m.txt", tmp_path / "few.txt"
    source.write_text("\n".join(NAMES))
    out.write_text("mine")
    with pytest.raises(ExportError, match="is there already; --overwrite replaces it"):
        sample(source, out, Choice(n=1))
    with pytest.raises(SourceError, match="fewer than"):
        sample(source, out, Choice(n=2000), overwrite=True)
    assert out.read_text() == "mine"
    sample(source, out, Choice(n=1), overwrite=True)
    assert out.read_text().strip() in NAMES
    assert sorted(os.listdir(tmp_path)) == ["few.txt", "m.txt"]


# Arrays


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("by_label", [False, True])
def test_rows_and_labels_stay_together(tmp_path: Path, order: Any, by_label: bool) -> None:
    images = np.random.default_rng(0).random((200, 5, 4, 3), np.float32)
    labels = np.arange(200) % 4
    np.save(tmp_path / "x.npy", np.asarray(images, order=order))
    np.save(tmp_path / "y.npy", labels[:, None])
    options = {"labels": str(tmp_path / "y.npy"), "values": "unit"}
    out = tmp_path / "few_data.npy"
    done = sample(tmp_path / "x.npy", out, Choice(n=40, by_label=by_label), **options)
    assert done.files == (str(tmp_path / "few_labels.npy"), str(out))
    found, found_labels = np.load(out), np.load(tmp_path / "few_labels.npy")
    positions = done.chosen.positions
    assert (found.dtype, found_labels.shape) == (np.float32, (40, 1))
    assert np.array_equal(found, images[positions])
    assert np.array_equal(found_labels[:, 0], labels[positions])
    assert positions.tolist() == sorted(positions.tolist())
    if by_label:
        assert np.bincount(found_labels[:, 0]).tolist() == [10] * 4


def test_labels_of_text_and_rows_of_numbers_are_sampled_too(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(60 * 12, dtype=np.uint16).reshape(60, 12))
    np.save(tmp_path / "y.npy", np.array(["cat", "é"] * 30))
    sides = {"height": 2, "width": 2, "channels": 3, "values": "byte"}
    options = {"labels": str(tmp_path / "y.npy"), **sides}
    done = sample(tmp_path / "x.npy", tmp_path / "few.npy", Choice(fraction=0.1), **options)
    positions = done.chosen.positions
    assert np.array_equal(np.load(tmp_path / "few.npy")[:, 0], positions * 12)
    assert np.load(tmp_path / "few_labels.npy").tolist() == [["cat", "é"][n % 2] for n in positions]


def test_a_name_that_is_no_array_or_a_folder_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 5, 4, 3), np.uint8))
    with pytest.raises(SourceError, match=r"must end with \.npy"):
        sample(tmp_path / "x.npy", tmp_path / "few.csv", Choice(n=1))
    with pytest.raises(SourceError, match="has neither lines nor rows"):
        sample(tmp_path, tmp_path / "few.csv", Choice(n=1))


# The command


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["sample", *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def test_a_sample_never_replaces_its_source(tmp_path: Path, monkeypatch: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2, 2, 3), np.uint8))
    np.save(tmp_path / "y_labels.npy", np.arange(4))
    (tmp_path / "m.tsv").write_text("1\ta.jpg\n2\tb.jpg\n")
    (tmp_path / "link.tsv").symlink_to(tmp_path / "m.tsv")
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    labels = {"labels": "y_labels.npy"}
    for source, out, options in (
        ("m.tsv", "m.tsv", {}),
        ("m.tsv", "link.tsv", {}),
        ("link.tsv", "m.tsv", {}),
        ("x.npy", "x.npy", {}),
        ("x.npy", "x.npy", labels),
        ("x.npy", "y.npy", labels),
    ):
        with pytest.raises(ExportError, match="would replace the source: name another output"):
            sample(Path(source), Path(out), Choice(n=1), overwrite=True, **options)
    with open_source("m.tsv") as opened, pytest.raises(ExportError, match="name one"):
        write_sample(opened, "-", Choice(n=1))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_command_tells_what_it_wrote(tmp_path: Path) -> None:
    source, out = tmp_path / "m.csv", tmp_path / "few.csv"
    source.write_text("".join(f"c{n % 3},{name}\n" for n, name in enumerate(NAMES)))
    done = run(str(source), str(out), "--fraction", "0.01", "--by-label", "--seed", "5")
    first, head, *rows = done.stdout.splitlines()
    assert first == f"10 images of 1,000 written to {out}"
    assert head.split() == ["label", "images", "of"]
    assert sorted(row.split() for row in rows) == [
        ["c0", "4", "334"],
        ["c1", "3", "333"],
        ["c2", "3", "333"],
    ]
    told = json.loads(run(str(source), str(out), "--n", "10", "--overwrite", "--json").stdout)
    assert told == {"images": 10, "of": 1000, "files": [str(out)], "labels": [], "notes": []}
    many = tmp_path / "many.csv"
    many.write_text("".join(f"c{n % 100},{name}\n" for n, name in enumerate(NAMES)))
    done = run(str(many), str(out), "-n", "150", "--by-label", "--overwrite")
    assert done.stdout.splitlines()[1] == "100 labels, 1 to 2 images each"


@pytest.mark.parametrize("args", [(), ("--n", "1", "--fraction", "0.5")])
def test_how_many_is_said_once(args: tuple[str, ...]) -> None:
    assert "either --n NUMBER or --fraction PART" in run("m.csv", "o.csv", *args, code=2).stderr
