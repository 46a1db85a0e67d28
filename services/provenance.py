"""Provenance of figures: the version of Headwater and, in a git checkout, the commit."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).parents[1]


class Code(TypedDict):
    """The state of the source code.

    `commit` is the hash of the commit, and `dirty` says whether tracked files differ from it; both are None outside a
    git checkout of Headwater.
    """

    commit: str | None
    dirty: bool | None


def headwater_version() -> str | None:
    """Return the version of the installed package, or None if it is not installed."""
    try:
        return version("headwater")
    except PackageNotFoundError:
        return None


def code() -> Code:
    """Return the commit of the source code."""
    if not (ROOT / ".git").exists():  # the package may be installed inside another repository
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def git(*arguments: str) -> str | None:
    """Return the output of a git command in the checkout, or None if it fails or git is not installed."""
    executable = shutil.which("git")
    if executable is None:
        return None
    answer = subprocess.run([executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    return answer.stdout.strip() if answer.returncode == 0 else None
