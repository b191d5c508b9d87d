"""``lookalike status``."""

import os
from typing import TYPE_CHECKING, Any

import click

from flows.commands.base import Command, json_option, settings_of
from flows.commands.show import printable, size, table, when, write_json

if TYPE_CHECKING:
    from flows.settings import LoadedSettings
    from storage.home import Home


@click.command(
    "status",
    cls=Command,
    short_help="Show settings, roots, spaces and pending work.",
    examples="""\
    lookalike status
    lookalike status --json
    """,
)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Show what is indexed, what is pending, the last runs, and each setting with its origin."""
    loaded = settings_of(ctx)
    values = {"settings": _settings(loaded), **_store(loaded.settings.home_())}
    write_json(values) if as_json else click.echo(_text(values))


def _settings(loaded: "LoadedSettings") -> dict[str, dict[str, Any]]:
    from flows.settings import shown

    values = shown(loaded.settings)
    return {
        name: {"value": value, "origin": loaded.origins[name]} for name, value in values.items()
    }


def _store(home: "Home") -> dict[str, Any]:
    """Return what the catalog holds; only the home where there is no catalog yet."""
    from search.overview import overview
    from storage.catalog import Catalog
    from storage.restore_mark import refuse_restoring

    refuse_restoring(home)
    if home.catalog_url is None and not os.path.exists(home.sqlite) and not home.has_spaces():
        return {"home": home.path, "store_id": None, "roots": [], "spaces": [], "runs": []}
    with Catalog.open(home, write=False) as catalog:
        return {"home": home.path, **overview(catalog)}


def _text(values: dict[str, Any]) -> str:
    blocks = [f"home {printable(values['home'])}, store {values['store_id'] or 'not made yet'}"]
    if values["store_id"] is None:
        blocks.append("nothing is indexed yet: run `lookalike index DIRECTORY`")
    blocks += [_roots(values["roots"]), _spaces(values["spaces"]), _runs(values["runs"])]
    rows = [
        (
            name,
            "" if each["value"] is None else printable(str(each["value"])),
            printable(each["origin"]),
        )
        for name, each in values["settings"].items()
    ]
    blocks.append(table(("setting", "value", "from"), rows))
    return "\n\n".join(block for block in blocks if block)


def _roots(roots: list[dict[str, Any]]) -> str:
    rows = [
        (
            printable(root["path"]),
            root["kind"],
            root["live"],
            root["missing"],
            when(root["scanned_at"]),
        )
        for root in roots
    ]
    head = ("root", "kind", "files", "missing", "last scan")
    return table(head, rows, right=(2, 3)) if rows else ""


def _spaces(spaces: list[dict[str, Any]]) -> str:
    rows = [
        (
            space["name"] + (" *" if space["current"] else ""),
            f"{space['vectors']:,}",
            f"{space['pending']:,}",
            f"{sum(space['failures'].values()):,}",
            size(space["size_bytes"]),
            space["index"] or "none: searched exactly",
            _recall(space),
        )
        for space in spaces
    ]
    head = ("space", "vectors", "pending", "failures", "disk", "index", "recall")
    if not rows:
        return ""
    notes = [space["fallen"] for space in spaces if space["fallen"]]
    return "\n".join([table(head, rows, right=(1, 2, 3, 4, 6)), *notes])


def _recall(space: dict[str, Any]) -> str:
    """Return how much of what exact search finds the index found; empty where it has none."""
    measured = space["recall"]
    return f"{100 * measured['recall']:.1f} %" if space["index"] and measured else ""


def _runs(runs: list[dict[str, Any]]) -> str:
    rows = [(run["id"], run["kind"], run["state"], when(run["started_at"])) for run in runs]
    return table(("run", "kind", "state", "started"), rows) if rows else ""
