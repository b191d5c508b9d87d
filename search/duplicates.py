"""Pictures that are there more than once: byte for byte, or as other files that look the same.

*By digest*: several live files hold one image.  The catalog is read in pages, so that memory does
not grow with the number of files.

*By vector*: pairs of mutual neighbours (``search.mutual``) are made groups around the best picture
(``search.stars``).  Of all that have a neighbour the best one comes first; with it go its
neighbours, their neighbours and so on, as far as each has at least the threshold's cosine *with the
best one itself*.  So no chain of small steps joins pictures that are far apart, and whatever is
told to be a copy is that much like the one that is kept.  Then the best one of those that are left.
A group has all live files of its images, and images that are alike to no other one but lie in
several files follow.

The best file of a group, which is kept, has the most pixels; of equal ones the most bytes; of those
it is the oldest by its time of modification, then the one that the index saw first.  A picture
whose size can't be read now counts as the smallest.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np

from search.copies import Files, Held
from search.groups import Group, Member, copies, pieces
from search.mutual import NEAREST, Join, Pairs
from search.picture_sizes import size_of
from search.stars import Star, stars
from storage.candidates import ROUNDING
from storage.catalog import Catalog
from storage.dead import live_rows
from storage.kinds import FLAT_BELOW
from storage.slices import sliced
from storage.spaces import SpaceInfo

NEAR = 0.95
"""Least cosine unless one is given.

In ``benchmarks/duplicates.py`` more than 99 % of the pairs that lie in one group are then copies of
one photo, with resnet18 and with resnet50; with 0.94 it is 98.5 % for one of them, with 0.92 94 %.
Lower ones find more.
"""
READERS = 8
"""Files whose sizes are read at once: a network's file system answers each after a while."""
TRIES = 4
"""Files of an image that are looked at for its size."""
_IMAGES = 2000
"""Images whose files are in memory at once."""

Tell = Callable[[str, int, int], None]
"""Told what is done (``compared``, ``measured``, ``looked at``), and how much of how much."""


@dataclass(frozen=True, slots=True)
class _Picture:
    """An image that has a neighbour, and what it is ranked by."""

    image_id: int
    size: tuple[int, int] | None
    rank: tuple[int, int, int, float, int]
    """Sorts the best picture first."""

    @classmethod
    def of(cls, oldest: Held, size: tuple[int, int] | None) -> Self:
        """Return that of an image by the oldest of its files."""
        width, height = size or (0, 0)
        age = (oldest.mtime_ns, oldest.first_seen_at, oldest.file_id)
        return cls(oldest.image_id, size, (-width * height, -oldest.size_bytes, *age))


def exact_groups(
    catalog: Catalog,
    under: bytes | None = None,
    *,
    number: int = 1,
    but: Callable[[int], bool] = lambda _: False,
    tell: Tell = lambda *_: None,
) -> Iterator[Group]:
    """Yield the images that several live files hold, each with these files.

    Parameters
    ----------
    catalog
        Open, for reading at least.
    under
        Absolute path: only files at or below it.
    number
        Of the first group.
    but
        Says which images to leave out.
    tell
        Told how far it is among the images.

    Raises
    ------
    RootError
        No root knows ``under``.
    """
    files = Files(catalog, under)
    return _exact_groups(files, number, but, tell)


def _exact_groups(
    files: Files, number: int, but: Callable[[int], bool], tell: Tell
) -> Iterator[Group]:
    of = files.last_image()
    for page in files.repeated():
        for _, held in files.of_images([image for image in page if not but(image)]):
            keep = Member(next(held), 1.0)
            told = False
            for group in pieces(number, keep, copies(held, 1.0, None)):
                told = True
                yield group
            number += told
        tell("looked at", page[-1], of)


class Near:
    """The groups by vector of one space, and those by digest that have no part in them.

    Parameters
    ----------
    catalog, space
        Open for reading at least, and the space.
    threshold
        Least cosine of each with the best of its group, above 0 and at most 1.
    under
        Absolute path: only files at or below it.
    nearest, exact_below
        As ``search.mutual.Join`` takes them.

    Attributes
    ----------
    warnings
        What a person should know.

    Raises
    ------
    RootError
        No root knows ``under``.
    PartError
        Here and later: a part is missing or damaged.
    """

    def __init__(
        self,
        catalog: Catalog,
        space: SpaceInfo,
        threshold: float = NEAR,
        *,
        under: bytes | None = None,
        nearest: int = NEAREST,
        exact_below: int = FLAT_BELOW,
    ) -> None:
        self.catalog = catalog
        self.space = space
        self.threshold = threshold
        self._files = Files(catalog, under)
        self._join = Join(catalog, space, under, nearest=nearest, exact_below=exact_below)
        self.warnings = self._join.warnings

    def groups(self, tell: Tell = lambda *_: None) -> Iterator[Group]:
        """Yield the groups, those of the largest pictures first, then those by digest alone."""
        pairs = self._join.pairs(self.threshold, lambda done, of: tell("compared", done, of))
        pictures = self._pictures(pairs, tell)
        ranked = sorted(pictures, key=lambda row: pictures[row].rank)
        found = stars(ranked, pairs.a, pairs.b, self._join.scores, self.threshold - ROUNDING)
        grouped: set[int] = set()
        number = 1
        for some in sliced(found, _IMAGES // 4):
            for star in some:
                grouped.update(pictures[row].image_id for row in (star.best, *star.others))
            for group in self._with_files(some, pictures, number):
                yield group
                number = group.number + 1
        yield from _exact_groups(self._files, number, grouped.__contains__, tell)

    def _pictures(self, pairs: Pairs, tell: Tell) -> dict[int, _Picture]:
        """Return the images of some pairs by row, those that a file holds as it was hashed."""
        rows = np.unique(np.concatenate([pairs.a, pairs.b])).tolist()
        pictures: dict[int, _Picture] = {}
        done = 0
        with ThreadPoolExecutor(READERS) as readers:
            for some in sliced(rows, _IMAGES):
                with self.catalog.read() as conn:
                    row_of = {
                        image: row for row, image in live_rows(conn, self.space.id, some).items()
                    }
                files = self._files.of_images(list(row_of))
                tried = [list(islice(held, TRIES)) for _, held in files]
                for held, size in zip(tried, readers.map(_size, tried), strict=True):
                    pictures[row_of[held[0].image_id]] = _Picture.of(held[0], size)
                done += len(some)
                tell("measured", done, len(rows))
        return pictures

    def _with_files(
        self, some: list[Star], pictures: dict[int, _Picture], number: int
    ) -> Iterator[Group]:
        images = [pictures[row].image_id for star in some for row in (star.best, *star.others)]
        files = {image: list(held) for image, held in self._files.of_images(images)}
        for star in some:
            if pictures[star.best].image_id not in files:  # it went a moment ago
                continue
            members: list[Member] = []
            for row, score in ((star.best, 1.0), *zip(star.others, star.scores, strict=True)):
                picture = pictures[row]
                members += copies(files.get(picture.image_id, ()), score, picture.size)
            if len(members) > 1:
                yield from pieces(number, members[0], members[1:])
                number += 1


def _size(files: Sequence[Held]) -> tuple[int, int] | None:
    """Return the size of an image by the first of its files that tells it."""
    return next((size for size in map(size_of, files) if size is not None), None)
