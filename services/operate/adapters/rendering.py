"""Rendering of adapters and rollouts as text and as JSON."""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from peft_adapters.registry.manifest import Manifest
from peft_adapters.registry.rollout import Rollout
from services.registry.comparison import Comparison
from services.registry.versions import roles

SHOWN_METRIC = "ndcg10"
COLUMNS = ("version", "kind", "published", "events", SHOWN_METRIC, "bytes", "signed by", "is")


def rows(manifests: Iterable[Manifest], rollout: Rollout) -> Iterator[dict[str, Any]]:
    """Yield one row per version, with its roles in the rollout."""
    published = list(manifests)
    latest = published[-1].version if published else 0
    for manifest in published:
        yield {
            "version": manifest.version,
            "kind": manifest.kind,
            "published": moment(manifest.published_at_ms),
            "events": manifest.events_learned,
            SHOWN_METRIC: manifest.metrics.get(SHOWN_METRIC),
            "bytes": sum(entry.bytes for entry in manifest.files.values()),
            "signed by": manifest.signature.key_id if manifest.signature else None,
            "is": ", ".join(roles(manifest.version, rollout, latest=latest)),
        }


def table(version_rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table with a header; empty columns are left out."""
    cells = [tuple(_cell(row.get(column)) for column in COLUMNS) for row in version_rows]
    used = [at for at, _ in enumerate(COLUMNS) if any(row[at] for row in cells)]
    widths = {at: max(len(row[at]) for row in [COLUMNS, *cells]) for at in used}
    for row in [COLUMNS, *cells]:
        yield "  ".join(row[at].ljust(widths[at]) for at in used).rstrip()


def describe_rollout(rollout: Rollout) -> Iterator[str]:
    """Yield lines that describe a rollout."""
    stable = "the latest version" if rollout.stable_version is None else f"version {rollout.stable_version}, pinned"
    yield f"{rollout.scenario}: answers come from {stable}"
    if rollout.canary is not None:
        ends = "; ends automatically when it is worse" if rollout.canary.auto_rollback else ""
        yield f"  canary: {_version(rollout.canary.version)} answers {rollout.canary.percent:g} % of shoppers{ends}"
    if rollout.shadow is not None:
        yield f"  shadow: {_version(rollout.shadow.version)} scores too and never answers"
    if rollout.revision:
        why = f": {rollout.reason}" if rollout.reason else ""
        yield f"  revision {rollout.revision}, {moment(rollout.changed_at_ms)}, by {rollout.changed_by or '?'}{why}"


def differences(comparison: Comparison) -> Iterator[str]:
    """Yield lines that describe the differences between two versions."""
    first, second = comparison.versions
    yield f"{comparison.scenario}: version {first} to version {second}"
    yield f"  {comparison.events_learned:+,} events learnt, published {comparison.seconds:+,.1f} s"
    if not comparison.same_base:
        yield "  they are for different frozen encoders"
    for name, (first_value, second_value) in comparison.metrics.items():
        yield f"  {name:<20} {_number(first_value):>10} -> {_number(second_value):>10}"
    for name, change in comparison.tensors.items():
        yield f"  {name:<48} moved {change.relative:.4%} of its length, most in one weight {change.largest:.3g}"


def as_json(value: Any) -> str:
    """Return a value as a JSON document."""
    return json.dumps(value, indent=2, default=str)


def _version(version: int | None) -> str:
    return "the latest version" if version is None else f"version {version}"


def moment(ms: int) -> str:
    """Return a time as RFC 3339 in UTC."""
    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
