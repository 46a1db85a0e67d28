"""The command line. Commands import what they need when they run, so that `headwater --help` answers at once."""

import io
import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from services.lab.backtest.cli import backtest
from services.lab.bench.cli import app as bench
from services.lab.fit.cli import fit
from services.lab.tune.cli import tune
from services.operate.adapters.cli import adapters
from services.operate.checkpoints.cli import checkpoints
from services.operate.control.cli import guard, secret
from services.operate.keys import keys
from services.operate.topics.cli import topics
from services.options import (
    Config,
    Host,
    Items,
    LogLevel,
    MaxEvents,
    Port,
    RegistryUrl,
    Scenario,
    Servers,
    Strict,
    utf8_text,
)
from services.options import settings_from as _settings
from services.state.cli import state_writer

if TYPE_CHECKING:
    from services.operate.dead_letters.letters import Selection

USAGE_ERROR = 2
FAILURE = 1

app = typer.Typer(
    name="headwater",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"headwater {version('headwater')}")
        raise typer.Exit


@app.callback()
def headwater(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Keeps a shop's ranking model as fresh as its click stream.

    Start with: headwater demo
    """


quarantine = typer.Typer(
    help="Look at the users and items that do not count for now, and let them out.", no_args_is_help=True
)
app.add_typer(quarantine, name="quarantine")
app.add_typer(guard)
app.add_typer(secret)

dead_letters = typer.Typer(
    name="dead-letters",
    help="Look at refused events, put them back, or delete them.\n\nExample: headwater dead-letters list --since 2h",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(dead_letters)

app.add_typer(adapters)
app.add_typer(bench)
app.add_typer(checkpoints)
app.add_typer(keys)
app.add_typer(topics)

app.command()(backtest)

app.command()(fit)
app.command()(tune)
app.command()(state_writer)


class EventKind(StrEnum):
    """The kinds of events that producers publish."""

    impression = "impression"
    click = "click"
    purchase = "purchase"
    item = "item"


@app.command()
def schema(
    kind: Annotated[EventKind | None, typer.Argument(help="One kind of event; without it, all.")] = None,
) -> None:
    """Print the JSON Schema of the events.

    Example: headwater schema click
    """
    import json

    from streams.events import json_schemas

    schemas = json_schemas()
    typer.echo(json.dumps(schemas[kind.value] if kind else schemas, indent=2))


@app.command()
def publish(
    file: Annotated[
        Path, typer.Argument(metavar="FILE|-", help="Events as JSON or as a table with a header; - is standard input.")
    ],
    kind: Annotated[
        EventKind | None, typer.Option("--kind", help="Kind of every event; else each line's `type` or `event_type`.")
    ] = None,
    strict: Strict = False,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Send events from a file or standard input: one JSON object a line, a JSON array, or a table with a header.

    Tables are separated by commas, semicolons or tabs; their columns are those of `headwater replay`. Gzip, UTF-8 and
    UTF-16 are recognised. An event without event_id gets one, an event without a time the present time. Bad lines are
    named and passed over; the exit status is then 1.

    A catalogue: headwater publish items.csv --kind item

    Example: echo '{"type": "click", "user_id": "u1", "item_id": "i1"}' | headwater publish -
    """
    settings = _settings(config, bootstrap_servers, log_level)
    from services.operate.publish.command import run

    summary = run(settings, file, kind=kind.value if kind else None, strict=strict)
    for number, reason in summary.first_bad:
        typer.echo(f"line {number}: {reason}", err=True)
    if summary.bad > len(summary.first_bad):
        typer.echo(f"... and {summary.bad - len(summary.first_bad)} more bad lines", err=True)
    typer.echo(f"{summary.delivered} events delivered, {summary.bad} bad lines passed over")
    if summary.bad:
        raise typer.Exit(FAILURE)


@app.command()
def replay(
    items: Items,
    events: Annotated[
        Path | None, typer.Option("--events", metavar="FILE", help="Events, likewise; without it the catalogue alone.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.01, metavar="EVENTS_PER_S", help="So many events a second.")
    ] = None,
    speed_up: Annotated[
        float | None, typer.Option("--speed-up", min=0.01, metavar="X", help="The data's own time, X times as fast.")
    ] = None,
    max_events: MaxEvents = None,
    strict: Strict = False,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Send a data set: its catalogue, then its events in order, at a chosen pace.

    Event ids are the file's name and the row, so what is replayed twice counts once. Bad rows are named and skipped;
    the exit status is then 1.

    Example: headwater replay --items items.csv.gz --events events.csv.gz --rate 300
    """
    settings = _settings(config, bootstrap_servers, log_level, scenario)
    from services.operate.replay.command import run

    if rate is not None and speed_up is not None:
        raise typer.BadParameter("--rate and --speed-up exclude each other; give one")
    summary = run(
        settings, items=items, events=events, rate=rate, speed_up=speed_up, max_events=max_events, strict=strict
    )
    for line in summary.refused.lines():
        typer.echo(line, err=True)
    skipped = "".join(f", {count} {kind or 'untyped'} rows passed over" for kind, count in summary.skipped.items())
    typer.echo(f"{summary.items} items and {summary.events} events delivered in {summary.seconds:.1f} s{skipped}")
    if summary.refused.count:
        raise typer.Exit(FAILURE)


@app.command()
def registry(
    registry_url: RegistryUrl = None,
    host: Host = None,
    port: Port = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Serve published adapters over HTTP, and change which of them is served.

    Example: headwater registry --registry-url ./registry --port 8084
    """
    section = {"url": registry_url, "host": host, "port": port}
    settings = _settings(config, bootstrap_servers, log_level, registry=section)
    from services.registry.command import run

    run(settings)


@app.command()
def collector(
    host: Host = None,
    port: Port = None,
    spool_path: Annotated[
        Path | None, typer.Option("--spool-path", metavar="FILE", help="Where accepted events wait for Kafka.")
    ] = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Take events over HTTP, for producers without Kafka.

    POST /v1/events takes one event, or {"events": [...]}, and answers 202 with what became of each. What was accepted
    is on disk, in the spool, and goes to Kafka in order, now or when it is back. With the spool full the answer is 429
    and Retry-After.

    Example: headwater collector --bootstrap-servers kafka:9092 --port 8085

    Then: curl -s localhost:8085/v1/events -H 'content-type: application/json'
    -d '{"type": "click", "user_id": "ann", "item_id": "mug-1"}'
    """
    section = {"host": host, "port": port, "spool_path": spool_path}
    settings = _settings(config, bootstrap_servers, log_level, collector=section)
    from services.collector.command import run

    run(settings)


@app.command()
def updater(
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option("--checkpoint-dir", metavar="DIR", help="Where to keep, and resume from, checkpoints."),
    ] = None,
    registry_url: RegistryUrl = None,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", min=0, max=65535, metavar="PORT", help="Port of /metrics; 0 takes a free one."),
    ] = None,
    max_events: Annotated[
        int | None, typer.Option("--max-events", min=1, metavar="N", help="Stop once N events are learnt; else never.")
    ] = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Learn from the events, without stopping, and publish adapters.

    Example: headwater updater --bootstrap-servers kafka:9092 --checkpoint-dir ./checkpoints --registry-url ./registry
    """
    section = {
        "checkpoint_dir": checkpoint_dir,
        "registry_url": registry_url,
        "metrics_port": metrics_port,
        "max_events": max_events,
    }
    settings = _settings(config, bootstrap_servers, log_level, scenario, updater=section)
    from services.updater.command import run

    run(settings)


@app.command()
def scorer(
    host: Host = None,
    port: Port = None,
    registry_url: RegistryUrl = None,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", metavar="DIR", help="Where frozen activations of texts are kept.")
    ] = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Answer rankings over HTTP, from the newest adapter.

    Example: headwater scorer --bootstrap-servers kafka:9092 --registry-url http://registry:8084/v1/files --port 8080
    """
    section = {"host": host, "port": port, "registry_url": registry_url}
    encoder = {"cache_dir": cache_dir}
    settings = _settings(config, bootstrap_servers, log_level, scenario, scorer=section, encoder=encoder)
    from services.scorer.command import run

    run(settings)


@app.command()
def demo(
    rate: Annotated[float, typer.Option("--rate", min=1.0, metavar="EVENTS_PER_S", help="Events per second.")] = 330.0,
    max_events: MaxEvents = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running at the end, and print the URLs.")] = False,
    summary_json: Annotated[
        Path | None, typer.Option("--summary-json", metavar="FILE", help="Write the summary there.")
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option("--work-dir", metavar="DIR", help="Keep its files there; else in a temporary place.")
    ] = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Show all of it at work: broker, registry, updater, two scorers and a storefront, on real purchases.

    Example: headwater demo --max-events 5000 --summary-json summary.json
    """
    settings = _settings(config, bootstrap_servers, log_level, scenario)
    from services.lab.demo.command import run

    status = run(settings, rate=rate, max_events=max_events, keep=keep, summary_json=summary_json, work_dir=work_dir)
    raise typer.Exit(status)


def _user_id(text: str) -> str:
    """Check an id as events are checked: an empty one would name everybody who has no id."""
    from streams.events import MAX_ID_CHARS

    if not 1 <= len(text) <= MAX_ID_CHARS:
        raise typer.BadParameter(f"must have 1 to {MAX_ID_CHARS} characters, as in events, got {len(text)}")
    return utf8_text(text)


@app.command()
def forget(
    user_id: Annotated[
        str,
        typer.Argument(metavar="USER_ID", callback=_user_id, help="The shopper, as your events name them."),
    ],
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Have a shopper forgotten.

    Updaters and scorers that read the control topic drop the shopper's history, what waits to be joined, and what the
    abuse guard knows; dead letters that name the shopper are removed. It needs the secret of the deployment
    (`privacy`), because everything knows shoppers by pseudonym alone, and refuses another one. The events themselves
    stay on their topics until Kafka's retention ends.

    Example: headwater forget ann --bootstrap-servers kafka:9092
    """
    settings = _settings(config, bootstrap_servers, log_level)
    from services.operate.control.command import forget as run

    forgotten = run(settings, user_id)
    typer.echo(f"done: {forgotten.user} is to be forgotten, written to {settings.topics.control}")
    typer.echo(f"done: {forgotten.dead_letters} dead letters removed")
    typer.echo("not seen from here: updaters, scorers and state writers obey when they read that topic")
    if not forgotten.is_checked:
        typer.echo(
            "not seen from here: whether this is the deployment's secret; no updater has published a fingerprint"
        )


@quarantine.command("list")
def quarantine_list(config: Config = None, bootstrap_servers: Servers = None, log_level: LogLevel = None) -> None:
    """List the users and items in quarantine, the latest first: key, rule, count and limit, since when.

    Example: headwater quarantine list --bootstrap-servers kafka:9092
    """
    settings = _settings(config, bootstrap_servers, log_level)
    from datetime import UTC, datetime

    from services.operate.control.command import quarantined

    for inside in quarantined(settings):
        since = datetime.fromtimestamp(inside.why.ts / 1_000, UTC).isoformat(timespec="seconds")
        typer.echo(f"{inside.key}\t{inside.why.reason}\t{inside.why.count:g} of {inside.why.limit:g}\t{since}")


@quarantine.command("release")
def quarantine_release(
    key: Annotated[
        str,
        typer.Argument(metavar="KEY", callback=utf8_text, help="user/<pseudonym> or item/<item id>, as listed."),
    ],
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Let a user or an item out of quarantine; for a week of events it counts whatever comes.

    An item that is not in quarantine can be released too, before a campaign sends many people to it.

    Example: headwater quarantine release item/mug-1 --bootstrap-servers kafka:9092
    """
    settings = _settings(config, bootstrap_servers, log_level)
    from services.operate.control.command import KINDS, release

    if not key.startswith(KINDS) or key in KINDS:
        raise typer.BadParameter(f"KEY must be user/<pseudonym> or item/<item id>, got {key!r}; see `quarantine list`")
    was_in = release(settings, key)
    typer.echo(f"{key} released" if was_in else f"{key} was not in quarantine; it counts whatever comes from now on")


LetterReason = Annotated[str | None, typer.Option("--reason", metavar="REASON", help="Only those refused for it.")]
LetterTopic = Annotated[str | None, typer.Option("--topic", metavar="TOPIC", help="Only those refused on it.")]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME|AGO", help="Only those first seen then or later: RFC 3339, or 2h."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME|AGO", help="Only those first seen before.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="N at most, the oldest first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


@dead_letters.command("list")
def list_dead_letters(
    reason: LetterReason = None,
    topic: LetterTopic = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document a line, without payloads.")] = False,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Show which records were refused, and why; at the end, how many for which reason.

    Example: headwater dead-letters list --since 2h --reason invalid_schema
    """
    settings = _settings(config, bootstrap_servers, log_level)
    from services.operate.dead_letters.letters import read
    from services.operate.dead_letters.rendering import counts, json_line, table

    found = read(settings, _selection(reason, topic, since, until, limit))
    for line in map(json_line, found.letters) if json_ else table(found.letters):
        typer.echo(line)
    typer.echo(counts(found), err=json_)


@dead_letters.command("show")
def show_dead_letter(
    key: Annotated[str, typer.Argument(metavar="LETTER", help="topic/partition/offset, as `list` shows it.")],
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Show all there is of one letter.

    Example: headwater dead-letters show headwater.clicks/0/17
    """
    settings = _settings(config, bootstrap_servers, log_level)
    from services.operate.dead_letters.letters import read_one
    from services.operate.dead_letters.rendering import whole

    for line in whole(read_one(settings, key)):
        typer.echo(line)


@dead_letters.command("replay")
def replay_dead_letters(
    mended: Annotated[
        Path | None,
        typer.Option(
            "--mended", metavar="FILE", help='Lines {"letter": LETTER, "event": {...}} to put in their place.'
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Those that were replayed before, too.")] = False,
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
    """Put refused records back on their topics, under their keys, byte by byte; or mended events in their place.

    A letter is replayed once. The exit status is 1 if a record cannot be had any more.

    Example: headwater dead-letters replay --reason unknown_topic --dry-run
    """
    settings = _settings(config, bootstrap_servers, log_level)
    from services.operate.dead_letters.command import replay as run
    from services.operate.dead_letters.command import replayed

    selection = _selection(reason, topic, since, until, limit)
    if mended and selection != _selection():
        raise typer.BadParameter("--mended names its letters itself; leave the filters out")
    summary = run(settings, selection, mended_file=mended, again=again, dry_run=dry_run)
    for line in replayed(summary, dry_run=dry_run):
        typer.echo(line)
    if summary.not_replayable:
        raise typer.Exit(FAILURE)


@dead_letters.command("purge")
def purge_dead_letters(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
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
    settings = _settings(config, bootstrap_servers, log_level)
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


def main() -> None:
    """Run the command line: an expected error is one line on standard error and an exit status."""
    _write_on_any_terminal()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _unwind)
    try:
        app()
    except Exception as error:
        from services.disks import disk_problem

        status, problem = _exit_status(error), str(error)
        if status is None:
            found = disk_problem(error)
            if found is None:
                raise
            status, problem = FAILURE, found
        sys.stderr.write(f"headwater: {problem}\n")
        sys.exit(status)


def _unwind(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave all contexts when a signal ends a command that has no handler yet: they delete temporary files."""
    raise SystemExit(128 + number)


def _write_on_any_terminal() -> None:
    """Escape characters that the terminal's encoding lacks, instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _selection(
    reason: str | None = None,
    topic: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int | None = None,
) -> "Selection":
    """Which dead letters the flags mean."""
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


def _exit_status(error: Exception) -> int | None:
    """Tells bad input from a failure, and either from a fault of ours, which deserves its traceback."""
    from peft_adapters.errors import HeadwaterModelError
    from services.collector.spool import SpoolError
    from services.data.files import InputError
    from services.disks import TemporaryDirectoryError
    from services.operate.dead_letters.errors import LetterError
    from services.settings import SettingsError
    from services.state.errors import StateError
    from services.web.access.keys import KeysError
    from services.web.server import ServeError
    from streams.errors import HeadwaterStreamError

    if isinstance(error, SettingsError | InputError | LetterError | KeysError):
        return USAGE_ERROR
    failures = HeadwaterStreamError | HeadwaterModelError | ServeError | SpoolError | StateError
    failures |= TemporaryDirectoryError
    return FAILURE if isinstance(error, failures) else None


if __name__ == "__main__":
    main()
