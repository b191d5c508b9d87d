import importlib
import os
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner

import flows.cli
from extractor import errors as extractor_errors
from flows.cli import COMMANDS, EXIT_CODES, cli, expected_code, main
from flows.commands.base import Command, Group, settings_of
from flows.commands.show import printable, size, table, when
from flows.errors import FlowError
from flows.job.troubles import EXIT_ORDER
from search.errors import QueryError
from storage import errors as storage_errors
from storage.catalog import Catalog
from storage.home import Home
from tests.flows.terminal import CHECKOUT, loaded, lookalike, python

HEAVY = {"torch", "torchvision", "prefect", "sqlalchemy", "pydantic", "numpy", "PIL", "faiss"}


def test_the_table_of_commands_is_true() -> None:
    for name, (where, short_help) in COMMANDS.items():
        module, _, attribute = where.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, Command | Group)
        assert (command.name, command.short_help) == (name, short_help)


def test_help_lists_all_commands_examples_and_exit_codes() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name, (_, short_help) in COMMANDS.items():
        assert f"  {name} " in result.output
        assert short_help in result.output
    assert "Examples:" in result.output
    assert all(line in result.output for line in EXIT_CODES.splitlines())
    assert all(f"\n{code} " in EXIT_CODES for code in (*EXIT_ORDER, 1, 2))


def leaves(group: click.Group, ctx: click.Context) -> list[click.Command]:
    found: list[click.Command] = []
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        found.append(command)
        if isinstance(command, click.Group):
            found += leaves(command, ctx)
    return found


def test_each_command_and_option_says_what_it_is_for() -> None:
    for command in leaves(cli, click.Context(cli)):
        with click.Context(command) as ctx:
            text = command.get_help(ctx)
        assert "Examples:\n  lookalike " in text
        assert command.help
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.help, (command.name, param.name)


def test_help_is_quick() -> None:
    lookalike("--help")
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        lookalike("--help")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
)
def test_no_help_page_loads_anything_heavy(args: list[str]) -> None:
    assert not loaded(*args) & HEAVY


def test_the_version_is_the_distributions() -> None:
    assert lookalike("--version").stdout == f"lookalike {version('lookalike')}\n"


def test_unknown_commands_and_options_are_usage() -> None:
    assert "No such command 'serach'" in lookalike("serach", code=2).stderr
    assert "No such option" in lookalike("index", "--modle", "x", code=2).stderr
    assert "Missing argument" in lookalike("search", code=2).stderr


def test_home_may_stand_before_and_after_the_command(tmp_path: Path) -> None:
    seen = []

    @click.command("probe", cls=Command, examples="")
    @click.pass_context
    def probe(ctx: click.Context) -> None:
        seen.append(settings_of(ctx).settings)

    @click.group("group", cls=Group, examples="")
    @flows.commands.base.common_options
    def group() -> None:
        pass

    group.add_command(probe)
    before, after = str(tmp_path / "a"), str(tmp_path / "b")
    runner = CliRunner()
    runner.invoke(group, ["--home", before, "probe"], catch_exceptions=False)
    runner.invoke(group, ["probe", "--home", after], catch_exceptions=False)
    runner.invoke(group, ["--home", before, "probe", "--home", after], catch_exceptions=False)
    runner.invoke(group, ["--catalog-url", "postgresql://db/x", "probe"], catch_exceptions=False)
    assert [settings.home for settings in seen[:3]] == [before, after, after]
    assert seen[3].catalog_url == "postgresql://db/x"


def failing(error: BaseException) -> Any:
    @click.command("fail")
    def fail() -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (storage_errors.CatalogError("nothing is\n indexed"), 5, "nothing is indexed"),
        (storage_errors.RootUnavailable("/p is gone"), 4, "/p is gone"),
        (storage_errors.LeaseHeld("held by r1"), 6, "held by r1"),
        (storage_errors.SpaceError("no space x"), 2, "no space x"),
        (extractor_errors.UnknownModel("no network x"), 2, "no network x"),
        (QueryError("a.jpg: truncated"), 2, "a.jpg: truncated"),
        (FlowError("not like this"), 2, "not like this"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
    ],
)
def test_expected_troubles_are_one_line_and_a_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(failing(error), monkeypatch) == code
    assert capsys.readouterr() == ("", f"lookalike: {line}\n")


