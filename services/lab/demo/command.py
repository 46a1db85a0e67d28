"""The command `headwater demo`: start a deployment, replay a shop, wait until all is learnt, print the results."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path

from rich.console import Console

from peft_adapters.registry.registry import AdapterRegistry
from services.data.dataset import read_events, read_items
from services.lab.demo.accounts import AccountsPoller
from services.lab.demo.deployment import DemoDeployment, demo_deployment
from services.lab.demo.display import DemoDisplay
from services.lab.demo.errors import DemoError, Stopped
from services.lab.demo.freshness import Freshness
from services.lab.demo.lifetime import stopped_by_signals, work_directory
from services.lab.demo.quality import Quality
from services.lab.demo.shop import Shop
from services.lab.demo.storefront import Storefront, browse
from services.lab.demo.summary import Claim, Pace, Summary, claims, print_summary, summarise
from services.lab.demo.view import View, view_for
from services.logs import configure_logging
from services.outputs import require_writable_files
from services.settings import Settings
from streams.events import Item, Purchase
from streams.producer import EventProducer

LOOK_EVERY_SECONDS = 0.5
DRAIN_TIMEOUT_SECONDS = 20.0
CLAIMS_FAILED = 1
SIGNALLED = 128  # plus the signal's number


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        summary: the figures of the run.
        checked: the claims, each checked against the figures.
        pace: the speed of publishing.
        judged: the number of judged requests.
    """

    summary: Summary
    checked: list[Claim]
    pace: Pace
    judged: int

    @property
    def holds(self) -> bool:
        """Return whether no claim is false."""
        return all(claim.holds is not False for claim in self.checked)


def run(
    settings: Settings,
    *,
    rate: float,
    max_events: int | None,
    keep: bool,
    summary_json: Path | None,
    work_dir: Path | None,
) -> int:
    """Run the demo and return the exit status, which is 0 only if every claim is true.

    Args:
        settings: settings with the scenario, the encoder and, unless it is the embedded one, the Kafka broker.
        rate: events published per second.
        max_events: number of events after which the demo ends; None replays all.
        keep: whether to leave everything running at the end, until a signal.
        summary_json: file for the figures, or None.
        work_dir: directory for the files; None takes a temporary one, which is removed if all went well.

    Raises:
        HeadwaterStreamError: the broker did not start, or failed.
        SettingsError: the summary cannot be written.
    """
    require_writable_files({"--summary-json": summary_json})
    console = Console()
    if "log_level" not in settings.model_fields_set:
        configure_logging(level="warning")  # the view shows the rest
    try:
        with stopped_by_signals(), work_directory(work_dir) as directory:
            outcome = _run(settings, directory, console, rate=rate, max_events=max_events, keep=keep, out=summary_json)
            if not outcome.holds:
                raise DemoError("not everything that is claimed is true, see what failed above")
    except Stopped as stopped:
        console.print(f"stopped by {signal.Signals(stopped.number).name}; nothing is left running")
        return SIGNALLED + stopped.number
    except DemoError as error:
        console.print(f"\n[bold red]The demo failed:[/] {error}", highlight=False, soft_wrap=True)
        return CLAIMS_FAILED
    return 0


def _run(
    settings: Settings,
    directory: Path,
    console: Console,
    *,
    rate: float,
    max_events: int | None,
    keep: bool,
    out: Path | None,
) -> Outcome:
    items, purchases = read_sample(max_events)
    with ExitStack() as undo:
        with _progress_reporter(console) as report:
            up = undo.enter_context(demo_deployment(settings, directory, items, report))
        outcome = _show(up, directory, console, items=items, purchases=purchases, rate=rate)
        print_summary(console, outcome.summary, outcome.checked, pace=outcome.pace, judged=outcome.judged)
        if out is not None:
            out.write_text(json.dumps(outcome.summary.as_json(), indent=2) + "\n", encoding="utf-8")
        if keep:
            _keep(up, console, purchases[-1])
    return outcome


@contextmanager
def _progress_reporter(console: Console) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is under way: a status on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield partial(console.print, soft_wrap=True)
        return
    with console.status("") as status:
        yield status.update


def read_sample(max_events: int | None) -> tuple[list[Item], list[Purchase]]:
    """Return the catalogue of the bundled sample, and its purchases in order.

    Args:
        max_events: number of purchases to read; None reads all.
    """
    with as_file(files("services.lab.demo") / "data") as data:
        items = list(read_items(data / "items.csv.gz"))
        events = (event for event in read_events(data / "events.csv.gz") if isinstance(event, Purchase))
        return items, list(islice(events, max_events))


