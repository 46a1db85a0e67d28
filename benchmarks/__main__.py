"""`python -m benchmarks [SCENARIO...] [--json OUT] [--data DIR]`: run scenarios, print figures, keep the rounds."""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import (
    click_spam,
    consume_decode,
    ingest,
    learner_memory,
    pending_impressions,
    pictures,
    prefix_cache_training,
    step_arithmetic,
    textbook_loop,
)
from benchmarks.measure import Measured
from benchmarks.provenance import code, machine

Scenario = Callable[[Path], Measured]

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
    "pictures": pictures.run,
}
DEMO_DATA = Path(__file__).parents[1] / "services" / "lab" / "demo" / "data"


def main(arguments: list[str]) -> int:
    """Run what was asked for; the exit status is 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Scenarios: " + ", ".join(SCENARIOS))
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="which to run; without any, all")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write settings, rounds and figures there")
    parser.add_argument("--data", type=Path, default=DEMO_DATA, metavar="DIR", help="directory with items.csv.gz")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.scenarios if name not in SCENARIOS]:
        parser.error(f"SCENARIO must be among {', '.join(SCENARIOS)}, got {', '.join(unknown)}")
    results = [_run(name, options.data) for name in options.scenarios or SCENARIOS]
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return int(any(result["met"] is False for result in results))


def _run(name: str, data: Path) -> dict[str, Any]:
    began = datetime.now(UTC).isoformat(timespec="seconds")
    measured = SCENARIOS[name](data)
    target = "no target" if measured.target is None else f"target {measured.target:g}"
    print(f"{name}: {measured.value:.3g} {measured.unit} ({target})")
    for figure, value in measured.medians().items():
        print(f"  {figure}: {value:,.3g}")
    return {"scenario": name, "began": began, **measured.as_json(), "machine": machine(), "code": code()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
