"""A report to review duplicates by: one HTML file, or several where there are thousands of groups.

No page grows beyond what a browser takes, and each has links to the one before and after it.
"""

import os
from contextlib import suppress
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote_from_bytes

from search.duplicate_page import MARK, Page, Thumbnail
from search.groups import Group
from search.outputs import is_ours, new_output

PAGES: Final = 100
"""Written at most; more groups are counted and not shown."""


class Report:
    """Writes the pages; a context manager, after an error none of them is left.

    Parameters
    ----------
    path
        Of the first page, absolute; the others are ``NAME-2.html`` and so on.  Pages of an earlier
        report are replaced, anything else is not.
    about
        What was searched for, a sentence.
    thumbnail
        Asked for the pictures.

    Attributes
    ----------
    paths
        The pages that are written so far.
    hidden
        How many groups are on no page, because there are too many.

    Raises
    ------
    OutputError
        A page can't be written.
    """

    def __init__(self, path: str, about: str, thumbnail: Thumbnail) -> None:
        self.paths: list[str] = []
        self.hidden = 0
        self._path = path
        self._about = about
        self._thumbnail = thumbnail
        self._first = new_output(path, MARK)
        self._page: Page | None = None

    def add(self, group: Group) -> None:
        """Show a group; of one that comes in pieces the first."""
        if group.before:
            return
        page = self._page
        if page is None or not page.has_room(group):
            if len(self.paths) == PAGES:
                self.hidden += 1
                return
            page = self._next()
        page.add(group, self._thumbnail)

    def _next(self) -> Page:
        """End the page that is open, and begin another one."""
        number = len(self.paths)
        if self._page is not None:
            self._page.end(self._link(number + 1))
            self._page = None
        path = self._name(number + 1)
        file = self._first if number == 0 else new_output(path, MARK)
        self._page = Page(file, self._about, number + 1, self._link(number))
        self.paths.append(path)
        return self._page

    def _name(self, number: int) -> str:
        base, suffix = os.path.splitext(self._path)
        return self._path if number == 1 else f"{base}-{number}{suffix}"

    def _link(self, number: int) -> str | None:
        if not number:
            return None
        return quote_from_bytes(os.fsencode(os.path.basename(self._name(number))), safe="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            page = self._page or self._next()  # an empty one says so
            page.end(None, self.hidden)
            self._remove_former()
            return
        if self._page is not None:
            self._page.abandon(kind, error, trace)
            self.paths.pop()
        for path in self.paths:
            with suppress(OSError):
                os.unlink(path)

    def _remove_former(self) -> None:
        """Remove the pages that an earlier report had more than this one."""
        number = len(self.paths) + 1
        with suppress(OSError):
            while is_ours(self._name(number), MARK):
                os.unlink(self._name(number))
                number += 1
