"""Command line of the benchmarks: `python -m benchmarks [SCENARIO...]`, or `make bench ARGS=...`.

`--save` writes results to `benchmarks/results`, where they are committed. `--compare` compares the new results with
earlier ones: a result file, a directory, or a git reference.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

from benchmarks import (
    click_spam,
    consume_decode,
    drift,
    help_answers,
    ingest,
    learner_memory,
    learner_speed,
    pending_impressions,
    pictures,
    prefix_cache_training,
    rank_request,
    search_latency,
    search_learning,
    search_quality,
    soak,
    step_arithmetic,
    textbook_loop,
    worker_memory,
)
from benchmarks.measure import DATA_FILES, Measurement, MissingInputError
from benchmarks.provenance import machine
from benchmarks.results import compare, differing_conditions, earlier_results, save
from services.provenance import code

# Takes the data directory, and options as keywords (`--set NAME=VALUE`).
Scenario = Callable[..., Measurement]

# Names are permanent: results in git are compared by them.
SCENARIOS: dict[str, Scenario] = {
    "prefix-cache-training": prefix_cache_training.run,
    "consume-decode": consume_decode.run,
    "ingest": ingest.run,
    "pending-impressions": pending_impressions.run,
    "click-spam": click_spam.run,
    "textbook-loop": textbook_loop.run,
    "step-arithmetic": step_arithmetic.run,
    "learner-memory": learner_memory.run,
    "learner-speed": learner_speed.run,
    "pictures": pictures.run,
    "drift": drift.run,
    "help-answers": help_answers.run,
    "rank-request": rank_request.run,
    "search-latency": search_latency.run,
    "search-quality": search_quality.run,
    "search-learning": search_learning.run,
    "worker-memory": worker_memory.run,
    "soak": soak.run,
}
# Files of the data directory, where they are not `DATA_FILES`.
OTHER_FILES = {"search-learning": search_learning.DATA_FILES}
DEMO_DATA = Path(__file__).parents[1] / "services" / "lab" / "demo" / "data"


def main(arguments: list[str]) -> int:
    """Run scenarios; return 1 if a target was missed or, with `--compare`, a figure got worse."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.scenarios if name not in SCENARIOS]:
        parser.error(f"SCENARIO must be among {', '.join(SCENARIOS)}, got {', '.join(unknown)}")
    try:
        earlier = earlier_results(options.compare) if options.compare else {}
        runs = _runs(options)
        results = [_run(name, options.data, keywords) for name, keywords in runs.items()]
    except MissingInputError as error:
        parser.error(str(error))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.save:
        for result in results:
            print(f"saved {save(result)}")
    worse = options.compare and any([_report_changes(result, earlier, options.compare) for result in results])
    return int(bool(worse) or any(result["met"] is False for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Scenarios: " + ", ".join(SCENARIOS))
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        help="scenarios to run; without any, all whose inputs are there",
    )
    parser.add_argument(
        "--data", type=Path, default=DEMO_DATA, metavar="DIR", help=f"directory with {' and '.join(DATA_FILES)}"
    )
    parser.add_argument("--bootstrap-servers", metavar="HOST:PORT", help="Apache Kafka for the scenarios that need it")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="options",
        metavar="NAME=VALUE",
        help="option of the one scenario named, such as minutes=5 for soak; can be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all results to this file")
    parser.add_argument("--save", action="store_true", help="write each result to benchmarks/results, for git")
    parser.add_argument(
        "--compare", metavar="REF_OR_FILE", help="compare with the results of a git reference, a directory or a file"
    )
    return parser


def _runs(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the scenarios to run with their keywords, before the first of them starts.

    Raises:
        MissingInputError: a named scenario lacks an input, or an option is not one of the scenario's.
    """
    if options.options and len(options.scenarios) != 1:
        raise MissingInputError(f"--set is for one named SCENARIO, got {len(options.scenarios)}; run it by itself")
    runs = {}
    for name in options.scenarios or SCENARIOS:
        try:
            _require_files(name, options.data)
            runs[name] = _keywords(name, options.options, options.bootstrap_servers)
        except MissingInputError as error:
            if options.scenarios:
                raise
            print(f"{name}: skipped; {error}")
    return runs


def _require_files(name: str, data: Path) -> None:
    files = OTHER_FILES.get(name, DATA_FILES)
    if not all((data / file).is_file() for file in files):
        raise MissingInputError(f"{name}: --data must be a directory with {' and '.join(files)}, got {data}")


def _keywords(name: str, texts: Sequence[str], bootstrap_servers: str | None) -> dict[str, Any]:
    run = SCENARIOS[name]
    parameters = {
        parameter.name: parameter
        for parameter in inspect.signature(run).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    types = get_type_hints(run)
    keywords: dict[str, Any] = {}
    if bootstrap_servers and "bootstrap_servers" in parameters:
        keywords["bootstrap_servers"] = bootstrap_servers
    for text in texts:
        key, _, value = text.partition("=")
        if key not in parameters:
            known = ", ".join(sorted(parameters)) or "none"
            raise MissingInputError(f"--set {text}: {name} has no option {key!r}; its options are: {known}")
        keywords[key] = _value(text, value, types[key])
    for parameter in parameters.values():
        if parameter.default is inspect.Parameter.empty and parameter.name not in keywords:
            option = f"--{parameter.name.replace('_', '-')}"
            raise MissingInputError(f"{name} needs {option}; give one, for example {option} localhost:9092")
    return keywords


def _value(text: str, value: str, type_: Any) -> Any:
    if type_ is bool:
        if value not in ("true", "false"):
            raise MissingInputError(f"--set {text}: must be true or false")
        return value == "true"
    convert = {int: int, float: float}.get(type_, str)
    try:
        return convert(value)
    except ValueError as error:
        raise MissingInputError(f"--set {text}: must be {'an integer' if type_ is int else 'a number'}") from error


def _run(name: str, data: Path, keywords: Mapping[str, Any]) -> dict[str, Any]:
    began, source = datetime.now(UTC).isoformat(timespec="seconds"), code()
    load_before = round(os.getloadavg()[0], 2)
    measured = SCENARIOS[name](data, **keywords)
    target = "no target" if measured.target is None else f"target {measured.target:g}"
    print(f"{name}: {measured.value:.3g} {measured.unit} ({target})")
    for figure, value in measured.medians().items():
        print(f"  {figure}: {'-' if value is None else f'{value:,.3g}'}")
    return {
        "scenario": name,
        "began": began,
        **measured.as_json(),
        "machine": {"load_1_minute_before": load_before} | machine(),
        "code": source,
    }


def _report_changes(result: dict[str, Any], earlier: Mapping[str, dict[str, Any]], reference: str) -> bool:
    """Print how a result differs from the earlier one; return whether a figure got worse."""
    name = result["scenario"]
    if name not in earlier:
        print(f"{name}: {reference} has no result to compare with")
        return False
    before = earlier[name]
    commit = (before["code"]["commit"] or "no commit")[:10]
    print(f"{name}: compared with the result of {before['began']} ({commit})")
    for line in differing_conditions(result, before):
        print(f"  differs: {line}")
    changes = compare(result, before)
    for change in changes:
        print(change)
    return any(change.worse for change in changes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
