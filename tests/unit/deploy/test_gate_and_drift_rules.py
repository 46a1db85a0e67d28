"""The alerts on gate and drift: rules that Prometheus takes, on metrics that the updater really has."""

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
RULES = ROOT / "deploy" / "prometheus" / "gate-and-drift.rules.yml"
METRIC = re.compile(r"(?<![:\w])(headwater_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)="([^"]*)"')


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_every_series_that_is_read_is_there_from_the_start(rules: list[dict[str, Any]]) -> None:
    registry = CollectorRegistry()
    UpdaterMetrics(registry)
    exported = [(sample.name, sample.labels) for family in registry.collect() for sample in family.samples]
    series = [(name, dict(MATCHER.findall(labels))) for rule in rules for name, labels in METRIC.findall(rule["expr"])]
    assert len({name for name, _ in series}) == 4
    for wanted, matchers in series:
        assert any(name == wanted and matchers.items() <= labels.items() for name, labels in exported), wanted


def test_every_alert_says_what_and_what_to_do(rules: list[dict[str, Any]]) -> None:
    recorded = {rule["record"] for rule in rules if "record" in rule}
    alerts = [rule for rule in rules if "alert" in rule]
    assert len(alerts) == 4
    guide = (ROOT / "docs" / "gate-and-drift.md").read_text()
    for alert in alerts:
        assert set(re.findall(r"\w+:\w+:\w+", alert["expr"])) <= recorded
        assert "{{ $labels.instance }}" in alert["annotations"]["summary"]
        file, _, heading = alert["annotations"]["runbook"].partition(", ")
        assert file == "docs/gate-and-drift.md"
        assert f"# {heading[1:-1]}\n" in guide
        assert alert["alert"] in guide


@pytest.mark.parametrize("arguments", [["check", "rules", "rules"], ["test", "rules", "test"]], ids=["check", "test"])
def test_prometheus_takes_the_rules_and_they_fire_when_they_should(arguments: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on the PATH; it comes with Prometheus")
    *command, kind = arguments
    file = RULES.with_name(f"gate-and-drift.{kind}.yml")
    done = subprocess.run([promtool, *command, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
