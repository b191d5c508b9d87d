"""Small pictures: what is in them, which files they are made of, and what is kept on disk."""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from sqlalchemy import select, update

from extractor import guarded
from search import decoders
from search.errors import QueryError, UnknownImage
from search.thumbnail_files import ThumbnailFiles, drop_unknown, thumbnails_folder
from search.thumbnails import SIZES, Thumbnails
from storage.catalog import Catalog
from storage.forget import forget
from storage.tables import File as FileRow
from tests.extractor.pictures import far, scene, with_orientation
from tests.reliability.poisoned import decoder
from tests.search.stores import Store, draw

Numbers = dict[str, int]


def opened(data: bytes) -> Image.Image:
    picture = Image.open(BytesIO(data))
    picture.load()
    return picture


def numbers(catalog: Catalog) -> Numbers:
    """Return the image that each file holds, by the file's name."""
    with catalog.read() as conn:
        rows = conn.execute(select(FileRow.path, FileRow.image_id)).all()
    return {os.fsdecode(os.path.basename(row.path)): row.image_id for row in rows}


def kept(thumbnails: Thumbnails) -> list[Path]:
    return sorted(path for path in Path(thumbnails.files.folder).rglob("*") if path.is_file())


@pytest.fixture
def made(catalog: Catalog, tmp_path: Path) -> Iterator[Thumbnails]:
    """Yield thumbnails of a catalog, on SQLite and then on Postgres."""
    with Thumbnails(catalog, str(tmp_path / "cache" / "thumbnails")) as thumbnails:
        yield thumbnails


@pytest.fixture
def index(store: Store) -> Callable[[Path], Numbers]:
    """Return what indexes a root and tells its images."""
    space = store.space()

    def index(root: Path) -> Numbers:
        store.index(root, space)
        return numbers(store.catalog)

    return index


def test_it_is_the_picture_made_small(
    made: Thumbnails, index: Callable[[Path], Numbers], tmp_path: Path
) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    scene(900, 600).save(root / "wide.jpg", quality=95)
    scene(300, 2000).save(root / "tall.png")
    scene(90, 60).save(root / "small.webp", lossless=True)
    image = index(root)
    for size in SIZES:
        small = opened(made.of(image["wide.jpg"], size))
        assert (small.format, small.mode) == ("JPEG", "RGB")
        assert small.size == (min(size, 900), round(min(size, 900) * 2 / 3))
        wanted = scene(900, 600).resize(small.size, Image.Resampling.LANCZOS)
        assert far(small, wanted) < 3
    assert opened(made.of(image["tall.png"], 160)).size == (24, 160)
    assert opened(made.of(image["small.webp"], 640)).size == (90, 60)
    sizes = [made.size_of(image[name]) for name in ("wide.jpg", "tall.png", "small.webp")]
    assert sizes == [(900, 600), (300, 2000), (90, 60)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright(
    orientation: int, sqlite_made: tuple[Thumbnails, Callable[[Path], Numbers]], tmp_path: Path
) -> None:
    made, index = sqlite_made
    root = tmp_path / "pictures"
    root.mkdir()
    path = root / "turned.jpg"
    scene(600, 400).save(path, quality=95, exif=with_orientation(orientation))
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture)
    image = index(root)["turned.jpg"]
    small = opened(made.of(image, 160))
    assert made.size_of(image) == upright.size
    assert small.size == ((160, 107) if orientation < 5 else (107, 160))
    assert far(small, upright.resize(small.size, Image.Resampling.LANCZOS)) < 3


@pytest.fixture
def sqlite_made(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Thumbnails, Callable[[Path], Numbers]]]:
    """Yield thumbnails and what indexes, for tests that ask nothing else of the catalog."""
    home = request.getfixturevalue("home")
    os.mkdir(home.path, 0o700)
    shutil.copy(request.getfixturevalue("sqlite_template"), home.sqlite)
    with Catalog.open(home, write=True) as catalog:
        store = Store(catalog)
        space = store.space()

        def index(root: Path) -> Numbers:
            store.index(root, space)
            return numbers(catalog)

        with Thumbnails(catalog, str(tmp_path / "cache")) as thumbnails:
            yield thumbnails, index
        store.close()


