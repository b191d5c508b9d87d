"""What all commands share: where the store is, their examples, and a run's lease."""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from flows.settings import LoadedSettings
    from storage.catalog import Catalog
    from storage.leases import Lease

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class _Examples:
    """Adds a block of examples to the help of a command."""

    examples: str

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they stand."""
        with formatter.section("Examples"):
            for line in inspect.cleandoc(self.examples).splitlines():
                formatter.write(f"  {line}\n")


class Command(_Examples, click.Command):
    """A command with examples, which takes ``--home`` and ``--catalog-url`` like the group."""

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params += [_option(name, text, hidden=True) for name, text in STORE_OPTIONS.items()]


class Group(_Examples, click.Group):
    """A group with examples, which takes ``--home`` and ``--catalog-url`` like a command."""

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        shown = {param.name for param in self.params}
        hidden = {name: text for name, text in STORE_OPTIONS.items() if name not in shown}
        self.params += [_option(name, text, hidden=True) for name, text in hidden.items()]


STORE_OPTIONS = {
    "home": "Directory of the catalog, vectors and indexes (LOOKALIKE_HOME).",
    "catalog_url": "Postgres catalog, postgresql://... (LOOKALIKE_CATALOG_URL).",
}
"""Options of the group and, hidden, of each command; the innermost wins."""


def _keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and param.name is not None:
        ctx.ensure_object(dict)[param.name] = value


def _option(name: str, text: str, *, hidden: bool) -> click.Option:
    flag, metavar = f"--{name.replace('_', '-')}", "DIR" if name == "home" else "URL"
    return click.Option(
        [flag], expose_value=False, callback=_keep, metavar=metavar, help=text, hidden=hidden
    )


def common_options(function: Decorated) -> Decorated:
    """Add ``--home`` and ``--catalog-url``."""
    for name, text in reversed(STORE_OPTIONS.items()):
        metavar = "DIR" if name == "home" else "URL"
        flag = f"--{name.replace('_', '-')}"
        function = click.option(
            flag, expose_value=False, callback=_keep, metavar=metavar, help=text
        )(function)
    return function


json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")


def list_unless_named(ctx: click.Context, command: click.Command, *, as_json: bool) -> None:
    """Run the command that lists where a group was called without the name of one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(command, as_json=as_json)
    elif as_json:
        raise click.UsageError(f"--json stands behind the command: {ctx.invoked_subcommand} --json")


def settings_of(ctx: click.Context, **flags: Any) -> "LoadedSettings":
    """Load the settings with what was typed: the command's ``flags`` and the store options."""
    from flows.settings import load_settings

    return load_settings({**ctx.ensure_object(dict), **flags})


@contextmanager
def opened(ctx: click.Context, *, write: bool = False) -> Iterator["Catalog"]:
    """Open the catalog that the settings name, and close it.  Only ``index`` makes a store."""
    from storage.catalog import Catalog

    home = settings_of(ctx).settings.home_()
    catalog = Catalog.open(home, write=write and home.is_made())
    try:
        yield catalog
    finally:
        catalog.close()


@contextmanager
def leased(catalog: "Catalog", kind: str) -> Iterator["Lease"]:
    """Run the body as a run of its own, under a lease that is renewed until it ends."""
    from storage.leases import finish_run, reap, start_run
    from storage.runs import Heartbeat

    reap(catalog)
    lease = start_run(catalog, kind)
    state = "failed"
    try:
        with Heartbeat(catalog, lease):
            yield lease
        state = "done"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        finish_run(catalog, lease, state, {})


def absolute(paths: Sequence[str]) -> list[bytes]:
    """Return typed paths as absolute bytes; a name need not be UTF-8."""
    return [os.path.abspath(os.fsencode(path)) for path in paths]
