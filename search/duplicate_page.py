"""One page of a report on duplicates: HTML that needs nothing else, and runs no script."""

from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from itertools import groupby
from types import TracebackType
from typing import Final
from urllib.parse import quote_from_bytes

from search.groups import Group, Member
from storage.durable import DurableFile

GROUPS: Final = 100
"""On one page."""
PICTURES: Final = 400
"""Thumbnails on one page; a group begins a new page where it would pass that."""
IMAGES_SHOWN: Final = 24
"""Of one group; the others are counted."""
PATHS_SHOWN: Final = 20
"""Of one image; the others are counted."""
MARK: Final = b'<meta name="generator" content="lookalike duplicates">'
_STYLE: Final = """\
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --soft: #5a5a5a; --line: #d8d8d8;
  --panel: #f6f6f4; --keep: #14692f }
@media (prefers-color-scheme: dark) { :root { --paper: #161616; --ink: #ececec; --soft: #ababab;
  --line: #3a3a3a; --panel: #1f1f1f; --keep: #7fd69a } }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif }
h1 { font-size: 1.4rem; margin: 0 0 .5rem } h2 { font-size: 1rem; margin: 0 0 .6rem }
p { margin: .4rem 0; max-width: 60rem } .soft { color: var(--soft) }
nav { display: flex; gap: 1rem; margin: .8rem 0 }
a { color: inherit }
section { border: 1px solid var(--line); border-radius: .5rem; background: var(--panel);
  padding: .8rem; margin: .8rem 0 }
ul.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr));
  gap: .8rem; list-style: none; margin: 0; padding: 0 }
ul.images > li { border-top: .25rem solid var(--line); padding-top: .4rem; min-width: 0 }
ul.images > li.keep { border-color: var(--keep) }
ul.images img, .none { display: block; max-width: 100%; height: 10rem; object-fit: contain;
  object-position: left }
.none { width: 10rem; border: 1px dashed var(--line); color: var(--soft); font-size: .85rem }
.keep strong { color: var(--keep) }
ul.paths { list-style: none; margin: .3rem 0 0; padding: 0; font-size: .85rem;
  overflow-wrap: anywhere }
ul.paths li { margin: .15rem 0 }
"""
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Thumbnail = Callable[[int], bytes | None]
"""Image -> a JPEG of it, None where there can't be one now."""


class Page:
    """One page, written as groups come.

    Parameters
    ----------
    file
        Where to; it appears at the page's end.
    about
        What was searched for, a sentence.
    number
        From 1 on.
    before
        Link to the page before, if there is one.
    """

    def __init__(self, file: DurableFile, about: str, number: int, before: str | None) -> None:
        self._file = file.__enter__()
        self._number = number
        self._before = before
        self._groups = self._pictures = 0
        title = "Duplicates" if number == 1 else f"Duplicates, page {number}"
        self._write(
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{MARK.decode()}\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="referrer" content="no-referrer">\n'
            f"<title>{title}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{title}</h1>\n<p>{escape(about)}</p>\n"
            '<p class="soft">Nothing was moved or removed. The picture marked “keep” is the '
            "largest in pixels, then in bytes, then the oldest. A score is the cosine with it.</p>"
        )
        self._links(None)

    def has_room(self, group: Group) -> bool:
        """Return whether a group fits."""
        if not self._groups:
            return True
        return self._groups < GROUPS and self._pictures + _shown(group) <= PICTURES

    def add(self, group: Group, thumbnail: Thumbnail) -> None:
        """Show a group."""
        self._groups += 1
        self._pictures += _shown(group)
        by_image = [list(some) for _, some in groupby(_members(group), key=_image)]
        kind = "the same bytes" if group.is_exact else "look alike"
        n = f"{'more than ' if group.goes_on else ''}{1 + len(group.others):,} files"
        self._write(
            f"<section>\n<h2>Group {group.number}: {n}, {kind}, "
            f'{_size(group.size_bytes)} beside the kept one</h2>\n<ul class="images">'
        )
        for members in by_image[:IMAGES_SHOWN]:
            self._write(_picture(members, thumbnail(members[0].held.image_id), group.keep))
        self._write("</ul>")
        if len(by_image) > IMAGES_SHOWN:
            self._write(f"<p>And {len(by_image) - IMAGES_SHOWN:,} more pictures.</p>")
        self._write("</section>")

    def end(self, after: str | None, hidden: int = 0) -> None:
        """Finish it."""
        if not self._groups:
            self._write("<p>There are none.</p>")
        if hidden:
            self._write(
                f"<p><strong>{hidden:,} more groups are not shown.</strong> `lookalike duplicates "
                "--json` lists all of them, and --under, or a higher --near, finds fewer.</p>"
            )
        self._links(after)
        self._write("</main>\n</body>\n</html>")
        self._file.__exit__(None, None, None)

    def abandon(
        self,
        kind: type[BaseException],
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave nothing of it."""
        self._file.__exit__(kind, error, trace)

    def _links(self, after: str | None) -> None:
        links = [(self._before, "prev", "Page before"), (after, "next", "Next page")]
        shown = [f'<a rel="{rel}" href="{to}">{text}</a>' for to, rel, text in links if to]
        if shown:
            self._write(f'<nav aria-label="Pages">{"".join(shown)}</nav>')

    def _write(self, text: str) -> None:
        self._file.write((text + "\n").encode("utf-8", "backslashreplace"))


def _members(group: Group) -> list[Member]:
    return [group.keep, *group.others]


def _image(member: Member) -> int:
    return member.held.image_id


def _shown(group: Group) -> int:
    return min(IMAGES_SHOWN, len({_image(each) for each in _members(group)}))


def _picture(members: list[Member], jpeg: bytes | None, keep: Member) -> str:
    """Return one image of a group with the files that hold it."""
    first = members[0]
    kept = first is keep
    facts = [f"{first.size[0]:,} × {first.size[1]:,}"] if first.size else []
    facts += [_size(first.held.size_bytes), _day(first.held.mtime_ns)]
    head = "<strong>keep</strong>" if kept else f"score {first.score:.4f}"
    shown = '<div class="none">no picture now</div>'
    if jpeg is not None:
        data = b64encode(jpeg).decode("ascii")
        alt = f"image {first.held.image_id}" + (", the one to keep" if kept else "")
        shown = f'<img src="data:image/jpeg;base64,{data}" alt="{alt}" loading="lazy">'
    mark = ' class="keep"' if kept else ""
    paths = [_path(each, keep) for each in members[:PATHS_SHOWN]]
    if len(members) > PATHS_SHOWN:
        paths.append(f"<li>and {len(members) - PATHS_SHOWN:,} more files</li>")
    return (
        f"<li{mark}>{shown}\n<div>{head}</div>\n"
        f'<div class="soft">{", ".join(facts)}</div>\n<ul class="paths">\n'
        + "\n".join(paths)
        + "\n</ul></li>"
    )


def _path(member: Member, keep: Member) -> str:
    link = quote_from_bytes(member.held.path)
    word = "keep" if member is keep else "other"
    return f'<li>{word}: <a href="file://{link}">{escape(_printable(member.held.path))}</a></li>'


def _printable(path: bytes) -> str:
    """Return a path as text; what can't be shown, or would turn the text around, is escaped."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _size(n_bytes: int) -> str:
    """Return a number of bytes for people: ``812 B``, ``4.1 MB``."""
    value, units = float(n_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:,.1f} {units[0]}"


def _day(mtime_ns: int) -> str:
    try:
        return datetime.fromtimestamp(mtime_ns / 1e9, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "no date"