def test_nothing_but_pixels_is_left(
    sqlite_made: tuple[Thumbnails, Callable[[Path], Numbers]], tmp_path: Path
) -> None:
    made, index = sqlite_made
    root = tmp_path / "pictures"
    root.mkdir()
    exif = Image.Exif()
    exif[0x010F] = "SECRET camera"
    exif.get_ifd(0x8825)[1] = "SECRET place"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    whole = {"exif": exif, "icc_profile": profile, "xmp": b"<x>SECRET xmp</x>"}
    scene().save(root / "a.jpg", comment=b"SECRET comment", **whole)
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "SECRET author")
    scene().save(root / "b.png", pnginfo=text, exif=exif)
    scene().save(root / "c.webp", **whole)
    image = index(root)
    for name in ("a.jpg", "b.png", "c.webp"):
        assert b"SECRET" in (root / name).read_bytes()
        data = made.of(image[name], 160)
        small = opened(data)
        assert b"SECRET" not in data
        assert b"Exif" not in data
        assert not small.getexif()
        assert set(small.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_what_is_transparent_is_white_and_colours_are_srgb(
    sqlite_made: tuple[Thumbnails, Callable[[Path], Numbers]], tmp_path: Path
) -> None:
    made, index = sqlite_made
    root = tmp_path / "pictures"
    root.mkdir()
    Image.new("RGBA", (50, 40), (200, 0, 0, 0)).save(root / "clear.png")
    Image.new("CMYK", (50, 40), (0, 255, 255, 0)).save(root / "cmyk.jpg", quality=95)
    image = index(root)
    middles = {n: opened(made.of(image[n], 160)).getpixel((25, 20)) for n in image}
    assert np.abs(np.subtract(middles["clear.png"], (255, 255, 255))).max() <= 2
    assert np.abs(np.subtract(middles["cmyk.jpg"], (255, 0, 0))).max() <= 12


def test_a_file_that_changed_is_not_shown_but_another_copy_is(
    made: Thumbnails, index: Callable[[Path], Numbers], tmp_path: Path
) -> None:
    root = tmp_path / "pictures"
    draw(root / "a.png", 1)
    draw(root / "b.png", 1)
    image = index(root)["a.png"]
    draw(root / "a.png", 2)
    wanted = opened(made.of(image, 160))
    assert far(wanted, Image.open(root / "b.png")) < far(wanted, Image.open(root / "a.png"))
    draw(root / "b.png", 3)
    with pytest.raises(QueryError, match="has changed since it was indexed"):
        made.of(image, 320)
    for name in ("a.png", "b.png"):
        (root / name).unlink()
    with pytest.raises(QueryError, match=f"image {image} can't be shown now: No such file"):
        made.of(image, 320)
    assert made.of(image, 160)  # it is kept, and the catalog still knows it
    assert made.size_of(image) == (40, 30)


def test_no_link_is_followed_out_of_a_root(
    sqlite_made: tuple[Thumbnails, Callable[[Path], Numbers]], tmp_path: Path
) -> None:
    made, index = sqlite_made
    draw(tmp_path / "pictures" / "sub" / "a.png", 1)
    image = index(tmp_path / "pictures")["a.png"]
    shutil.move(tmp_path / "pictures" / "sub", tmp_path / "away")
    (tmp_path / "pictures" / "sub").symlink_to(tmp_path / "away")
    with pytest.raises(QueryError):
        made.of(image, 160)


def test_what_the_catalog_does_not_know_as_live_is_unknown(
    made: Thumbnails, index: Callable[[Path], Numbers], store: Store, tmp_path: Path
) -> None:
    root = tmp_path / "pictures"
    draw(root / "a.png", 1)
    draw(root / "b.png", 2)
    image = index(root)["a.png"]
    made.of(image, 160)
    (root / "a.png").rename(tmp_path / "a.png")
    index(root)
    for ask in (lambda: made.of(image, 160), lambda: made.size_of(image), lambda: made.of(99, 160)):
        with pytest.raises(UnknownImage):
            ask()
    with pytest.raises(ValueError, match="161"):
        made.of(numbers(store.catalog)["b.png"], 161)


def test_what_is_forgotten_leaves_the_disk(
    made: Thumbnails, index: Callable[[Path], Numbers], store: Store, tmp_path: Path
) -> None:
    root = tmp_path / "pictures"
    draw(root / "a.png", 1)
    draw(root / "b.png", 2)
    image = index(root)
    for name in image:
        for size in SIZES[:2]:
            made.of(image[name], size)
    assert len(kept(made)) == 4
    digest = hashlib.sha256((root / "a.png").read_bytes()).digest()
    made.drop([digest])
    assert len(kept(made)) == 2
    made.of(image["a.png"], 160)
    drop_unknown(store.catalog, made.files)
    assert len(kept(made)) == 3
    forget(store.catalog, store.lease, [os.fsencode(root / "a.png")])
    drop_unknown(store.catalog, made.files)
    assert {path.name[:64] for path in kept(made)} == {
        hashlib.sha256((root / "b.png").read_bytes()).hexdigest()
    }


def test_what_is_forgotten_while_it_is_made_is_not_kept(
    sqlite_made: tuple[Thumbnails, Callable[[Path], Numbers]], tmp_path: Path
) -> None:
    made, index = sqlite_made
    draw(tmp_path / "pictures" / "a.png", 1)
    image = index(tmp_path / "pictures")["a.png"]
    read = made._read

    def forgetting(*asked: Any) -> bytes:
        data = read(*asked)
        with made.catalog.write() as conn:
            conn.execute(update(FileRow).values(state="missing"))
        return data

    made._read = forgetting  # type: ignore[method-assign]
    with pytest.raises(UnknownImage):
        made.of(image, 160)
    assert kept(made) == []


def test_requests_at_the_same_moment_make_it_once(
    sqlite_made: tuple[Thumbnails, Callable[[Path], Numbers]], tmp_path: Path
) -> None:
    made, index = sqlite_made
    root = tmp_path / "pictures"
    root.mkdir()
    scene(2400, 1600).save(root / "a.png")
    image = index(root)["a.png"]
    reads = []
    read = made._read

    def counted(*asked: Any) -> bytes:
        reads.append(asked[0])
        return read(*asked)

    made._read = counted  # type: ignore[method-assign]
    together = threading.Barrier(16)

    def ask(_: int) -> bytes:
        together.wait(60)
        return made.of(image, 160)

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(ask, range(16)))) == 1
    assert reads == [image]
    assert made._making._turns == {}
    made.of(image, 160)
    assert reads == [image]


