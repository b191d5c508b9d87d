"""A contact sheet as one HTML file, which needs nothing beside it: no script, no other file.

The pictures are in it, small and without metadata.  Each leads to its file, on this machine.
"""

import base64
import html
import os
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from extractor.decode import DEFAULT, DecodeError
from extractor.reading import Unread, opened
from extractor.thumbnail import Thumbnail, fitted, thumbnail
from search.answers import Hit
from search.asked import MEANING, MINUS, Found, Term
from search.written import write_file

LONGEST: Final = 320
"""Longer side of a picture, pixels."""

_HEAD: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'">
<title>lookalike: {title}</title>
<style>
:root {{
  color-scheme: light dark;
  --paper: light-dark(#fbfaf8, #17181a); --ink: light-dark(#1d1e20, #ececea);
  --soft: light-dark(#5d6064, #a3a7ac); --line: light-dark(#dddad4, #34373b);
  --accent: light-dark(#b23a12, #ff9466); --unlike: light-dark(#445c99, #9db4f0);
}}
body {{ margin: 0 auto; padding: 1.5rem; max-width: 90rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.4 system-ui, sans-serif; }}
h1 {{ font-size: 1.3rem; margin: 0 0 1.5rem; }}
section {{ border-top: 1px solid var(--line); padding: 1rem 0 1.5rem; }}
h2 {{ font-size: 1rem; font-weight: 600; margin: 0 0 .75rem; overflow-wrap: anywhere; }}
.space {{ color: var(--soft); font-weight: 400; }}
ul, ol {{ list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .9rem; }}
ul {{ margin-bottom: 1rem; }}
figure {{ margin: 0; width: min-content; min-width: 8rem; }}
img, .none, .words {{ display: block; height: 11rem; width: auto; border-radius: 4px;
  max-width: calc(100vw - 3rem); object-fit: contain; background: var(--line); }}
.none, .words {{ width: 11rem; display: grid; place-items: center;
  text-align: center; color: var(--soft); }}
.words {{ color: var(--ink); font-size: 1.2rem; overflow-wrap: anywhere; }}
ul img, ul .none, ul .words {{ outline: 3px solid var(--accent); outline-offset: 2px; }}
.unlike img, .unlike .none, .unlike .words {{ outline-color: var(--unlike); }}
figcaption {{ margin-top: .4rem; font-size: .8rem; color: var(--soft); overflow-wrap: anywhere; }}
b {{ color: var(--ink); font-variant-numeric: tabular-nums; }}
a:focus-visible {{ outline: 3px solid var(--accent); outline-offset: 3px; }}
@media (max-width: 40rem) {{ body {{ padding: 1rem; }} img, .none, .words {{ height: 6.5rem; }} }}
@media print {{ section {{ break-inside: avoid; }} }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
"""
_FOOT: Final = "</main>\n</body>\n</html>\n"


def write_html(found: Sequence[Found], path: str) -> None:
    """Write what some questions found as one HTML file.

    Raises
    ------
    SearchError
        The file can't be written.
    """
    write_file(path, page(found).encode(), "the contact sheet")


def page(found: Sequence[Found]) -> str:
    """Return what some questions found as HTML.  A file that is gone or broken is a grey tile."""
    n = sum(len(each.hits) for each in found)
    title = f"{_count(n, 'hit')} of {_count(len(found), 'question')}"
    return "".join([_HEAD.format(title=title), *map(_section, found), _FOOT])


def _section(found: Found) -> str:
    asked = "".join(map(_asked, found.terms))
    hits = "".join(_hit(rank, hit) for rank, hit in found.ranked)
    listed = f"<ol>\n{hits}</ol>" if hits else "<p>no hits</p>"
    name, space = _text(found.query.what), html.escape(found.space)
    head = f'<h2>{name} <span class="space">in space {space}</span></h2>'
    return f"<section>\n{head}\n<ul>\n{asked}</ul>\n{listed}\n</section>\n"


def _asked(term: Term) -> str:
    kind = ' class="unlike"' if term.sign == MINUS else ""
    if isinstance(term.what, bytes):
        shown, name = _picture(term.what), _text(os.path.basename(term.what))
    else:
        shown, name = f'<div class="words">{_text(term.what)}</div>\n', "words"
    return _figure(f"<li{kind}>", shown, f"<b>{MEANING[term.sign]}</b><br>{name}")


def _hit(rank: int, hit: Hit) -> str:
    facts = [_text(path) for path in hit.paths]
    facts += [
        f"{word} {_text(value)}" for word, value in (("id", hit.id), ("label", hit.label)) if value
    ]
    caption = "<br>".join([f"<b>{rank}. {hit.score:.4f}</b>", *facts])
    return _figure("<li>", _picture(hit.path), caption)


def _figure(begin: str, shown: str, caption: str) -> str:
    return f"{begin}<figure>\n{shown}<figcaption>{caption}</figcaption>\n</figure></li>\n"


def _picture(path: bytes) -> str:
    """Return the picture of a file, which leads to the file."""
    made = _made(path)
    if made is None:
        return '<div class="none">no picture</div>\n'
    width, height = fitted((made.width, made.height), LONGEST)
    data = base64.b64encode(made.jpeg).decode("ascii")
    name = _text(os.path.basename(path))
    return (
        f'<a href="file://{quote(path)}"><img src="data:image/jpeg;base64,{data}"'
        f' width="{width}" height="{height}" alt="{name}" decoding="async"></a>\n'
    )


def _made(path: bytes) -> Thumbnail | None:
    try:
        with opened(path, DEFAULT.size_bytes) as file:
            return thumbnail(file.read(), LONGEST)
    except (Unread, DecodeError):
        return None


def _text(value: bytes | str) -> str:
    r"""Return a path or words for HTML; a byte that is not UTF-8 as ``\xe9``."""
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    text = data.decode("utf-8", "backslashreplace")
    return html.escape("".join(char if char.isprintable() else "�" for char in text))


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"
