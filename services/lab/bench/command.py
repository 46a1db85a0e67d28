"""The command `headwater bench`: find or start a deployment, measure it, write the figures, print the targets."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from services.data.dataset import read_events, read_items
from services.lab.bench.deployment import BenchDeployment, sample_deployment
from services.lab.bench.driver import Server
from services.lab.bench.errors import BenchError
from services.lab.bench.report import provenance, write
from services.lab.bench.requests import requests_before
from services.logs import configure_logging
from services.settings import Settings
from streams.events import Event, Item

FAILURE = 1
OWN = "set up on the source"


@dataclass(frozen=True, slots=True)
class Subject:
    """The deployment to measure, and the requests to measure it with.

    Attributes:
        url: URL of a scorer; None starts a deployment.
        items: file of the catalogue; None is the bundled sample.
        events: file of the events; None is the bundled sample.
        requests: number of different requests, the newest.
        connections: requests under way at most.
        api_key: key sent with each request, or None.
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
    """Run a measurement, write and print its figures, and return the exit status.

    Args:
        settings: settings with Kafka, the registry and the scenario.
        what: name of the measurement.
        subject: the deployment and the requests.
        out: file for the figures, or None.
        measure: function of one of the modules beside this.
        **how: further arguments of `measure`.
    """
    console = Console(soft_wrap=True, highlight=False)
    if "log_level" not in settings.model_fields_set:
        configure_logging(level="warning")
    report = partial(console.print, markup=False)
    try:
        items, events = _source(subject)
        with _deployment(settings, subject, items, events, report) as deployment:
            ready = deployment.ready()
            figures = measure(
                deployment, requests_before(deployment.past, newest=subject.requests), report=report, **how
            )
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
    print_targets(figures, report)
    return 0


def print_targets(figures: dict[str, Any], report: Callable[[str], None]) -> None:
    """Print each target with its value and whether it is met, one line each."""
    marks = {True: "met", False: "NOT MET", None: "not measured"}
    for each in figures["targets"]:
        limit = f"at most {each['at_most']}" if "at_most" in each else f"at least {each['at_least']}"
        value = each["value"]
        shown = "-" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")
        report(f"{each['name']:<40} {shown:>10}   {limit:<14} {marks[each['holds']]}")


def _source(subject: Subject) -> tuple[list[Item], list[Event]]:
    """Return the catalogue and the events that requests are made from."""
    if (subject.items is None) != (subject.events is None):
        raise BenchError("`--items` and `--events` belong together; give both, or none for the bundled sample")
    if subject.items is not None and subject.events is not None:
        return list(read_items(subject.items)), list(read_events(subject.events))
    from services.lab.demo.command import read_sample

    items, purchases = read_sample(None)
    return items, list(purchases)


@contextmanager
def _deployment(
    settings: Settings, subject: Subject, items: Sequence[Item], events: Sequence[Event], report: Callable[[str], None]
) -> Iterator[BenchDeployment]:
    if subject.url is None:
        with sample_deployment(settings, items, events, report) as deployment:
            yield deployment
        return
    headers = {"authorization": f"Bearer {subject.api_key}"} if subject.api_key else {}
    server = Server(subject.url, headers=headers, connections=subject.connections)
    yield BenchDeployment(server, settings, settings.scorer.registry_url, items, past=events, coming=events)
