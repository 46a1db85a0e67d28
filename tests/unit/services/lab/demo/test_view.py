"""What a person sees while the demo runs."""

import dataclasses
import io

import pytest
from rich.console import Console

from services.lab.demo import view
from services.lab.demo.view import LinesView, LiveView, ScorerSnapshot, Snapshot

SNAPSHOT = Snapshot(
    doing="replaying",
    elapsed_seconds=12.0,
    events_total=48_098,
    published=3_960,
    events_per_second=330.2,
    learnt=3_500,
    adapters_published=6,
    scorers=[
        ScorerSnapshot(name="scorer 1", version=6, versions_served=6, answered=120),
        ScorerSnapshot(name="scorer 2", version=5, versions_served=5, answered=121),
    ],
    freshness_p50_seconds=1.25,
    freshness_p95_seconds=2.5,
    hr20_live=0.41,
    hr20_never_updated=0.29,
    judged=190,
    requests=241,
    failed=0,
    rank_p50_ms=4.2,
    rank_p99_ms=11.0,
)
FIRST = dataclasses.replace(
    SNAPSHOT,
    freshness_p50_seconds=None,
    freshness_p95_seconds=None,
    hr20_live=None,
    hr20_never_updated=None,
    rank_p50_ms=None,
    rank_p99_ms=None,
)
SHOWN = ("3,960", "330/s", "3,500", "1.25 s", "2.50 s", "41.0%", "29.0%", "241", "0 failed")


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=120), out


def test_the_picture_has_all_that_was_promised() -> None:
    plain, out = console(terminal=False)
    plain.print(view.panels(SNAPSHOT))
    for text in (*SHOWN, "scorer 1", "scorer 2", "4.2 ms", "11.0 ms", "190 purchases"):
        assert text in out.getvalue()
    assert out.getvalue().count("\n") < 24  # a terminal of the usual size shows all of it


def test_failures_stand_out() -> None:
    colours, out = console(terminal=True)
    colours.print(view.panels(dataclasses.replace(SNAPSHOT, failed=2)))
    assert "\x1b[31m2 failed" in out.getvalue()


@pytest.mark.parametrize("snapshot", [FIRST, SNAPSHOT])
def test_there_is_a_picture_and_a_line_from_the_first_moment_on(snapshot: Snapshot) -> None:
    plain, _ = console(terminal=False)
    plain.print(view.panels(snapshot))
    assert "replaying" in view.line(snapshot)


def test_elsewhere_than_on_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, out = console(terminal=False)
    with view.view_for(plain) as lines:
        assert isinstance(lines, LinesView)
        for _ in range(3):
            lines.show(SNAPSHOT)
        assert out.getvalue().count("\n") == 1
        monkeypatch.setattr(view, "LINE_EVERY_SECONDS", 0.0)
        lines._due = 0.0
        lines.show(SNAPSHOT)
        lines.show(SNAPSHOT)
    assert out.getvalue().count("\n") == 3
    for text in SHOWN:
        assert text in out.getvalue()


def test_on_a_terminal_there_is_a_picture_that_goes_when_it_ends() -> None:
    colours, out = console(terminal=True)
    with view.view_for(colours) as live:
        assert isinstance(live, LiveView)
        live.show(SNAPSHOT)
    assert "Headwater" in out.getvalue()
    assert "\x1b[?25h" in out.getvalue()  # the cursor is back
