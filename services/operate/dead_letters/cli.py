"""The commands `headwater dead-letters ...`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.options import Config, LogLevel, Servers, settings_from

if TYPE_CHECKING:
    from services.operate.dead_letters.letters import Selection

dead_letters = typer.Typer(
    name="dead-letters",
    help="List refused events, put them back, or delete them.\n\nExample: headwater dead-letters list --since 2h",
    no_args_is_help=True,
    rich_markup_mode=None,
)

LetterReason = Annotated[str | None, typer.Option("--reason", metavar="REASON", help="Only letters with this reason.")]
LetterTopic = Annotated[str | None, typer.Option("--topic", metavar="TOPIC", help="Only records of this topic.")]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME|AGO", help="Only letters first seen at or after TIME: RFC 3339, or 2h."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME|AGO", help="Only letters first seen before TIME.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="At most N letters, oldest first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")]


@dead_letters.command("list")
def list_dead_letters(
    reason: LetterReason = None,
    topic: LetterTopic = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document per line, without payloads.")] = False,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """List refused records, and count them by reason.

    Example: headwater dead-letters list --since 2h --reason invalid_schema
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.operate.dead_letters.letters import read
    from services.operate.dead_letters.rendering import counts, json_line, table

    listing = read(settings, _selection(reason, topic, since, until, limit))
    for line in map(json_line, listing.letters) if json_ else table(listing.letters):
        typer.echo(line)
    typer.echo(counts(listing), err=json_)


@dead_letters.command("show")
def show_dead_letter(
    key: Annotated[str, typer.Argument(metavar="LETTER", help="topic/partition/offset, as `list` shows it.")],
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Show all fields of one letter, with its payload.

    Example: headwater dead-letters show headwater.clicks/0/17
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.operate.dead_letters.letters import read_one
    from services.operate.dead_letters.rendering import whole

    for line in whole(read_one(settings, key)):
        typer.echo(line)


@dead_letters.command("replay")
def replay_dead_letters(
    mended: Annotated[
        Path | None,
        typer.Option(
            "--mended", metavar="FILE", help='Lines {"letter": LETTER, "event": {...}} to send in their place.'
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Include letters that were replayed before.")] = False,
    dry_run: DryRun = False,
    reason: LetterReason = None,
    topic: LetterTopic = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Put refused records back, or send corrected events.

    Records go back to their topics byte by byte, under their keys. A letter is replayed once. The exit status is 1 if a
    record is no longer available.

    Example: headwater dead-letters replay --reason unknown_topic --dry-run
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.operate.dead_letters.command import replay as run
    from services.operate.dead_letters.command import replayed

    selection = _selection(reason, topic, since, until, limit)
    if mended and selection != _selection():
        raise typer.BadParameter("--mended names its letters itself; leave the filters out")
    summary = run(settings, selection, mended_file=mended, again=again, dry_run=dry_run)
    for line in replayed(summary, dry_run=dry_run):
        typer.echo(line)
    if summary.not_replayable:
        raise typer.Exit(1)


@dead_letters.command("purge")
def purge_dead_letters(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    dry_run: DryRun = False,
    reason: LetterReason = None,
    topic: LetterTopic = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Delete dead letters for good.

    Example: headwater dead-letters purge --until 30d
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.operate.dead_letters.command import purge
    from services.operate.dead_letters.letters import read

    letters = read(settings, _selection(reason, topic, since, until, limit)).letters
    if dry_run:
        typer.echo(f"{len(letters)} dead letters would be deleted")
        return
    if letters and not yes:
        typer.confirm(f"Delete {len(letters)} dead letters for good?", abort=True)
    purge(settings, letters)
    typer.echo(f"{len(letters)} dead letters deleted")


def _selection(
    reason: str | None = None,
    topic: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int | None = None,
) -> "Selection":
    """Return the selection of dead letters that the options describe."""
    from services.moments import moment_ms
    from services.operate.dead_letters.errors import LetterError
    from services.operate.dead_letters.letters import Selection, reason_named

    try:
        since_ms, until_ms = (moment_ms(text) if text else None for text in (since, until))
    except ValueError as error:
        raise LetterError(str(error)) from None
    return Selection(
        reason=reason_named(reason) if reason else None, topic=topic, since_ms=since_ms, until_ms=until_ms, limit=limit
    )