def _show(
    up: DemoDeployment, directory: Path, console: Console, *, items: list[Item], purchases: list[Purchase], rate: float
) -> Outcome:
    """Replay the purchases with a storefront beside it, and wait until all of them have been learnt."""
    from services.lab.demo.never_updated import load_never_updated  # imports torch, which takes seconds

    scenario = up.settings.scenario
    with _progress_reporter(console) as report:
        report("building the model that is never updated, for comparison")
        never_updated = load_never_updated(
            registry_dir=up.registry_dir,
            scenario=scenario,
            items=items,
            settings=up.settings.encoder,
            copies=directory / "copies",
        )
    registry = AdapterRegistry(str(up.registry_dir))
    freshness = Freshness(lambda version: registry.manifest(scenario, version).offsets)
    quality = Quality(never_updated.ranks)
    storefront = Storefront(up.scorer_urls, answered=freshness.answered)
    accounts = AccountsPoller(up.metrics_url, up.settings.topics)
    shop = Shop(
        purchases,
        rows=never_updated.rows,
        rate=rate,
        finished=lambda: accounts.latest.finished,
        storefront=storefront,
        quality=quality,
    )
    display = DemoDisplay(
        up,
        accounts=accounts,
        shop=shop,
        storefront=storefront,
        freshness=freshness,
        quality=quality,
        events_total=len(purchases),
    )
    with view_for(console) as view, _browsing(shop, storefront, items, purchases):
        _replay(up, shop, freshness, display, view)
        _drain(up, display, view, accounts=accounts, freshness=freshness, storefront=storefront, registry=registry)
    quality.judge_waiting()
    accounts.refresh()
    summary = summarise(
        replayed=shop.published,
        accounts=accounts.latest,
        traffic=storefront.traffic,
        quality=quality,
        freshness_seconds=freshness.seconds(),
    )
    checked = claims(
        summary,
        accounts=accounts.latest,
        uncovered=freshness.waiting,
        lift=quality.lift,
        failure=storefront.traffic.first_failure,
    )
    pace = Pace(requested=rate, achieved=shop.published / shop.took_seconds, waited_seconds=shop.waited_seconds)
    return Outcome(summary, checked, pace, quality.live.judged)


def _replay(up: DemoDeployment, shop: Shop, freshness: Freshness, display: DemoDisplay, view: View) -> None:
    """Publish everything from a thread, and show the progress meanwhile."""
    stop = threading.Event()
    producer = EventProducer(up.settings.kafka, up.settings.topics, on_delivery=freshness.delivered)
    with producer, ThreadPoolExecutor(1, thread_name_prefix="shop") as pool:
        replay = pool.submit(shop.run, producer, stop)
        try:
            while not replay.done():
                view.show(display.update("replaying"))
                time.sleep(LOOK_EVERY_SECONDS)
            replay.result()
        finally:
            stop.set()


def _drain(
    up: DemoDeployment,
    display: DemoDisplay,
    view: View,
    *,
    accounts: AccountsPoller,
    freshness: Freshness,
    storefront: Storefront,
    registry: AdapterRegistry,
) -> None:
    """Wait for up to 20 s until everything is learnt, published, and served by every scorer."""
    deadline = time.monotonic() + DRAIN_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        view.show(display.update("waiting for the last adapter"))
        latest = registry.latest(up.settings.scenario)
        served = latest is not None and all(scorer.version >= latest.version for scorer in storefront.traffic.scorers)
        if served and freshness.waiting == 0 and accounts.latest.pending == 0:
            return
        time.sleep(LOOK_EVERY_SECONDS)


@contextmanager
def _browsing(shop: Shop, storefront: Storefront, items: list[Item], purchases: list[Purchase]) -> Iterator[None]:
    """Send browsing requests from a thread within this context, and close the storefront at the end."""
    stop = threading.Event()
    users = sorted({purchase.user_id for purchase in purchases})
    item_ids = [item.item_id for item in items]
    browser = threading.Thread(
        target=browse,
        args=(storefront,),
        kwargs={"users": users, "item_ids": item_ids, "ts": lambda: shop.ts, "stop": stop},
        name="browser",
    )
    browser.start()
    try:
        yield
    finally:
        stop.set()
        browser.join()
        storefront.close()


def _keep(up: DemoDeployment, console: Console, last: Purchase) -> None:
    """Leave everything running and print the URLs; end by a signal only.

    Raises:
        DemoError: a process has ended.
    """
    scorer = up.scorer_urls[0]
    console.print("\n[bold]Everything is still running.[/] Ctrl-C stops it.")
    ask = f"""  scorers   {"  ".join(up.scorer_urls)}
  registry  {up.registry_url}/v1/adapters/{up.settings.scenario}
  updater   {up.metrics_url}
  Kafka     {up.settings.kafka.bootstrap_servers}

  curl {scorer}/v1/recommend -H 'content-type: application/json' -d '{{"user_id": "{last.user_id}", "k": 5}}'
  curl {scorer}/v1/rank -H 'content-type: application/json' \\
       -d '{{"session_items": ["{last.item_id}"], "candidates": ["22423", "85123A", "{last.item_id}"]}}'
  curl -s {scorer}/metrics | grep headwater_adapter
  echo '{{"type": "purchase", "user_id": "{last.user_id}", "item_id": "22423"}}' | \\
       headwater publish - --bootstrap-servers {up.settings.kafka.bootstrap_servers}
"""
    console.print(ask, highlight=False, markup=False, soft_wrap=True)
    while True:
        up.check()
        time.sleep(LOOK_EVERY_SECONDS)
