"""The contact sheet as a page: what is in it, and that nothing in a name becomes a part of it."""

import base64
import os
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from PIL import Image

from search.answers import Hit
from search.asked import MINUS, PLUS, Found, Term
from search.errors import SearchError
from search.html_sheet import page, write_html
from tests.extractor.pictures import far, scene, with_orientation

ODD = b"<script>alert(1)</script>'\"&\n\xe9.jpg"


class Read(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def saved(folder: Path, name: bytes) -> bytes:
    path = os.path.join(os.fsencode(folder), name.replace(b"/", b"_"))
    exif = with_orientation(6)
    exif[0x010F] = "SECRET camera"
    scene(600, 400).save(path, "JPEG", exif=exif, quality=95)
    return path


def hit(path: bytes, *others: bytes, **facts: str) -> Hit:
    return Hit(0.98765, path, (path, *others), 7, 7, **facts)


def test_pictures_are_inside_small_upright_and_bare(tmp_path: Path) -> None:
    path = saved(tmp_path, b"a.jpg")
    read = Read(page([Found((Term(path),), "s", (hit(path),))]))
    assert len(read.all("img")) == 2
    for image in read.all("img"):
        head, _, data = str(image["src"]).partition(",")
        jpeg = base64.b64decode(data, validate=True)
        picture = Image.open(BytesIO(jpeg))
        assert head == "data:image/jpeg;base64"
        assert b"SECRET" not in jpeg
        assert picture.size == (213, 320) == (int(image["width"]), int(image["height"]))
        turned = scene(600, 400).transpose(Image.Transpose.ROTATE_270)
        assert far(picture, turned.resize(picture.size)) < 3


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    path = saved(tmp_path, b"a.jpg")
    read = Read(page([Found((Term(path), Term("words", PLUS)), "s", (hit(path),))]))
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "link", "iframe", "object", "form"})
    [policy] = [one for one in read.all("meta") if one.get("http-equiv")]
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:;")
    for _, attributes in read.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert str(attributes.get("href", "file:///")).startswith("file:///")
    assert "light-dark(" in page([])
    assert "url(" not in page([])


def test_names_are_text_whatever_they_are(tmp_path: Path) -> None:
    path = saved(tmp_path, ODD)
    found = Found(
        (Term(path), Term("<b>words</b>", PLUS)),
        "<i>space</i>",
        (hit(path, b"/x/<u>.jpg", id="<td>", label="<hr>"),),
    )
    text = page([found])
    read = Read(text)
    assert {"script", "b", "i", "u", "td", "hr"} & {tag for tag, _ in read.tags} == {"b"}
    for literal in ("<script>alert(1)<", "<b>words</b>", "<i>space</i>", "/x/<u>.jpg", "<td>"):
        assert literal in read.text
    assert "\\xe9" in read.text
    assert "\n\\xe9" not in read.text
    for link in read.all("a"):
        place = urlsplit(str(link["href"]))
        assert (place.scheme, place.netloc) == ("file", "")
        assert unquote_to_bytes(place.path) == path
    text.encode()


def test_each_question_has_its_part_in_order(tmp_path: Path) -> None:
    path = saved(tmp_path, b"a.jpg")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    first = Found(
        (Term(path), Term(path, PLUS), Term(path, MINUS)), "s", (hit(path), hit(b"/none.jpg")), 20
    )
    second = Found((Term(os.fsencode(broken)),), "s", ())
    read = Read(page([first, second, Found((Term("red car"),), "s", (hit(path),))]))
    assert len(read.all("section")) == 3
    assert "3 hits of 3 questions" in read.text
    order = ["query", "more like this", "less like this", "21. 0.9877", "22. 0.9877", "no hits"]
    places = [re.search(re.escape(word), read.text) for word in [*order, "red car"]]
    assert all(places)
    starts = [place.start() for place in places if place]
    assert starts == sorted(starts)
    assert read.text.count("no picture") == 2  # gone, and broken


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out.html"
    write_html([Found((Term("a"),), "s", ())], str(target))
    first = target.read_text()
    assert first.startswith("<!DOCTYPE html>")
    assert first.endswith("</html>\n")
    write_html([Found((Term("b"),), "s", ())], str(target))
    assert target.read_text() != first
    assert os.listdir(tmp_path) == ["out.html"]
    with pytest.raises(SearchError, match=r"contact sheet .*none/out\.html can't be written"):
        write_html([], str(tmp_path / "none" / "out.html"))
