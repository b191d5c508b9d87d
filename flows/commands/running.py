"""What the commands that run the job share: their options, and how a run is told."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flows.commands.base import json_option
from flows.commands.show import leave, write_json

if TYPE_CHECKING:
    from flows.job.loop import IndexOptions

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
UNAVAILABLE = 4
PREFECT = {None: None, True: "always", False: "never"}

MODEL = (
    click.option("--model", metavar="NAME", help="Network; `lookalike models` lists them."),
    click.option(
        "--weights", metavar="W", help="DEFAULT, a published name, a FILE or random[:SEED]."
    ),
    click.option("--input-size", type=click.IntRange(1), help="Side of the network's input."),
    click.option(
        "--pool",
        type=click.Choice(["avg", "max", "gem"]),
        help="Pool the layer's feature maps; without --layer, the last ones.",
    ),
    click.option(
        "--scales", metavar="S,...", help="Average over these sizes of the input: 1,0.7071,0.5."
    ),
    click.option(
        "--relu/--no-relu", default=None, help="Take a layer behind its ReLU (default), or before."
    ),
)
"""Options that say which network it is and what becomes of a layer."""
LAYER = (
    click.option("--layer", metavar="NAME", help="fc7, avgpool, logits, ... or any node's name."),
)
SPACE = (
    click.option(
        "--space", metavar="NAME", help="Space to maintain, or a new one's name; `all`: each."
    ),
    click.option(
        "--dtype", type=click.Choice(["float32", "float16"]), help="Stored type of a new space."
    ),
)
"""Options that say where vectors are kept, and how."""
RECIPE = (MODEL[0], *LAYER, *MODEL[1:], *SPACE)
"""Options that say which vectors are made."""
WORK = (
    click.option(
        "--device",
        metavar="DEV",
        help="auto, cpu, cuda, cuda:N, or a list, cuda:0,cuda:1; auto takes every GPU.",
    ),
    click.option("--batch-size", type=click.IntRange(1), help="Images in one forward pass."),
    click.option("--workers", type=click.IntRange(1), help="Threads that read and decode."),
    click.option("--chunk-size", type=click.IntRange(1, 8192), help="Most images of one commit."),
    click.option(
        "--max-failures", type=click.FloatRange(0, 1), help="Share that may fail, 0 to 1."
    ),
)
"""Options that say how the work is done."""
PASS = (
    click.option(
        "--engine",
        type=click.Choice(["auto", "torch", "compile", "onnx"]),
        help="Of forward passes on a CPU; auto takes torch, or what pays for itself in all that "
        "is pending.",
    ),
)
"""Option that says what computes; never what comes out."""
CLUSTER = (
    click.option(
        "--runner",
        type=click.Choice(["thread", "dask"]),
        help="What works on chunks: this process, or a Dask cluster through Prefect.",
    ),
    click.option(
        "--cluster",
        metavar="C",
        help="Of --runner dask: scheduler's address, number of local workers, YAML file.",
    ),
)
"""Options that say who does it."""
ENGINE = (WORK[0], *PASS, *WORK[1:], *CLUSTER)
TELLING = (
    click.option("--plan", is_flag=True, help="Say what would be done and touch nothing."),
    click.option("--prefect/--no-prefect", default=None, help="Force or avoid Prefect's engine."),
    click.option("-q", "--quiet", is_flag=True, help="No progress."),
    json_option,
)
"""Options that say how it is told."""


def options(*those: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Return a decorator that adds options, in their order."""

    def add(function: Decorated) -> Decorated:
        for option in reversed(those):
            function = option(function)
        return function

    return add


def carry_out(ctx: click.Context, kind: str, typed: dict[str, Any]) -> None:
    """Plan or run what was typed, tell it, and leave with the run's exit code."""
    from flows.job.parameters import options_for

    as_json, plan, quiet = (typed.pop(name) for name in ("as_json", "plan", "quiet"))
    asked = {**ctx.ensure_object(dict), **typed, "prefect": PREFECT[typed["prefect"]]}
    options, prefect = options_for(asked, kind)
    if plan:
        _tell_plan(ctx, options, as_json=as_json)
    else:
        _run(ctx, options, prefect, quiet=quiet or as_json, as_json=as_json)


def _tell_plan(ctx: click.Context, options: "IndexOptions", *, as_json: bool) -> None:
    from flows.job.plan import plan

    planned = plan(options)
    write_json(planned.to_json()) if as_json else click.echo(planned.to_text())
    ctx.exit(UNAVAILABLE if planned.unavailable else 0)


def _run(
    ctx: click.Context, options: "IndexOptions", prefect: str, *, quiet: bool, as_json: bool
) -> None:
    from flows.job.progress import Progress
    from flows.run import run

    with Progress("silent" if quiet else "auto") as progress:
        report = run(options, progress, prefect=prefect)
    leave(ctx, report, as_json=as_json)