def run_main(command: click.Command, monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(flows.cli, "cli", command)
    monkeypatch.setattr(sys, "argv", ["lookalike", *args])
    with pytest.raises(SystemExit) as done:
        main()
    assert isinstance(done.value.code, int)
    return done.value.code


def test_a_bug_says_how_to_see_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(failing(ZeroDivisionError("by zero")), monkeypatch) == 1
    err = capsys.readouterr().err
    assert err == (
        "lookalike: ZeroDivisionError: by zero (a bug; set LOOKALIKE_DEBUG=1 for the traceback)\n"
    )
    monkeypatch.setenv("LOOKALIKE_DEBUG", "1")
    assert run_main(failing(storage_errors.PartError("x")), monkeypatch) == 5
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith("lookalike: x\n")


def test_only_our_own_errors_are_expected() -> None:
    class Foreign(Exception):
        exit_code = 3

    assert expected_code(Foreign()) is None
    assert expected_code(OSError()) is None
    assert expected_code(storage_errors.StorageError()) == 5


def test_a_command_gives_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("done")
    @click.argument("code", type=int)
    @click.pass_context
    def done(ctx: click.Context, code: int) -> None:
        ctx.exit(code)

    assert run_main(done, monkeypatch, "7") == 7
    assert run_main(done, monkeypatch, "0") == 0
    assert run_main(done, monkeypatch, "x") == 2


def test_a_reader_that_leaves_early_is_no_trouble() -> None:
    program = (
        "import click, flows.cli, sys\n"
        "@click.command()\n"
        "def talk():\n"
        "    while True:\n"
        "        click.echo('x' * 1000)\n"
        "flows.cli.cli = talk\n"
        "sys.argv[1:] = []\n"
        "flows.cli.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_shells_can_complete_commands() -> None:
    env = {"_LOOKALIKE_COMPLETE": "bash_complete", "COMP_WORDS": "lookalike sta", "COMP_CWORD": "1"}
    assert lookalike(env=env).stdout == "plain,status\n"


def test_odd_names_are_shown_safely() -> None:
    assert printable("/photos/été.jpg") == "/photos/été.jpg"
    assert printable(b"/p/\xe9.jpg") == "/p/\\xe9.jpg"
    assert printable("/p/a\nb\x1b[31m.jpg") == "/p/a\\x0ab\\x1b[31m.jpg"
    assert printable("/p/\u202egpj.exe") == "/p/\\u202egpj.exe"


def test_tables_align_their_columns() -> None:
    text = table(("name", "n"), [("a", 1), ("longer", 200)], right=(1,))
    assert text.splitlines() == ["name      n", "a         1", "longer  200"]


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (4_100_000, "4.1 MB"),
        (2e9, "2.0 GB"),
        (3e12, "3.0 TB"),
    ],
)
def test_sizes_are_for_people(n_bytes: int, text: str) -> None:
    assert size(n_bytes) == text


def test_times_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert when(None) == "never"
    assert when(86400.0 + 3600 * 5 + 60 * 7) == "1970-01-02 05:07"


def test_a_name_that_the_terminal_can_not_show_ends_no_run(tmp_path: Path) -> None:
    home = tmp_path / "日"
    done = lookalike("--home", str(home), "status", env={"PYTHONIOENCODING": "latin-1"})
    assert "\\u65e5, store not made yet" in done.stdout


def test_the_page_of_the_docs_is_fresh_and_a_stale_one_is_noticed(tmp_path: Path) -> None:
    script = CHECKOUT / "docs" / "cli.py"
    done = python(str(script), "--check")
    assert (done.returncode, done.stderr) == (0, "")
    copy = tmp_path / "docs"
    copy.mkdir()
    (copy / "cli.py").write_text(script.read_text())
    (copy / "cli.md").write_text("old")
    env = {"PYTHONPATH": str(CHECKOUT)}
    assert python(str(copy / "cli.py"), "--check", env=env).returncode == 1
    os.unlink(copy / "cli.md")
    assert python(str(copy / "cli.py"), "--check", env=env).returncode == 1
    assert python(str(copy / "cli.py"), env=env).returncode == 0
    assert (copy / "cli.md").read_text() == (CHECKOUT / "docs" / "cli.md").read_text()


@pytest.mark.parametrize("command", [("spaces", "use", b"\xff"), ("retry", "--class", b"\xff")])
def test_text_that_is_not_utf_8_is_wrong_usage(command: tuple[str | bytes, ...]) -> None:
    folder = os.environ["LOOKALIKE_HOME"]
    with Catalog.open(Home(folder), write=True):
        pass
    done = lookalike(*command, code=2)
    assert done.stderr == ("lookalike: an option holds bytes that are not UTF-8; only paths may\n")


def test_an_output_that_takes_nothing_is_one_line() -> None:
    command = f"{shlex.quote(sys.executable)} -m flows.cli status"
    for output, code, said in (
        (">&-", 0, ""),
        (">/dev/full", 5, "lookalike: no space left where the output goes\n"),
    ):
        done = subprocess.run(
            f"{command} {output}", shell=True, cwd=CHECKOUT, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (code, said)
