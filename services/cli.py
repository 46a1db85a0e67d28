"""The command line: assemble the commands, run one, and turn its error into a line and an exit status.

Each command lies beside its process or tool, in a module `cli`. Commands import what they need when they run, so that
`headwater --help` answers at once.
"""

import io
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from services.collector.cli import collector
from services.lab.backtest.cli import backtest
from services.lab.bench.cli import app as bench
from services.lab.demo.cli import demo
from services.lab.fit.cli import fit
from services.lab.tune.cli import tune
from services.operate.adapters.cli import adapters
from services.operate.checkpoints.cli import checkpoints
from services.operate.control.cli import forget, guard, quarantine, secret
from services.operate.dead_letters.cli import dead_letters
from services.operate.keys import keys
from services.operate.publish.cli import publish, schema
from services.operate.replay.cli import replay
from services.operate.topics.cli import topics
from services.registry.cli import registry
from services.scorer.cli import scorer
from services.state.cli import state_writer
from services.updater.cli import updater

USAGE_ERROR = 2
FAILURE = 1

PROCESSES, OPERATE, LAB = "Processes", "Operate", "Lab"


class SectionedHelp(TyperGroup):
    """A group whose help lists its commands under the heading that each names as its panel."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each panel, in the order of the commands.

        Args:
            ctx: the context of the group.
            formatter: the writer of the help page.
        """
        width = formatter.width - 6 - max(map(len, self.commands))
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            sections.setdefault(panel, []).append((name, command.get_short_help_str(width)))
        for panel, rows in sections.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


app = typer.Typer(
    name="headwater",
    cls=SectionedHelp,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"headwater {version('headwater')}")
        raise typer.Exit


@app.callback()
def headwater(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Keep a shop's ranking model as fresh as its click stream.

    Start with: headwater demo
    """


for _process in (updater, scorer, registry, collector, state_writer):
    app.command(rich_help_panel=PROCESSES)(_process)
for _command in (publish, replay, schema, forget):
    app.command(rich_help_panel=OPERATE)(_command)
for _group in (topics, adapters, checkpoints, dead_letters, quarantine, guard, secret, keys):
    app.add_typer(_group, rich_help_panel=OPERATE)
for _tool in (demo, backtest, fit, tune):
    app.command(rich_help_panel=LAB)(_tool)
app.add_typer(bench, rich_help_panel=LAB)


def main() -> None:
    """Run the command line: an expected error is one line on standard error and an exit status."""
    _escape_unencodable_output()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _unwind)
    try:
        app()
    except Exception as error:
        status, problem = _outcome(error)
        sys.stderr.write(f"headwater: {problem}\n")
        sys.exit(status)


def _outcome(error: Exception) -> tuple[int, str]:
    """Return the exit status and the line for an error; a bug also prints its traceback.

    Errors of the three trees, errors of the disk and extras that are not installed are expected. Everything else is a
    bug.
    """
    from peft_adapters.errors import HeadwaterModelError
    from services.disks import describe_disk_error
    from services.errors import HeadwaterServiceError, UsageError
    from services.extras import missing_extra
    from streams.errors import HeadwaterStreamError

    if isinstance(error, UsageError):
        return USAGE_ERROR, _one_line(error)
    if isinstance(error, HeadwaterServiceError | HeadwaterStreamError | HeadwaterModelError):
        return FAILURE, _one_line(error)
    problem = describe_disk_error(error) or missing_extra(error, command=next(iter(sys.argv[1:]), None))
    if problem is not None:
        return FAILURE, problem
    traceback.print_exception(error)
    return FAILURE, (
        f"internal error, a bug in Headwater: {type(error).__name__}: {error}; please report it with the traceback "
        "above and the output of `headwater --version`"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).splitlines())


def _unwind(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave all contexts when a signal ends a command that has no handler yet: they delete temporary files."""
    raise SystemExit(128 + number)


def _escape_unencodable_output() -> None:
    """Escape characters that the terminal's encoding lacks, instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
