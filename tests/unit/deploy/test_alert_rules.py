"""Tests of the alert rules: valid for Prometheus, on metrics that the processes export, each with a runbook."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from services.metrics.state_writer import StateWriterMetrics
from services.metrics.updater import UpdaterMetrics

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
METRIC = re.compile(r"(?<![:\w])(headwater_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)="([^"]*)"')
ALERTS = {"clocks": 2, "dead-letters": 2, "gate-and-drift": 4, "log": 4, "privacy-and-abuse": 1}
RUNBOOKS = {
    "clocks": "docs/how-to/sre/clocks.md",
    "dead-letters": "docs/how-to/sre/dead-letters.md",
    "gate-and-drift": "docs/explanation/gate-and-drift.md",
    "log": "docs/how-to/sre/changing-topics.md",
    "privacy-and-abuse": "docs/how-to/sre/privacy-and-abuse.md",
}


@pytest.fixture(scope="module", params=ALERTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def rules(name: str) -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((PROMETHEUS / f"{name}.rules.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.fixture(scope="module")
def exported() -> list[tuple[str, dict[str, str]]]:
    """Return the samples that an updater and a state writer export at their start."""
    updater, state_writer = CollectorRegistry(), CollectorRegistry()
    UpdaterMetrics(updater)
    StateWriterMetrics(state_writer).show_topics(["headwater.clicks"], [])
    families = [*updater.collect(), *state_writer.collect()]
    return [(sample.name, sample.labels) for family in families for sample in family.samples]


def test_every_file_of_rules_is_looked_at() -> None:
    assert {file.name.removesuffix(".rules.yml") for file in PROMETHEUS.glob("*.rules.yml")} == set(ALERTS)


def test_every_series_that_is_read_is_there_from_the_start(
    rules: list[dict[str, Any]], exported: list[tuple[str, dict[str, str]]]
) -> None:
    series = [(name, dict(MATCHER.findall(labels))) for rule in rules for name, labels in METRIC.findall(rule["expr"])]
    assert len(series) >= 2
    for wanted, matchers in series:
        assert any(name == wanted and matchers.items() <= labels.items() for name, labels in exported), wanted


def test_labels_that_are_summed_by_are_those_of_the_metric(
    rules: list[dict[str, Any]], exported: list[tuple[str, dict[str, str]]]
) -> None:
    labels = {name: set(own) for name, own in exported}
    for rule in rules:
        for by, inner in re.findall(r"sum by \((\w+)\) \(\w+\((headwater_\w+)", rule["expr"]):
            assert by in labels[inner]


def test_every_alert_says_what_and_what_to_do(name: str, rules: list[dict[str, Any]]) -> None:
    recorded = {rule["record"] for rule in rules if "record" in rule}
    alerts = [rule for rule in rules if "alert" in rule]
    assert len(alerts) == ALERTS[name]
    guide = (ROOT / RUNBOOKS[name]).read_text()
    for alert in alerts:
        assert set(re.findall(r"\w+:\w+:\w+", alert["expr"])) <= recorded
        assert re.search(r"{{ \$labels\.(instance|topic) }}", alert["annotations"]["summary"])
        file, _, heading = alert["annotations"]["runbook"].partition(", ")
        assert file == RUNBOOKS[name]
        assert f"# {heading[1:-1]}\n" in guide
        assert alert["alert"] in guide


@pytest.mark.parametrize("arguments", [["check", "rules", "rules"], ["test", "rules", "test"]], ids=["check", "test"])
def test_prometheus_takes_the_rules_and_they_fire_when_they_should(name: str, arguments: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on the PATH; it comes with Prometheus")
    *command, kind = arguments
    done = subprocess.run(
        [promtool, *command, str(PROMETHEUS / f"{name}.{kind}.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
