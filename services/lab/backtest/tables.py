"""Tables of a backtest's figures, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from services.lab.offline.slices import KNOWN

_COLUMNS = ("hr20", "ndcg20", "mrr", "auc", "auc_first3")
_SLICES = 8  # in one table of 80 columns
_OF_LISTS = ("ndcg10_lists", "ece_click", "ece_purchase")


def columns_of(report: dict[str, Any]) -> tuple[str, ...]:
    """Return the figures that a table shows."""
    if not report["shown_lists"]:
        headline = tuple(f"{figure}_{KNOWN}" for figure in ("hr20", "ndcg20")) if KNOWN in report["slices"] else ()
        return (*headline, *_COLUMNS, *(() if headline else ("hr20_first_of_item", "hr20_new_user")))
    reported = {name for values in report["policies"].values() for name in values}
    return (*_COLUMNS, *(name for name in _OF_LISTS if name in reported))


def figures_table(report: dict[str, Any]) -> Table:
    """Return a table of policies and figures: the mean over seeds, and half of its 95 % interval below."""
    title = f"{report['events']}: {report['judged_events']:,} events, {report['catalogue']:,} items"
    table = Table(
        title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )  # all figures fit into 80 columns
    table.add_column("policy", no_wrap=True)
    columns = columns_of(report)
    for column in columns:
        table.add_column(column.replace("_", "\n"), justify="right", no_wrap=True)
    for policy, values in report["policies"].items():
        table.add_row(policy, *(figure_cell(values.get(column), "\n±") for column in columns))
    return table


def figure_cell(value: dict[str, Any] | None, joint: str) -> str:
    """Return the text of a mean, and of half its interval if there is one."""
    if value is None:
        return "-"
    return f"{value['mean']:.4f}" + ("" if value["ci95"] is None else f"{joint}{value['ci95']:.4f}")


def slice_tables(report: dict[str, Any]) -> list[Table]:
    """Return tables of NDCG@20 by policy and slice, with the gains of the reference below."""
    names = list(report["slices"])
    return [_slice_table(report, names[start : start + _SLICES]) for start in range(0, len(names), _SLICES)]


def _slice_table(report: dict[str, Any], names: Sequence[str]) -> Table:
    reference = report["gains_of"]
    table = Table(
        title=f"NDCG@20 by slice; below: gain of {reference}, and its 95 % interval",
        box=box.SIMPLE,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("policy", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", "\n", 1).replace("_", "-"), justify="right", no_wrap=True)
    table.add_row("events", *(f"{report['slices'][name]['events']:,}" for name in names))
    for policy, values in report["policies"].items():
        cells = []
        for name in names:
            gain = report["gains_by_slice"][name].get(policy, {}).get("ndcg20")
            interval = [_short(gain[key], sign=True) for key in ("difference", "low", "high")] if gain else []
            cells.append("\n".join([_short(values[f"ndcg20_{name}"]["mean"]), *interval]))
        table.add_row(policy, *cells)
    return table


def _short(value: float, *, sign: bool = False) -> str:
    """Return a figure below 1 with four decimals and no leading zero.

    >>> _short(0.25), _short(-0.01, sign=True)
    ('.2500', '-.0100')
    """
    return f"{value:{'+' if sign else ''}.4f}".replace("0.", ".", 1)


def slice_rows(report: dict[str, Any], name: str) -> list[Sequence[str]]:
    """Return the cells of `SLICE_COLUMNS` for a slice, one row per policy."""
    rows: list[Sequence[str]] = []
    for policy, values in report["policies"].items():
        gain = report["gains_by_slice"][name].get(policy)
        cells = _gain_cells(gain["ndcg20"], relative=True) if gain else ["", "", ""]
        rows.append(
            [policy, *(figure_cell(values[f"{figure}_{name}"], " ± ") for figure in ("ndcg20", "hr20")), *cells]
        )
    return rows


def gains_table(report: dict[str, Any]) -> Table:
    """Return a table of the reference's gains over the other policies, with 95 % intervals of a paired bootstrap."""
    table = Table(title=f"Gains of {report['gains_of']}, with 95 % intervals of a paired bootstrap over events")
    for column in ("over", "NDCG@20", "HR@20"):
        table.add_column(column, justify="left" if column == "over" else "right", no_wrap=True)
    for policy, ndcg, of_ndcg, relative, hits, of_hits in gain_rows(report):
        table.add_row(policy, f"{ndcg} ({relative})\n{of_ndcg}", f"{hits}\n{of_hits}")
    return table


