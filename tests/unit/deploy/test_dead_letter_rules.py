"""The alert on dead letters: rules that Prometheus takes, on metrics that the updater really has."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from services.metrics import UpdaterMetrics

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "dead-letters.rules.yml"
METRIC = re.compile(r"(?<![:\w])(headwater_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)="([^"]*)"')


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def read(rules: list[dict[str, Any]]) -> list[tuple[str, dict[str, str]]]:
    """Name and matchers of every series that the rules take from a scrape."""
    return [(name, dict(MATCHER.findall(labels))) for rule in rules for name, labels in METRIC.findall(rule["expr"])]


def test_every_series_that_is_read_is_there_from_the_start(rules: list[dict[str, Any]]) -> None:
    registry = CollectorRegistry()
    UpdaterMetrics(registry)
    exported = [(sample.name, sample.labels) for family in registry.collect() for sample in family.samples]
    series = read(rules)
    assert {name for name, _ in series} == {"headwater_events_total", "headwater_dead_letters_total"}
    for wanted, matchers in series:
        assert any(name == wanted and matchers.items() <= labels.items() for name, labels in exported), wanted


def test_labels_that_are_summed_by_are_those_of_the_metric(rules: list[dict[str, Any]]) -> None:
    registry = CollectorRegistry()
    UpdaterMetrics(registry)
    labels = {s.name: set(s.labels) for family in registry.collect() for s in family.samples}
    for rule in rules:
        for by, inner in re.findall(r"sum by \((\w+)\) \(\w+\((headwater_\w+)", rule["expr"]):
            assert by in labels[inner]


def test_every_alert_says_what_and_what_to_do(rules: list[dict[str, Any]]) -> None:
    recorded = {rule["record"] for rule in rules if "record" in rule}
    alerts = [rule for rule in rules if "alert" in rule]
    assert len(alerts) == 2
    guide = (ROOT / "docs" / "dead-letters.md").read_text()
    for alert in alerts:
        assert set(re.findall(r"\w+:\w+:\w+", alert["expr"])) <= recorded
        assert "{{ $labels.topic }}" in alert["annotations"]["summary"]
        file, _, heading = alert["annotations"]["runbook"].partition(", ")
        assert file == "docs/dead-letters.md"
        assert f"# {heading[1:-1]}\n" in guide
        assert alert["alert"] in guide


@pytest.mark.parametrize("arguments", [["check", "rules", "rules"], ["test", "rules", "test"]], ids=["check", "test"])
def test_prometheus_takes_the_rules_and_they_fire_when_they_should(arguments: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on the PATH; it comes with Prometheus")
    *command, kind = arguments
    file = RULES.with_name(f"dead-letters.{kind}.yml")
    done = subprocess.run([promtool, *command, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
