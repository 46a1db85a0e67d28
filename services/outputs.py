"""Checks of a command's output paths before it begins, so that a long run does not fail at its end."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile

from services.settings import SettingsError


def require_writable_files(outputs: Mapping[str, Path | None]) -> None:
    """Check that files can be written.

    Args:
        outputs: the path of each option; None if the option was not given.

    Raises:
        SettingsError: a path is a directory, or its directory is missing or not writable.
    """
    for option, path in outputs.items():
        if path is None:
            continue
        if path.is_dir():
            raise SettingsError(f"`{option}` must be a file, {path} is a directory; give a file name in it")
        if not path.parent.is_dir():
            raise SettingsError(
                f"`{option}` must lie in an existing directory, {path.parent} is not one; create it first"
            )
        if path.exists() and not os.access(path, os.W_OK):
            raise SettingsError(f"`{option}` must be writable, {path} is not; give another file, or change its rights")
        if not path.exists() or path.is_file():
            _require_room_for_files(option, path.parent)


def require_writable_directories(outputs: Mapping[str, Path | None]) -> None:
    """Create missing directories, and check that files can be written there.

    Args:
        outputs: the path of each option; None if the option was not given.

    Raises:
        SettingsError: a path is a file, cannot be created, or is not writable.
    """
    for option, path in outputs.items():
        if path is None:
            continue
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise SettingsError(f"`{option}` must be a directory, {path} is a file; give another one") from None
        except OSError as error:
            raise SettingsError(f"`{option}` {path} cannot be created: {error.strerror}; give another one") from error
        _require_room_for_files(option, path)


def _require_room_for_files(option: str, directory: Path) -> None:
    try:
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise SettingsError(
            f"`{option}`: no file can be written in {directory}: {error.strerror}; give another directory"
        ) from error
