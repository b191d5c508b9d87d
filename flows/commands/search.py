"""``lookalike search``."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from flows.commands.base import Command, absolute, json_option, settings_of
from flows.commands.searching import PICTURES, odd_paths_line, terms_of, told
from flows.commands.show import printable, write_json
from flows.commands.writing import check_apart, check_beside

if TYPE_CHECKING:
    from search.asked import Found
    from search.engine import Searcher
    from search.questions import Wanted


@click.command(
    "search",
    cls=Command,
    short_help="Find the images that look like the given ones.",
    examples="""\
    lookalike search holiday.jpg
    lookalike search *.jpg -k 3 --json
    lookalike search beach.png --under ~/Pictures/2019 --under ~/Scans --min-score 0.8
    lookalike search beach.png --plus sunset.jpg --minus crowd.jpg
    lookalike search "red car"
    lookalike search beach.png --no-self --distinct 0.95 --html hits.html --export hits.csv
    lookalike search beach.png -k 20 --skip 20
    """,
)
@click.argument("queries", nargs=-1, metavar="IMAGE...")
@click.option("--text", "texts", multiple=True, metavar="WORDS", help="Search by words too.")
@click.option("--plus", multiple=True, metavar="IMAGE", help="And more like this one.")
@click.option("--minus", multiple=True, metavar="IMAGE", help="But less like this one.")
@click.option("-k", "k", type=click.IntRange(1), default=10, show_default=True, help="Most hits.")
@click.option(
    "--skip", type=click.IntRange(0), default=0, metavar="N", help="Leave out the N best hits."
)
@click.option("--space", metavar="NAME", help="Space to search; without it the current one.")
@click.option(
    "--under",
    multiple=True,
    metavar="PATH",
    help="Only images at or below this path, or of this manifest; several may be named.",
)
@click.option("--min-score", type=float, metavar="X", help="Only scores (cosine) of at least X.")
@click.option(
    "--distinct",
    type=float,
    metavar="X",
    help="Leave out a hit whose cosine with a better one is at least X, such as 0.95.",
)
@click.option("--no-self", is_flag=True, help="Leave out the images that were asked for.")
@click.option("--export", metavar="OUT.csv", help="Write the hits as CSV.")
@click.option("--sheet", metavar="OUT.png", help="Draw the hits as a contact sheet.")
@click.option("--html", metavar="OUT.html", help="Write the hits as a page that needs no other.")
@click.option(
    "--pictures",
    type=click.Choice(PICTURES),
    default="auto",
    show_default=True,
    help="How a terminal shows pictures, if it can.",
)
@click.option("--device", metavar="DEV", help="Where an image that is not indexed is run.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    pictures: str,
    space: str | None,
    device: str | None,
    as_json: bool,
    **typed: Any,
) -> None:
    """Find the images that look most like each IMAGE.

    Scores are cosines: 1 is the same image.  An IMAGE that is indexed is looked up, any other one
    is run through the space's network first.  Where that network knows words (one of `clip:...`),
    an IMAGE that is no file and isn't named like one is taken as words; --text says that it is.

    Each IMAGE is a question of its own, and every --plus and --minus goes to each of them: hits are
    like the IMAGE and what is added, and unlike the others.

    --json writes a list with an object for each question: query, space and hits, which are score,
    path, paths, image_id and row, with id and label where a manifest gives them; and where they
    were asked for, plus, minus and skip, and words where the query is some.  --export writes the
    columns query, rank, score, image_id, path (that of the first file), id and label as UTF-8; a
    path that is not UTF-8 stands as its bytes.
    """
    if not typed["queries"] and not typed["texts"]:
        raise click.MissingParameter(ctx=ctx, param_hint="'IMAGE...'", param_type="argument")
    from search.engine import Searcher
    from search.garbage import settle

    out = _Outputs(**{name: typed.pop(name) for name in ("export", "sheet", "html")})
    out.check()
    settings = settings_of(ctx, device=device).settings
    wanted = _wanted(typed)
    with Searcher(settings.home_(), space, device=settings.device) as searcher:
        settle()
        found = _found(searcher, typed, wanted)
        out.check_beside(found)
        for line in searcher.warnings:
            click.echo(f"lookalike: {printable(line)}", err=True)
    if as_json:
        write_json([each.to_json() for each in found])
    else:
        for block in told(found, pictures):
            click.echo(block)
    out.write(found)


def _wanted(typed: dict[str, Any]) -> "Wanted":
    from search.questions import Wanted

    names = ("k", "skip", "min_score", "no_self", "distinct")
    under = tuple(absolute(typed.pop("under")))
    return Wanted(under=under, **{name: typed.pop(name) for name in names})


def _found(searcher: "Searcher", typed: dict[str, Any], wanted: "Wanted") -> "list[Found]":
    """Return what each question found, in the order in which they were typed."""
    from search.asked import MINUS, PLUS, QUERY, Found, Term, question

    queries = terms_of(typed["queries"], QUERY, searcher.space)
    queries += [Term(text) for text in typed["texts"]]
    beside = [
        *terms_of(typed["plus"], PLUS, searcher.space),
        *terms_of(typed["minus"], MINUS, searcher.space),
    ]
    asked = [(query, *beside) for query in queries]
    replies = searcher.replies([question(terms) for terms in asked], wanted)
    return [
        Found(terms, reply.space, reply.hits, wanted.skip)
        for terms, reply in zip(asked, replies, strict=True)
    ]


@dataclass(frozen=True)
class _Outputs:
    """Files that the hits go to beside the terminal."""

    export: str | None
    sheet: str | None
    html: str | None

    def check(self) -> None:
        """Refuse one file for two of them."""
        check_apart(self._named())

    def check_beside(self, found: "Sequence[Found]") -> None:
        """Refuse to write over a picture that was asked for or found."""
        pictures = [os.fsencode(term.what) for each in found for term in each.terms if term.is_path]
        pictures += [path for each in found for hit in each.hits for path in hit.paths]
        check_beside(self._named(), pictures)

    def _named(self) -> dict[str, str | None]:
        return {"--export": self.export, "--sheet": self.sheet, "--html": self.html}

    def write(self, found: "Sequence[Found]") -> None:
        """Write those that were asked for, and say so."""
        if self.export is not None:
            from search.table_file import csv_of
            from search.written import write_file

            write_file(os.path.abspath(self.export), csv_of(found), "the list of hits")
            _say("hits", self.export)
            if line := odd_paths_line(found, self.export):
                click.echo(f"lookalike: {line}", err=True)
        if self.sheet is not None:
            from search.sheet import draw_sheet

            draw_sheet(found, os.path.abspath(self.sheet))
            _say("contact sheet", self.sheet)
        if self.html is not None:
            from search.html_sheet import write_html

            write_html(found, os.path.abspath(self.html))
            _say("contact sheet", self.html)


def _say(what: str, path: str) -> None:
    click.echo(f"{what}: {printable(os.path.abspath(path))}", err=True)
