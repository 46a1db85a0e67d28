"""The commands `headwater topics create` and `headwater topics check`."""

from typing import Annotated

import typer

from services.options import Config, LogLevel, Servers, settings_from

topics = typer.Typer(
    name="topics",
    help="Create the topics of a deployment, and check them.\n\nExample: headwater topics create --partitions 8",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@topics.command()
def create(
    partitions: Annotated[
        int, typer.Option("--partitions", min=1, metavar="N", help="Partitions of each new topic.")
    ] = 4,
    replication_factor: Annotated[
        int | None,
        typer.Option(
            "--replication-factor", min=1, metavar="N", help="Replicas of each new topic; else the broker's default."
        ),
    ] = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Create the missing topics, with the configuration that each needs.

    Topics that exist are not changed; problems with them are printed, and the exit status is then 1.

    Example: headwater topics create --partitions 8 --replication-factor 3 --bootstrap-servers kafka:9092
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.operate.topics import command

    created = set(command.create(settings, partitions=partitions, replication_factor=replication_factor))
    states = command.check(settings)
    for state, line in zip(states, command.table(states), strict=True):
        absent = "not created" if state.partitions is None else "exists"
        typer.echo(f"{'created' if state.name in created else absent}\t{line}")
    if any(state.problems for state in states):
        raise typer.Exit(1)


@topics.command()
def check(
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Check the topics' existence and configuration.

    Each topic is listed with its partitions, its replicas and the problems of its configuration. The exit status is 1
    if there is a problem.

    Example: headwater topics check --bootstrap-servers kafka:9092
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.operate.topics import command

    states = command.check(settings)
    for line in [command.as_json(states)] if json_ else command.table(states):
        typer.echo(line)
    if any(state.problems for state in states):
        raise typer.Exit(1)
