"""Options of `headwater bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.options import Config, EncoderName, LogLevel, RegistryUrl, Scenario, Servers, settings_from

if TYPE_CHECKING:
    from services.lab.bench.command import Subject

FAILURE = 1

app = typer.Typer(
    name="bench",
    help="Measure the speed and freshness of a deployment.\n\n"
    "It is a running one, or one that is started on the bundled sample.\n\n"
    "Example: headwater bench rank --json figures.json",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Out = Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write the figures there.")]
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="A running scorer; else a deployment is started.")
]
ItemsFile = Annotated[
    Path | None, typer.Option("--items", metavar="FILE", help="Catalogue for the requests; else the bundled sample.")
]
EventsFile = Annotated[
    Path | None, typer.Option("--events", metavar="FILE", help="Events that requests are made from.")
]
Seconds = Annotated[float, typer.Option("--seconds", min=0.5, metavar="S", help="Length of each load.")]
Requests = Annotated[
    int, typer.Option("--requests", min=1, metavar="N", help="Number of different requests, sent in turn.")
]
Connections = Annotated[int, typer.Option("--connections", min=1, metavar="N", help="Requests under way at most.")]
EventRate = Annotated[
    float, typer.Option("--rate", min=0.1, metavar="EVENTS_PER_S", help="Events published per second.")
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="HEADWATER_BENCH_API_KEY", help="Key of a scorer that requires one.")
]


@app.command()
def rank(
    url: Url = None,
    json_: Out = None,
    items: ItemsFile = None,
    events: EventsFile = None,
    seconds: Seconds = 20.0,
    requests: Requests = 2_000,
    connections: Connections = 8,
    api_key: ApiKey = None,
    encoder: EncoderName = None,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Measure rankings per second, and their latency.

    The rate is given beside that of a route that ranks nothing; latency is measured at half of the rate.

    Example: headwater bench rank --url http://127.0.0.1:8080 --items items.csv.gz --events events.csv.gz --json OUT
    """
    settings = settings_from(config, None, log_level, scenario, encoder={"model": encoder})
    from services.lab.bench.command import run
    from services.lab.bench.rank import measure

    subject = _subject(url, items, events, requests, connections, api_key)
    _end(run(settings, "rank", subject, json_, measure, seconds=seconds))


@app.command()
def swap(
    url: Url = None,
    json_: Out = None,
    swaps: Annotated[int, typer.Option("--swaps", min=1, metavar="N", help="Number of swaps in a row.")] = 200,
    rate: EventRate = 300.0,
    asked: Annotated[
        float | None,
        typer.Option(
            "--asked", min=1, metavar="REQUESTS_PER_S", help="Rate of the load; else half of the saturating rate."
        ),
    ] = None,
    items: ItemsFile = None,
    events: EventsFile = None,
    seconds: Seconds = 40.0,
    requests: Requests = 2_000,
    connections: Connections = 8,
    api_key: ApiKey = None,
    encoder: EncoderName = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    registry_url: RegistryUrl = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Measure the cost of swaps of adapters under load.

    The same load is applied twice while events are learnt: first with a pinned version, then with every version served.

    It publishes events to Kafka, which the deployment learns, and pins its scenario meanwhile: not for a real shop.

    Example: headwater bench swap --swaps 200 --json swap.json
    """
    section = {"registry_url": registry_url}
    settings = settings_from(config, bootstrap_servers, log_level, scenario, scorer=section, encoder={"model": encoder})
    from services.lab.bench.command import run
    from services.lab.bench.swap import measure

    subject = _subject(url, items, events, requests, connections, api_key)
    _end(run(settings, "swap", subject, json_, measure, swaps=swaps, per_second=rate, asked=asked, seconds=seconds))


@app.command()
def freshness(
    url: Url = None,
    json_: Out = None,
    rate: EventRate = 300.0,
    items: ItemsFile = None,
    events: EventsFile = None,
    seconds: Seconds = 60.0,
    requests: Requests = 2_000,
    connections: Connections = 8,
    api_key: ApiKey = None,
    encoder: EncoderName = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    registry_url: RegistryUrl = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Measure the time from an event to answers that learnt it.

    It ends at the first answer of an adapter that has learnt the event.

    It publishes events to Kafka, which the deployment learns: not for a real shop.

    Example: headwater bench freshness --rate 300 --json freshness.json
    """
    section = {"registry_url": registry_url}
    settings = settings_from(config, bootstrap_servers, log_level, scenario, scorer=section, encoder={"model": encoder})
    from services.lab.bench.command import run
    from services.lab.bench.freshness import measure

    subject = _subject(url, items, events, requests, connections, api_key)
    _end(run(settings, "freshness", subject, json_, measure, per_second=rate, seconds=seconds))


def _subject(*given: Any) -> "Subject":
    from services.lab.bench.command import Subject

    return Subject(*given)


def _end(status: int) -> None:
    if status:
        raise typer.Exit(status)
