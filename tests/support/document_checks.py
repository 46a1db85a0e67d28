"""Requests made from an OpenAPI document, right and wrong, and whether the answers meet what it says."""

import subprocess
import sys
from pathlib import Path

# The command of this environment, wherever its scripts lie.
SCHEMATHESIS = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]


def check_document(url: str, directory: Path, *, operations: int, cases: int = 8) -> None:
    """Sends requests with all checks of schemathesis on, none of which may fail.

    Args:
        url: of the document.
        directory: where schemathesis runs.
        operations: how many the document has; each is to be tried.
        cases: of an operation and phase; the whole run is in docs/how-to/application/rank.md.
    """
    made = [f"--max-examples={cases}", "--seed=1", "--no-shrink", "--generation-database=none", "--no-color"]
    command = [*SCHEMATHESIS, "run", url, "--checks=all", *made]
    run = subprocess.run(command, capture_output=True, text=True, cwd=directory)
    assert run.returncode == 0, run.stdout
    assert f"Tested: {operations}\n" in run.stdout
