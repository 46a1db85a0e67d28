"""Report of a backtest in Markdown, with plots of quality over time and against the publish interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from services.lab.backtest.policies import Policy
from services.lab.backtest.provenance import provenance_rows
from services.lab.backtest.replay import Outcome
from services.lab.backtest.tables import (
    GAIN_COLUMNS,
    QUERY_COLUMNS,
    SLICE_COLUMNS,
    columns_of,
    figure_cell,
    gain_rows,
    markdown_table,
    notes,
    query_groups,
    query_rows,
    slice_rows,
)
from services.lab.offline.judging import Floats, ndcg, ranks_of
from services.lab.offline.slices import KNOWN
from services.settings import SettingsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Outcomes = Mapping[str, Sequence[Outcome]]

_OVER_TIME, _BY_INTERVAL = "quality-over-time.png", "quality-by-interval.png"
_WINDOWS = 10  # share of the judged events in a rolling mean: one in ten
_POINTS = 400  # points of a plotted line


def require_plots() -> None:
    """Check that matplotlib is installed, before hours of runs.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise SettingsError(
            "`--report` draws plots with matplotlib, which is not installed; pip install 'headwater[report]', or leave "
            "--report out and take --json"
        )


def write_report(directory: Path, report: dict[str, Any], policies: Sequence[Policy], outcomes: Outcomes) -> None:
    """Write `report.md` and its plots into a directory, which is created if needed."""
    directory.mkdir(parents=True, exist_ok=True)
    window = max(1, report["judged_events"] // _WINDOWS)
    _plot_over_time(directory / _OVER_TIME, report["first_judged_event"], outcomes, window)
    parts = [
        f"# Backtest of {report['events']}",
        _setting(report),
        "## Figures",
        _figures(report),
        "Means over seeds; ± is half of the 95 % interval over seeds (Student's t), with more than one.",
        *notes(report),
        *_gains(report),
        *_slices(report),
        *_judged_queries(report),
        "## Quality over time",
        f"NDCG@20 over the last {window:,} events, mean over seeds.",
        f"![Rolling NDCG@20 by policy]({_OVER_TIME})",
        *_intervals(directory, report, policies),
        "## Speed",
        _speed(report),
        "One thread a run. Learning alone is what an updater does with a micro-batch; the whole replay ranks the "
        "catalogue for every judged event too.",
        "## Provenance",
        markdown_table(["", "value"], provenance_rows(report), numbers=False),
        "All other settings of encoder and learner are the defaults of this version; `--json` holds them all.",
    ]
    (directory / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _setting(report: dict[str, Any]) -> str:
    seeds = 1 + max(run["seed"] for run in report["runs"])
    lines = [
        f"{report['replayed_events']:,} events of {report['catalogue']:,} items in micro-batches of "
        f"{report['batch_events']}, {seeds} seed{'s' if seeds > 1 else ''}. Every event is judged among the whole "
        "catalogue by what was published before its micro-batch, and learnt afterwards."
    ]
    if report["first_judged_event"]:
        lines.append(f"All are replayed, the last {report['judged_events']:,} are judged.")
    if report["label_delay_seconds"]:
        lines.append(f"An event is learnt {report['label_delay_seconds']:g} s of event time after it happened.")
    if report["warm_up_events"]:
        lines.append(f"{report['warm_up_events']:,} earlier events were learnt first.")
    if report["shown_lists"]:
        lines.append(f"{report['shown_lists']:,} lists were shown.")
    return " ".join(lines)


def _figures(report: dict[str, Any]) -> str:
    columns = columns_of(report)
    rows = [
        [policy, *(figure_cell(values.get(column), " ± ") for column in columns)]
        for policy, values in report["policies"].items()
    ]
    return markdown_table(["policy", *columns], rows)


def _gains(report: dict[str, Any]) -> list[str]:
    if not report["gains"]:
        return []
    return [
        f"## Gains of {report['gains_of']} over the other policies",
        markdown_table(GAIN_COLUMNS, gain_rows(report)),
        "Paired bootstrap over events, seeds averaged, 2,000 resamples: an interval that does not hold 0 is a "
        "difference.",
    ]


def _slices(report: dict[str, Any]) -> list[str]:
    """Return the section on slices; known customers come first where there are guests."""
    names = sorted(report["slices"], key=lambda name: name != KNOWN)
    sections = [
        part
        for name in names
        for part in (
            f"### {name}: {report['slices'][name]['about']}, {report['slices'][name]['events']:,}",
            markdown_table(SLICE_COLUMNS, slice_rows(report, name)),
        )
    ]
    return ["## Slices", f"The gains are those of {report['gains_of']}, as above.", *sections] if sections else []


def _judged_queries(report: dict[str, Any]) -> list[str]:
    """Return the section on queries that are judged and never learnt."""
    sections = [
        part
        for group, about in query_groups(report).items()
        for part in (f"### {about}", markdown_table(QUERY_COLUMNS, query_rows(report, group)))
    ]
    if not sections:
        return []
    about = (
        "NDCG@20 over graded items and recall@20, at the end of the stream, for shoppers of whom nothing is known. The "
        f"gains are those of {report['gains_of']}, by a paired bootstrap over queries."
    )
    return ["## Judged queries", about, *sections]


def _intervals(directory: Path, report: dict[str, Any], policies: Sequence[Policy]) -> list[str]:
    """Return the section on quality against the publish interval, if there are several intervals to compare."""
    live = sorted((policy.publish_every_batches, policy.name) for policy in policies if policy.rule == "live")
    if len(live) < 2:
        return []
    figures = {every: report["policies"][name]["ndcg20"] for every, name in live}
    _plot_by_interval(directory / _BY_INTERVAL, figures)
    rows = []
    for every, name in live:
        values = report["policies"][name]
        lost = 1 - values["ndcg20"]["mean"] / max(figures[live[0][0]]["mean"], 1e-12)
        cells = [figure_cell(values[figure], " ± ") for figure in ("ndcg20", "hr20")]
        rows.append([f"{every:,}", f"{every * report['batch_events']:,}", *cells, f"{lost:.1%}"])
    return [
        "## Quality against publish interval",
        markdown_table(["micro-batches", "events", "ndcg20", "hr20", "NDCG lost"], rows),
        f"![NDCG@20 against the publish interval]({_BY_INTERVAL})",
    ]


def _speed(report: dict[str, Any]) -> str:
    rows = []
    for run in report["runs"]:
        learning = run["events_learnt_per_second"]
        rows.append(
            [
                f"{run['policy']}, seed {run['seed']}",
                f"{run['events_learnt']:,}",
                "-" if learning is None else f"{learning:,.0f}",
                f"{run['events_per_second']:,.0f}",
                f"{run['publications']:,}",
            ]
        )
    header = ["run", "events learnt", "learning alone, events/s", "whole replay, events/s", "publications"]
    return markdown_table(header, rows)


# ---- plots


def rolling_mean(values: Floats, window: int) -> Floats:
    """Return the means of the last `window` values, from the first index with so many values.

    >>> rolling_mean(np.array([1.0, 2.0, 3.0, 5.0]), 2).tolist()
    [1.5, 2.5, 4.0]
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray((sums[window:] - sums[:-window]) / window, dtype=np.float64)


def _plot_over_time(path: Path, first_index: int, outcomes: Outcomes, window: int) -> None:
    def draw(axes: Axes) -> None:
        for order, (policy, runs) in enumerate(outcomes.items()):
            line = rolling_mean(np.mean([ndcg(ranks_of(outcome.ranks)) for outcome in runs], axis=0), window)
            places = np.unique(np.linspace(0, len(line) - 1, min(_POINTS, len(line))).astype(int))
            axes.plot(first_index + window + places, line[places], label=policy, linewidth=1.2, zorder=3 - order / 100)
        axes.set(xlabel="events", ylabel=f"NDCG@20 over the last {window:,} events", ylim=(0, None))
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))

    _plot(path, draw)


def _plot_by_interval(path: Path, figures: Mapping[int, dict[str, Any]]) -> None:
    def draw(axes: Axes) -> None:
        means = [figure["mean"] for figure in figures.values()]
        spread = [figure["ci95"] or 0.0 for figure in figures.values()]
        axes.errorbar(list(figures), means, yerr=spread, marker="o", capsize=3)
        axes.set_xscale("log")
        axes.set_xticks(list(figures), [f"{every:,}" for every in figures])
        axes.minorticks_off()
        axes.set(xlabel="publish interval, micro-batches", ylabel="NDCG@20")

    _plot(path, draw)


def _plot(path: Path, draw: Callable[[Axes], None]) -> None:
    from matplotlib.figure import Figure  # an optional dependency, slow to import

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    draw(axes)
    figure.savefig(path, dpi=120)