QUERY_COLUMNS = ("policy", "NDCG@20", "recall@20", "gain in NDCG@20", "interval", "relative", "recall@20", "interval")


def query_groups(report: dict[str, Any]) -> dict[str, str]:
    """Return the groups of judged queries with a heading each; none without judged queries."""
    judged = report["judged_queries"] or {}
    about = {"all": "all judged queries", "unseen": "not in the stream", "in_stream": "in the stream too"}
    return {name: f"{text}, {judged[name]['queries']:,}" for name, text in about.items() if name in judged}


def query_rows(report: dict[str, Any], group: str) -> list[Sequence[str]]:
    """Return the cells of `QUERY_COLUMNS` for a group of judged queries, one row per policy."""
    judged, rows = report["judged_queries"][group], list[Sequence[str]]()
    for policy, values in judged["policies"].items():
        gain = judged["gains"].get(policy)
        cells = [figure_cell(values[figure], " ± ") for figure in ("ndcg20", "recall20")]
        gains = (
            [*_gain_cells(gain["ndcg20"], relative=True), *_gain_cells(gain["recall20"], relative=False)]
            if gain
            else [""] * 5
        )
        rows.append([policy, *cells, *gains])
    return rows


def query_tables(report: dict[str, Any]) -> list[Table]:
    """Return a table per group of judged queries: figures by policy, and the gains of the reference."""
    tables = []
    for group, about in query_groups(report).items():
        title = f"Judged queries, {about}; gains of {report['gains_of']}"
        table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column("policy", no_wrap=True)
        for column in ("NDCG@20", "recall@20", "gain in NDCG@20", "gain in recall@20"):
            table.add_column(column, justify="right", no_wrap=True)
        for policy, ndcg, recall, gain, interval, relative, more, of_more in query_rows(report, group):
            gains = (f"{gain} ({relative})\n{interval}", f"{more}\n{of_more}") if gain else ("", "")
            table.add_row(policy, ndcg.replace(" ", "\n", 1), recall.replace(" ", "\n", 1), *gains)
        tables.append(table)
    return tables


SLICE_COLUMNS = ("policy", "NDCG@20", "HR@20", "gain in NDCG@20", "interval", "relative")
GAIN_COLUMNS = ("over", "NDCG@20", "interval", "relative", "HR@20", "interval")


def gain_rows(report: dict[str, Any]) -> list[Sequence[str]]:
    """Return the cells of `GAIN_COLUMNS`, one row per policy."""
    return [
        (policy, *_gain_cells(gain["ndcg20"], relative=True), *_gain_cells(gain["hr20"], relative=False))
        for policy, gain in report["gains"].items()
    ]


def _gain_cells(gain: dict[str, Any], *, relative: bool) -> list[str]:
    cells = [f"{gain['difference']:+.4f}", f"{gain['low']:+.4f} to {gain['high']:+.4f}"]
    if relative:
        cells.append("-" if gain["relative"] is None else f"{gain['relative']:+.1%}")
    return cells


def notes(report: dict[str, Any]) -> list[str]:
    """Return the remarks that a reader needs to interpret the figures."""
    never = {run["policy"] for run in report["runs"] if run["publications"] == 0}
    return [
        f"{policy} published nothing that it learnt: it ranked all the time by what it started with"
        + (", because all events are of one day of event time." if policy == "nightly" else ".")
        for policy in report["policies"]
        if policy in never
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Return a Markdown table whose first column is text and the others numbers, or all text.

    >>> print(markdown_table(["policy", "hr20"], [["live", "0.5"]]))
    | policy | hr20 |
    |---|---:|
    | live | 0.5 |
    """
    lines = [header, *rows]
    body = ["| " + " | ".join(cells) + " |" for cells in lines]
    body.insert(1, "|---|" + ("---:|" if numbers else "---|") * (len(header) - 1))
    return "\n".join(body)
