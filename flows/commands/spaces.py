"""``lookalike spaces``."""

from typing import TYPE_CHECKING, Any

import click

from flows.commands.base import Command, Group, json_option, leased, list_unless_named, opened
from flows.commands.show import printable, size, table, when, write_json

if TYPE_CHECKING:
    from storage.catalog import Catalog

WHOLE_SHARE = 0.9
"""With a smaller share of the current space's vectors than this, a switch is worth a warning."""


@click.group(
    "spaces",
    cls=Group,
    invoke_without_command=True,
    short_help="List, choose or drop the spaces of vectors.",
    examples="""\
    lookalike spaces
    lookalike spaces use vgg16-fc7
    lookalike spaces drop resnet50-avgpool
    """,
)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List, choose or drop spaces: the ways in which vectors were made.

    `lookalike index --model NAME` makes a new one beside those that are there.
    """
    list_unless_named(ctx, list_command, as_json=as_json)


@command.command(
    "list",
    cls=Command,
    short_help="List the spaces.",
    examples="""\
    lookalike spaces --json
    """,
)
@json_option
@click.pass_context
def list_command(ctx: click.Context, as_json: bool) -> None:
    """List the spaces; the current one, which index and search use, has a star."""
    from search.overview import spaces_overview
    from storage.space_names import recipe_text

    with opened(ctx) as catalog:
        spaces = spaces_overview(catalog)
    if as_json:
        write_json([space.to_json() for space in spaces])
        return
    rows = [
        (
            f"{space.name}{' *' if space.current else ''}",
            recipe_text(space.model),
            f"{space.dim} {space.dtype}",
            f"{space.vectors:,}",
            size(space.size_bytes),
            space.index or "none: searched exactly",
        )
        for space in spaces
    ]
    click.echo(
        table(("space", "recipe", "numbers", "vectors", "disk", "index"), rows, right=(3, 4))
    )


@command.command(
    "show",
    cls=Command,
    short_help="Tell how a space's vectors are made.",
    examples="""\
    lookalike spaces show
    lookalike spaces show resnet50-maps-gem --json
    """,
)
@click.argument("name", required=False)
@json_option
@click.pass_context
def show_command(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """Tell all that the vectors of the space NAME, or of the current one, depend on."""
    from storage.spaces import get_space

    with opened(ctx) as catalog:
        space = get_space(catalog, name)
    facts = {
        "space": space.name,
        "current": space.current,
        "made_at": space.created_at,
        "fingerprint": space.fingerprint,
        "request": dict(space.request),
        "spec": dict(space.spec),
    }
    if as_json:
        write_json(facts)
        return
    rows = [
        ("space", f"{space.name}{' *' if space.current else ''}"),
        ("made", when(space.created_at)),
        *((f"asked {key}", _plain(value)) for key, value in space.request.items()),
        *((key, _plain(value)) for key, value in space.spec.items()),
        ("fingerprint", space.fingerprint),
    ]
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        click.echo(f"{key.replace('_', ' '):{width}}  {value}")


def _plain(value: Any) -> str:
    """Return a value of a recipe on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items() if part)
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


@command.command(
    "use",
    cls=Command,
    short_help="Make a space the current one.",
    examples="""\
    lookalike spaces use vgg16-fc7
    """,
)
@click.argument("name")
@click.option("--force", is_flag=True, help="Even where NAME has no vectors yet.")
@click.pass_context
def use_command(ctx: click.Context, name: str, force: bool) -> None:
    """Make NAME the space that `search` and `serve` ask, and that `index` maintains.

    A server that runs goes over to it with its next request.  Where the settings name a model,
    `index` goes on with that model's space.
    """
    from storage.spaces import use_space

    with opened(ctx, write=True) as catalog:
        fewer = _fewer_vectors(catalog, name)
        use_space(catalog, name, force=force)
        other = _of_settings(ctx, catalog, name)
    click.echo(f"space {name} is the current one")
    for line in (fewer, other):
        if line is not None:
            click.echo(f"lookalike: {line}", err=True)


def _fewer_vectors(catalog: "Catalog", name: str) -> str | None:
    """Return what to know where the space finds far fewer images than the current one does."""
    from search.overview import spaces_overview

    spaces = spaces_overview(catalog)
    new = next((space for space in spaces if space.name == name), None)
    old = next((space for space in spaces if space.current), None)
    if new is None or old is None or new.vectors >= WHOLE_SHARE * old.vectors:
        return None
    return (
        f"space {new.name} has {new.vectors:,} vectors, {old.name} has {old.vectors:,}: searches "
        f"find fewer images until `lookalike index --space {new.name}` has extracted the rest"
    )


def _of_settings(ctx: click.Context, catalog: "Catalog", name: str) -> str | None:
    """Return what to know where the settings have `index` maintain another space."""
    from flows.job.parameters import options_for
    from flows.job.spaces import find_spaces, new_space_name

    choice = options_for(ctx.ensure_object(dict))[0].choice
    if not choice.names_a_model:
        return None
    found = [space.name for space in find_spaces(catalog, choice)] or [new_space_name(choice)]
    if name in found:
        return None
    return (
        f"the settings name the model of space {found[0]}, which `lookalike index` goes on to "
        f"maintain; change them, or use `lookalike index --space {name}`"
    )


@command.command(
    "drop",
    cls=Command,
    short_help="Delete a space and its vectors.",
    examples="""\
    lookalike spaces drop resnet50-avgpool
    """,
)
@click.argument("name")
@click.pass_context
def drop_command(ctx: click.Context, name: str) -> None:
    """Delete the space NAME with its vectors and index.  There is no way back but to extract."""
    from storage.spaces import drop_space

    with opened(ctx, write=True) as catalog, leased(catalog, "drop") as lease:
        drop_space(catalog, lease, name)
    click.echo(f"space {name} is dropped")
