"""Results in git, and the comparison of a new result with an earlier one.

`benchmarks/results/<scenario>.json` holds the result of a scenario that is committed. A comparison prints the ratio of
each figure, new over earlier. A figure is worse if it moved in its bad direction by more than the noise: the largest
relative distance of a round from the median of its run, of either run. One round shows no noise; then `ONE_ROUND_NOISE`
is assumed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import MissingInputError
from services.provenance import ROOT, git

RESULTS = Path(__file__).with_name("results")
ONE_ROUND_NOISE = 0.1

# The direction of a figure follows from its name; the first pattern that matches decides.
_NEUTRAL = re.compile(r"^(seed|items|minutes|published|answered)$")
_LOWER_IS_BETTER = re.compile(
    r"seconds|_ms$|_gib$|_mib$|_mb$|_bytes|downweighted|_events$|failed|growth|unanswerable|lost$|left_at_the_end"
)
_HIGHER_IS_BETTER = re.compile(
    r"per_second|ratio|^(step|plain_layers|like_the_step|large)$|_fits$|kept_out|hr20|ndcg20|mrr|hit10|auc|right|"
    r"answered_at|cosine|exact$"
)

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of a new result beside an earlier one.

    Attributes:
        figure: the name of the figure.
        earlier: its median in the earlier result.
        new: its median in the new result.
        noise: the relative noise that the rounds show; None if neither run has two rounds.
        worse: whether the figure got worse by more than the noise.
    """

    figure: str
    earlier: float
    new: float
    noise: float | None
    worse: bool

    @property
    def ratio(self) -> float | None:
        """Return the new figure over the earlier one; None if the earlier one is 0."""
        return self.new / self.earlier if self.earlier else None

    def __str__(self) -> str:
        """Return the change as a line of a table."""
        ratio = "-" if self.ratio is None else f"{self.ratio:.3f}"
        noise = "one round" if self.noise is None else f"noise {self.noise:.1%}"
        mark = "  WORSE" if self.worse else ""
        return f"  {self.figure:<44} {self.earlier:>12,.4g} -> {self.new:>12,.4g}   x{ratio:<8} {noise}{mark}"


def save(result: Result) -> Path:
    """Write a result to the directory of committed results, and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['scenario']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path


def earlier_results(reference: str) -> dict[str, Result]:
    """Return earlier results by scenario.

    Args:
        reference: a result file, a directory of result files, or a git commit, branch or tag.

    Raises:
        MissingInputError: the reference is neither, or a file is not a result.
    """
    path = Path(reference)
    if path.is_dir():
        return _parse((file.name, file.read_text(encoding="utf-8")) for file in sorted(path.glob("*.json")))
    if path.is_file():
        return _parse([(reference, path.read_text(encoding="utf-8"))])
    folder = RESULTS.relative_to(ROOT).as_posix()
    names = git("ls-tree", "--name-only", reference, f"{folder}/")
    if names is None:
        raise MissingInputError(f"--compare must be a result file, a directory or a git reference, got {reference!r}")
    return _parse((name, git("show", f"{reference}:{name}") or "") for name in names.split() if name.endswith(".json"))


def _parse(files: Iterable[tuple[str, str]]) -> dict[str, Result]:
    results = {}
    for name, text in files:
        try:
            content = json.loads(text)
            for result in content if isinstance(content, list) else [content]:
                results[str(result["scenario"])] = result
        except (ValueError, KeyError, TypeError) as error:
            raise MissingInputError(f"{name}: expected a benchmark result, found {error!r}; write it again") from error
    return results


def compare(new: Result, earlier: Result) -> list[Change]:
    """Return how each figure that both results have changed, in the order of the new result."""
    changes = []
    for figure, value in new["medians"].items():
        before = earlier["medians"].get(figure)
        if value is None or before is None:
            continue
        noise = _noise(figure, new, earlier)
        tolerance = ONE_ROUND_NOISE if noise is None else noise
        worse = _loss(figure, before, value) > tolerance
        changes.append(Change(figure, before, value, noise, worse))
    return changes


def differing_conditions(new: Result, earlier: Result) -> Iterator[str]:
    """Yield a line for each setting, and each property of the machine, that differs between two results."""
    for section in ("settings", "machine"):
        before, now = earlier.get(section, {}), new[section]
        for name in sorted(before.keys() | now.keys()):
            if not name.startswith("load_1_minute") and before.get(name) != _as_json(now.get(name)):
                yield f"{section}.{name}: {before.get(name)} -> {now.get(name)}"


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _loss(figure: str, before: float, now: float) -> float:
    """Return the relative change in the bad direction; negative if better, 0 if the figure has no direction."""
    if before == 0 or _NEUTRAL.search(figure):
        return 0.0
    change = (now - before) / abs(before)
    if _LOWER_IS_BETTER.search(figure):
        return change
    return -change if _HIGHER_IS_BETTER.search(figure) else 0.0


def _noise(figure: str, *results: Result) -> float | None:
    distances = []
    for result in results:
        values = [round_[figure] for round_ in result["rounds"] if round_.get(figure) is not None]
        middle = result["medians"][figure]
        if len(values) > 1 and middle:
            distances.append(max(abs(value - middle) / abs(middle) for value in values))
    return max(distances, default=None)
