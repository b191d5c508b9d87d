"""HTML taken apart strictly: what a browser would silently mend is an error here."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Self

VOID = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"]
)
REFERENCES = ("for", "form", "aria-labelledby", "aria-describedby", "aria-controls")


@dataclass
class Element:
    tag: str
    attrs: dict[str, str]
    parent: "Element | None" = field(default=None, repr=False)
    inside: "list[Element | str]" = field(default_factory=list, repr=False)

    @property
    def text(self) -> str:
        """All text in it, blanks folded."""
        return " ".join(self._text().split())

    def _text(self) -> str:
        return "".join(one if isinstance(one, str) else one._text() for one in self.inside)

    @property
    def classes(self) -> set[str]:
        return set(self.attrs.get("class", "").split())

    def walk(self) -> "Iterator[Element]":
        """Yield it and all elements in it, in the order of the document."""
        yield self
        for one in self.inside:
            if isinstance(one, Element):
                yield from one.walk()

    def all(self, tag: str = "", cls: str = "", **attrs: str) -> "list[Element]":
        """Return the elements in it of a tag, a class and attributes."""
        return [
            one
            for one in self.walk()
            if (not tag or one.tag == tag)
            and (not cls or cls in one.classes)
            and all(one.attrs.get(name.rstrip("_")) == value for name, value in attrs.items())
        ]

    def one(self, tag: str = "", cls: str = "", **attrs: str) -> "Element":
        """Return the only such element."""
        found = self.all(tag, cls, **attrs)
        assert len(found) == 1, (tag, cls, attrs, found)
        return found[0]

    def lies_in(self, tag: str) -> bool:
        above = self.parent
        while above is not None and above.tag != tag:
            above = above.parent
        return above is not None


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice: {tag} {attrs}"
        element = Element(tag, {name: value or "" for name, value in attrs}, self.open[-1])
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


class Page(Element):
    """A whole page."""

    @classmethod
    def of(cls, body: bytes) -> Self:
        text = body.decode("utf-8", "strict")
        assert text.startswith("<!doctype html>")
        parser = _Parser()
        parser.feed(text)
        parser.close()
        assert parser.open == [parser.root], f"not closed: {parser.open[1:]}"
        return cls("", {}, None, parser.root.inside)

    def check(self) -> None:
        """Fail where the page is not safe, not whole or can't be read by everybody."""
        assert self.one("html").attrs["lang"] == "en"
        assert self.one("title").text
        assert len(self.all("h1")) == 1
        assert len(self.all("main")) == 1
        self._check_references()
        self._check_safety()
        self._check_names()

    def _check_references(self) -> None:
        ids = [one.attrs["id"] for one in self.walk() if "id" in one.attrs]
        assert len(ids) == len(set(ids)), f"an id twice: {ids}"
        for one in self.walk():
            for name in REFERENCES:
                for target in one.attrs.get(name, "").split():
                    assert target in ids, (one, name)

    def _check_safety(self) -> None:
        assert not self.all("style")
        for one in self.walk():
            assert "style" not in one.attrs, one
            assert not [name for name in one.attrs if name.startswith("on")], one
        for script in self.all("script"):
            assert script.attrs["src"].startswith("/static/")
            assert not script.text

    def _check_names(self) -> None:
        for image in self.all("img"):
            assert "alt" in image.attrs, image
        for control in [*self.all("input"), *self.all("select"), *self.all("textarea")]:
            if control.attrs.get("type") != "hidden":
                assert self._is_named(control), control
        for control in [*self.all("button"), *self.all("a")]:
            images = " ".join(image.attrs["alt"] for image in control.all("img"))
            named = control.text + control.attrs.get("aria-label", "") + images
            assert named.strip(), control

    def _is_named(self, control: Element) -> bool:
        labels = {label.attrs.get("for") for label in self.all("label")}
        return (
            control.attrs.get("id", "-") in labels
            or control.lies_in("label")
            or "aria-label" in control.attrs
        )

    def links(self) -> set[str]:
        """Return all addresses that a person or the browser can go to by GET."""
        found = {
            one.attrs[name] for one in self.walk() for name in ("href", "src") if name in one.attrs
        }
        found |= {
            part.split()[0]
            for one in self.walk()
            if "srcset" in one.attrs
            for part in one.attrs["srcset"].split(",")
        }
        return {link for link in found if not link.startswith("#")}

    def form(self, name: str) -> "Form":
        """Return the form of an id."""
        return Form(self, self.one("form", id=name))


@dataclass
class Form:
    """A form as a browser without scripts would send it."""

    page: Page
    element: Element

    @property
    def method(self) -> str:
        return self.element.attrs["method"].upper()

    @property
    def action(self) -> str:
        return self.element.attrs["action"]

    def fields(self, pressed: Element | None = None, **typed: str) -> list[tuple[str, str]]:
        """Return what is sent when a button is pressed, or Enter; ``typed`` stands for input."""
        sent = []
        for one in self._controls():
            name, kind = one.attrs.get("name"), one.attrs.get("type", "text")
            if not name or "disabled" in one.attrs or one.tag == "button":
                continue
            if kind in ("checkbox", "radio"):
                if name in typed or "checked" in one.attrs:
                    sent.append((name, one.attrs.get("value", "on")))
            elif one.tag == "select":
                sent.append((name, typed.get(name, _chosen(one))))
            elif kind not in ("file", "submit"):
                shown = kind != "hidden" and name in typed
                sent.append((name, typed[name] if shown else one.attrs.get("value", "")))
        if pressed is not None:
            assert pressed in self._controls()
            sent.append((pressed.attrs["name"], pressed.attrs["value"]))
        return sent

    def _controls(self) -> list[Element]:
        own = self.element.attrs.get("id")
        return [
            one
            for one in self.page.walk()
            if one.tag in ("input", "select", "button", "textarea")
            and (one.attrs["form"] == own if "form" in one.attrs else one in self._inside)
        ]

    @property
    def _inside(self) -> list[Element]:
        return list(self.element.walk())


def _chosen(select: Element) -> str:
    options = select.all("option")
    chosen = [one for one in options if "selected" in one.attrs] or options[:1]
    return chosen[0].attrs["value"]
