"""The commands `headwater checkpoints ...`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.options import Config, Level, LogLevel, Scenario, settings_from

if TYPE_CHECKING:
    from services.updater.recovery import CheckpointInfo

FAILURE = 1

checkpoints = typer.Typer(
    name="checkpoints",
    help="List an updater's checkpoints, and verify them.\n\nExample: headwater checkpoints list",
    no_args_is_help=True,
    rich_markup_mode=None,
)

CheckpointDir = Annotated[
    Path | None, typer.Option("--checkpoint-dir", metavar="DIR", help="Directory of the updater's checkpoints.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@checkpoints.command("list")
def list_checkpoints(
    json_: AsJson = False,
    checkpoint_dir: CheckpointDir = None,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """List the checkpoints, oldest first.

    Each is listed with its offsets and, if it cannot be used, the reason. All files are read and compared with their
    digests; nothing is changed. The updater may run.

    Example: headwater checkpoints list --checkpoint-dir .headwater/checkpoints
    """
    root, states = _read(checkpoint_dir, config, log_level, scenario)
    _show(root, states, json_=json_)


@checkpoints.command("verify")
def verify(
    json_: AsJson = False,
    checkpoint_dir: CheckpointDir = None,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """List the checkpoints, with status 1 if none can be used.

    Example: headwater checkpoints verify --scenario home
    """
    root, states = _read(checkpoint_dir, config, log_level, scenario)
    _show(root, states, json_=json_)
    if all(state.problem is not None for state in states):
        raise typer.Exit(FAILURE)


def _read(
    checkpoint_dir: Path | None, config: Path | None, log_level: Level | None, scenario: str | None
) -> "tuple[Path, list[CheckpointInfo]]":
    """Return the directory of the scenario, and the checkpoints in it."""
    settings = settings_from(config, None, log_level, scenario, updater={"checkpoint_dir": checkpoint_dir})
    from services.updater.recovery import inspect_checkpoints

    root = settings.updater.checkpoint_dir / settings.scenario
    return root, inspect_checkpoints(root)


def _show(root: Path, states: "list[CheckpointInfo]", *, json_: bool) -> None:
    from services.operate.checkpoints.rendering import as_json, table

    if json_:
        typer.echo(as_json(root, states))
        return
    for line in table(states) if states else [f"no checkpoints in {root}"]:
        typer.echo(line)