@pytest.mark.parametrize(("what", "said"), [("crash", "SIGSEGV"), ("hang", "not decoded in")])
def test_a_picture_that_ends_its_decoder_is_refused_and_not_tried_again(
    what: str,
    said: str,
    sqlite_made: tuple[Thumbnails, Callable[[Path], Numbers]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, index = sqlite_made
    folder = os.path.dirname(decoder.__file__)
    monkeypatch.setenv("PYTHONPATH", folder)
    monkeypatch.setattr(decoders, "bounds", lambda: guarded.Bounds(time_s=1.5))
    root = tmp_path / "pictures"
    draw(root / "fine.png", 1)
    (root / "bad.png").write_bytes(decoder.poison(what))
    image = index(root)
    for size in SIZES:  # another size is not tried either
        with pytest.raises(QueryError, match=said):
            made.of(image["bad.png"], size)
    processes = [each._child for each in made._decoders._idle]
    assert processes == [None]  # the last try ended it, and none was started since
    assert made.size_of(image["bad.png"]) is None
    assert opened(made.of(image["fine.png"], 160)).size == (40, 30)


def test_a_broken_picture_is_said(
    sqlite_made: tuple[Thumbnails, Callable[[Path], Numbers]], tmp_path: Path
) -> None:
    made, index = sqlite_made
    root = tmp_path / "pictures"
    root.mkdir()
    (root / "a.jpg").write_bytes(b"\xff\xd8\xff and then nothing")
    image = index(root)["a.jpg"]
    with pytest.raises(QueryError, match=f"image {image} can't be shown: begins like JPEG"):
        made.of(image, 160)
    assert kept(made) == []


def test_a_folder_that_can_not_be_written_costs_only_time(
    sqlite_made: tuple[Thumbnails, Callable[[Path], Numbers]], tmp_path: Path
) -> None:
    made, index = sqlite_made
    draw(tmp_path / "pictures" / "a.png", 1)
    image = index(tmp_path / "pictures")["a.png"]
    Path(made.files.folder).write_text("in its place")
    assert made.of(image, 160) == made.of(image, 160)


def test_the_tag_names_the_bytes(
    sqlite_made: tuple[Thumbnails, Callable[[Path], Numbers]], tmp_path: Path
) -> None:
    made, index = sqlite_made
    draw(tmp_path / "pictures" / "a.png", 1)
    draw(tmp_path / "pictures" / "b.png", 2)
    image = index(tmp_path / "pictures")
    tags = {made.tag(image[name], size) for name in image for size in SIZES}
    assert len(tags) == 2 * len(SIZES)
    with pytest.raises(UnknownImage):
        made.tag(99, 160)


def digest(i: int) -> bytes:
    return hashlib.sha256(b"%d" % i).digest()


class TestFiles:
    def test_what_is_kept_is_given_back_and_what_is_damaged_is_not(self, tmp_path: Path) -> None:
        files = ThumbnailFiles(str(tmp_path / "cache"))
        assert files.get(digest(1), "160") is None
        files.put(digest(1), "160", b"one")
        files.put(digest(1), "320", b"two")
        assert files.get(digest(1), "160") == b"one"
        assert files.get(digest(1), "320") == b"two"
        path = Path(files._path(digest(1), "160"))
        for damage in (b"", path.read_bytes()[:-1], path.read_bytes()[:-1] + b"x"):
            path.write_bytes(damage)
            assert files.get(digest(1), "160") is None
            assert not path.exists()
        assert list(files.digests()) == [digest(1)]

    def test_the_bound_holds_and_the_least_recently_used_go(self, tmp_path: Path) -> None:
        files = ThumbnailFiles(str(tmp_path / "cache"), most_bytes=10_000)
        for i in range(9):
            files.put(digest(i), "160", bytes(992))
            os.utime(files._path(digest(i), "160"), (1000 + i, 1000 + i))
        assert files.get(digest(0), "160") == bytes(992)  # used now
        for i in range(9, 40):
            files.put(digest(i), "160", bytes(992))
            there = [path for path in tmp_path.rglob("*") if path.is_file()]
            assert sum(path.stat().st_size for path in there) <= 10_000
            if i == 10:
                assert files.get(digest(1), "160") is None
                assert files.get(digest(0), "160") is not None
        assert files.get(digest(39), "160") is not None
        assert len(there) >= 8

    def test_what_is_larger_than_the_bound_is_not_kept(self, tmp_path: Path) -> None:
        files = ThumbnailFiles(str(tmp_path / "cache"), most_bytes=100)
        files.put(digest(1), "160", bytes(50))
        files.put(digest(2), "160", bytes(93))
        assert files.get(digest(2), "160") is None
        assert files.get(digest(1), "160") == bytes(50)

    def test_what_another_process_wrote_is_counted_in_the_end(self, tmp_path: Path) -> None:
        one, two = (ThumbnailFiles(str(tmp_path / "cache"), most_bytes=100_000) for _ in "ab")
        for i in range(300):
            (one if i % 2 else two).put(digest(i), "160", bytes(992))
        there = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in there) <= 110_000

    def test_what_a_killed_process_left_goes(self, tmp_path: Path) -> None:
        files = ThumbnailFiles(str(tmp_path / "cache"))
        files.put(digest(1), "160", b"one")
        old, new = (Path(files._path(digest(1), f"{n}.tmp")) for n in "ab")
        for path in (old, new):
            path.write_bytes(b"half")
        os.utime(old, (1000, 1000))
        ThumbnailFiles(files.folder).put(digest(2), "160", b"two")
        assert not old.exists()
        assert new.exists()
        files.drop([digest(1)])
        assert not new.exists()
        assert list(files.digests()) == [digest(2)]

    def test_they_are_for_the_owner_alone(self, tmp_path: Path) -> None:
        files = ThumbnailFiles(str(tmp_path / "a" / "b" / "cache"))
        files.put(digest(1), "160", b"one")
        assert os.stat(files.folder).st_mode & 0o777 == 0o700
        assert os.stat(files._path(digest(1), "160")).st_mode & 0o777 == 0o600

    def test_each_store_has_its_folder_in_the_cache_of_the_user(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert thumbnails_folder("abc") == str(tmp_path / "lookalike" / "thumbnails" / "abc")
