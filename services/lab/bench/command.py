"""The command `headwater bench`: find what is measured, measure, write the figures, say which targets are met."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from services.data.dataset import read_events, read_items
from services.lab.bench.deployment import BenchDeployment, own_deployment
from services.lab.bench.driver import Server
from services.lab.bench.errors import BenchError
from services.lab.bench.report import provenance, write
from services.lab.bench.requests import asked
from services.logs import configure_logging
from services.settings import Settings
from streams.events import Event, Item

FAILURE = 1
OWN = "set up on the source"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, and what with.

    Attributes:
        url: Of a scorer; None sets a deployment up.
        items: File of the catalogue; None is the bundled sample.
        events: File of the events; likewise.
        requests: So many different ones, the newest.
        connections: Requests under way at most.
        api_key: Sent with each.
    """

    url: str | None
    items: Path | None
    events: Path | None
    requests: int
    connections: int
    api_key: str | None


def run(
    settings: Settings,
    what: str,
    subject: Subject,
    out: Path | None,
    measure: Callable[..., dict[str, Any]],
    **how: Any,
) -> int:
    """Measures, and tells what was found.

    Args:
        settings: Where Kafka and registry are, and which scenario.
        what: Name of the measurement.
        subject: What is measured.
        out: Where the figures go.
        measure: Of one of the modules beside this.
        **how: Its own arguments.
    """
    console = Console(soft_wrap=True, highlight=False)
    if "log_level" not in settings.model_fields_set:
        configure_logging(level="warning")
    say = partial(console.print, markup=False)
    try:
        items, events = _source(subject)
        with _deployment(settings, subject, items, events, say) as deployment:
            ready = deployment.ready()
            figures = measure(deployment, asked(deployment.past, newest=subject.requests), say=say, **how)
    except BenchError as error:
        console.print(f"nothing measured: {error}", markup=False)
        return FAILURE
    figures = {
        "measured": what,
        "deployment": subject.url or OWN,
        "adapter_version": ready["adapter_version"],
        "catalogue_items": len(items),
        "how": {**how, "connections": subject.connections, "requests": subject.requests},
        **figures,
        "provenance": provenance(),
    }
    write(out, figures)
    tell(figures, say)
    return 0


def tell(figures: dict[str, Any], say: Callable[[str], None]) -> None:
    """Says what was found, one target a line."""
    marks = {True: "met", False: "NOT MET", None: "not measured"}
    for each in figures["targets"]:
        limit = f"at most {each['at_most']}" if "at_most" in each else f"at least {each['at_least']}"
        value = each["value"]
        shown = "-" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")
        say(f"{each['name']:<40} {shown:>10}   {limit:<14} {marks[each['holds']]}")


def _source(subject: Subject) -> tuple[list[Item], list[Event]]:
    """Catalogue and events that requests are made from."""
    if (subject.items is None) != (subject.events is None):
        raise BenchError("`--items` and `--events` belong together; give both, or none for the bundled sample")
    if subject.items is not None and subject.events is not None:
        return list(read_items(subject.items)), list(read_events(subject.events))
    from services.lab.demo.command import read_sample

    items, purchases = read_sample(None)
    return items, list(purchases)


@contextmanager
def _deployment(
    settings: Settings, subject: Subject, items: Sequence[Item], events: Sequence[Event], say: Callable[[str], None]
) -> Iterator[BenchDeployment]:
    if subject.url is None:
        with own_deployment(settings, items, events, say) as own:
            yield own
        return
    headers = {"authorization": f"Bearer {subject.api_key}"} if subject.api_key else {}
    server = Server(subject.url, headers=headers, connections=subject.connections)
    yield BenchDeployment(server, settings, settings.scorer.registry_url, items, past=events, coming=events)
