"""Results of the demo: figures, claims about them, and their text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from services.lab.demo.accounts import Accounts
from services.lab.demo.freshness import percentile
from services.lab.demo.quality import Quality
from services.lab.demo.storefront import Traffic

LEAST_LIFT = 1.10
# With fewer events, chance and the first seconds decide: the model needs about 8,000 to beat its initial state.
LEAST_EVENTS_FOR_FIGURES = 20_000
LEAST_ADAPTERS = 2
MOST_FRESHNESS_P95_SECONDS = 5.0
ACHIEVED_SHARE = 0.97  # a rate this close counts as achieved: a run starts and ends slowly


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures written to ``--summary-json``; a figure without data is None."""

    events_replayed: int
    events_learned: int
    dead_letters: int
    adapters_published: int
    adapters_served_by_each_scorer: list[int]
    hr20_live: float | None
    hr20_never_updated: float | None
    ndcg20_live: float | None
    ndcg20_never_updated: float | None
    freshness_p50_seconds: float | None
    freshness_p95_seconds: float | None
    requests_total: int
    requests_failed: int
    rank_p50_ms: float | None
    rank_p99_ms: float | None

    def as_json(self) -> dict[str, object]:
        """Return the figures as JSON values."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the demo.

    Attributes:
        text: the claim in words, with its figures.
        holds: whether it is true; None if there were too few events to tell.
    """

    text: str
    holds: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The speed of publishing.

    Attributes:
        requested: events per second requested.
        achieved: events per second in the mean.
        waited_seconds: time that the shop waited for the updater.
    """

    requested: float
    achieved: float
    waited_seconds: float

    def __str__(self) -> str:
        """Return the speed in words, with the reason if it was lower than requested."""
        words = f"{self.achieved:.0f} a second"
        if self.achieved < ACHIEVED_SHARE * self.requested:
            words += (
                f" ({self.requested:.0f} were asked for; the shop waited {self.waited_seconds:.0f} s for the updater)"
            )
        return words


def summarise(
    *, replayed: int, accounts: Accounts, traffic: Traffic, quality: Quality, freshness_seconds: list[float]
) -> Summary:
    """Return the figures of a run.

    Args:
        replayed: number of events published and confirmed.
        accounts: the updater's account of events.
        traffic: the requests of the storefront.
        quality: the quality of all answers, judged.
        freshness_seconds: freshness of every event that an answer has covered.
    """
    rank_ms = [1000 * seconds for seconds in traffic.rank_seconds]
    return Summary(
        events_replayed=replayed,
        events_learned=accounts.learnt,
        dead_letters=accounts.dead_letters,
        adapters_published=accounts.adapters_published,
        adapters_served_by_each_scorer=[len(scorer.versions) for scorer in traffic.scorers],
        hr20_live=quality.live.hr20,
        hr20_never_updated=quality.never_updated.hr20,
        ndcg20_live=quality.live.ndcg20,
        ndcg20_never_updated=quality.never_updated.ndcg20,
        freshness_p50_seconds=percentile(freshness_seconds, 50),
        freshness_p95_seconds=percentile(freshness_seconds, 95),
        requests_total=traffic.total,
        requests_failed=traffic.failed,
        rank_p50_ms=percentile(rank_ms, 50),
        rank_p99_ms=percentile(rank_ms, 99),
    )


def claims(summary: Summary, *, accounts: Accounts, uncovered: int, lift: float | None, failure: str) -> list[Claim]:
    """Return the claims that must be true for the demo to succeed, each checked.

    Args:
        summary: the figures of the run.
        accounts: the updater's account of events.
        uncovered: number of events that no answer has learnt.
        lift: HR@20 live over never updated.
        failure: description of the first failed request.
    """
    return [
        _every_event_learnt_once(summary, accounts),
        Claim(
            "Every event reached the shopper: an answer came from an adapter that has learnt it"
            + (f" ({uncovered:,} did not)" if uncovered else ""),
            uncovered == 0 and summary.freshness_p95_seconds is not None,
        ),
        _fresh(summary),
        Claim(
            f"No request failed ({summary.requests_failed:,} of {summary.requests_total:,})"
            + (f"; the first: {failure}" if failure else ""),
            summary.requests_failed == 0 and summary.requests_total > 0,
        ),
        Claim(
            f"Each scorer changed adapters while it answered ({_and(summary.adapters_served_by_each_scorer)} served)",
            min(summary.adapters_served_by_each_scorer) >= LEAST_ADAPTERS,
        ),
        _learning_pays(summary, lift),
    ]


def _every_event_learnt_once(summary: Summary, accounts: Accounts) -> Claim:
    once = summary.events_learned == summary.events_replayed == accounts.taken_in
    other = accounts.dead_letters + accounts.duplicates + accounts.expired + accounts.left_out + accounts.pending
    text = (
        f"Every event was learnt, and learnt once: {summary.events_replayed:,} published, "
        f"{accounts.taken_in:,} taken in = {accounts.learnt:,} learnt + {accounts.dead_letters:,} dead letters "
        f"+ {accounts.duplicates:,} duplicates + {accounts.expired:,} expired "
        f"+ {accounts.left_out:,} left out + {accounts.pending:,} pending"
    )
    return Claim(text, once and accounts.balanced and other == 0 and summary.events_replayed > 0)


def _fresh(summary: Summary) -> Claim:
    p95_seconds = summary.freshness_p95_seconds
    text = f"Fresh: 95 % of events were in the answers within {seconds(p95_seconds)}"
    holds = p95_seconds is not None and p95_seconds <= MOST_FRESHNESS_P95_SECONDS
    return _of_a_long_run(summary, text, f"at most {MOST_FRESHNESS_P95_SECONDS:.0f} s", holds)


def _learning_pays(summary: Summary, lift: float | None) -> Claim:
    times = "-" if lift is None else f"{lift:.2f} times"
    text = (
        f"Learning pays: HR@20 {share(summary.hr20_live)} live, {share(summary.hr20_never_updated)} never updated, "
        f"{times} as many hits"
    )
    return _of_a_long_run(summary, text, f"at least {LEAST_LIFT:.2f} times", lift is not None and lift >= LEAST_LIFT)


def _of_a_long_run(summary: Summary, text: str, claimed: str, holds: bool) -> Claim:
    """Return a claim about a figure, which is checked only after enough events."""
    if summary.events_replayed < LEAST_EVENTS_FOR_FIGURES:
        return Claim(f"{text}; {claimed} is claimed from {LEAST_EVENTS_FOR_FIGURES:,} events on", None)
    return Claim(f"{text}; {claimed} claimed", holds)


def print_summary(console: Console, summary: Summary, checked: Sequence[Claim], *, pace: Pace, judged: int) -> None:
    """Print what happened, what the figures mean, and each claim with a tick or a cross.

    Args:
        console: the console to print to.
        summary: the figures of the run.
        checked: the checked claims.
        pace: the speed of publishing.
        judged: number of requests that were judged.
    """
    console.print("\n[bold]What happened[/]")
    console.print(Padding(_happened(summary, pace, judged), (0, 2)))
    console.print("\n[bold]What it means[/]")
    table = Table.grid(padding=(0, 2))
    for name, value, meaning in _meanings(summary):
        table.add_row(f"  {name}", f"[bold]{value}[/]", meaning)
    console.print(table)
    console.print("\n[bold]What is claimed[/]")
    for claim in checked:
        console.print(f"  {mark_of(console, claim)} {claim.text}", highlight=False, soft_wrap=not console.is_terminal)


def mark_of(console: Console, claim: Claim) -> str:
    """Return the mark of a claim, in characters that the terminal has."""
    good, bad = ("✓", "✗") if console.encoding.startswith("utf") else ("ok", "FAILED")
    return {True: f"[green]{good}[/]", False: f"[red]{bad}[/]", None: "[yellow]-[/]"}[claim.holds]


def _happened(summary: Summary, pace: Pace, judged: int) -> str:
    return (
        f"{summary.events_replayed:,} real purchases were published to Kafka, {pace}. The updater learnt from them as "
        f"they came and published {summary.adapters_published} adapters; two scorers took these up while a storefront "
        f"sent them {summary.requests_total:,} requests. {judged:,} times a shopper was shown 20 items just before a "
        "purchase, and then bought what the data says; the same requests were also ranked by the model as it was at "
        "the start, which knows the shopper's session and history but has learnt nothing since."
    )


def _meanings(summary: Summary) -> list[tuple[str, str, str]]:
    return [
        (
            "in the 20 shown",
            f"{share(summary.hr20_live)}",
            f"of what was bought next (HR@20); {share(summary.hr20_never_updated)} by the model never updated",
        ),
        (
            "NDCG@20",
            f"{_figure(summary.ndcg20_live)}",
            f"higher places count more; {_figure(summary.ndcg20_never_updated)} by the model never updated",
        ),
        (
            "freshness",
            seconds(summary.freshness_p50_seconds),
            f"median time from a purchase to the first answer that has learnt it; "
            f"p95 {seconds(summary.freshness_p95_seconds)}",
        ),
        (
            "ranking",
            milliseconds(summary.rank_p50_ms),
            f"to order 100 items, median, as the storefront sees it; p99 {milliseconds(summary.rank_p99_ms)}",
        ),
    ]


def share(value: float | None) -> str:
    """Return a share as a percentage."""
    return "-" if value is None else f"{value:.1%}"


def seconds(value: float | None) -> str:
    """Return the text of a time in seconds."""
    return "-" if value is None else f"{value:.2f} s"


def milliseconds(value: float | None) -> str:
    """Return the text of a time in milliseconds."""
    return "-" if value is None else f"{value:.1f} ms"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _and(numbers: Sequence[int]) -> str:
    return " and ".join(str(number) for number in numbers)
