"""Provenance of a backtest: the version, encoder, settings and data that its figures are of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from peft_adapters.encoder.encoder import Encoder
from services.data.digests import file_digest
from services.provenance import code, headwater_version
from services.settings import Settings


def provenance(
    settings: Settings, encoder: Encoder, files: Mapping[str, Path | None], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the provenance of figures as JSON values.

    Args:
        settings: settings of the encoder and the learner.
        encoder: the encoder of the runs.
        files: data files by role, such as `items`; None for a role that has no file.
        options: options of the backtest that its figures depend on.
    """
    return {
        "headwater": {"version": headwater_version(), **code()},
        "encoder": {"model": settings.encoder.model, "base_digest": encoder.base_digest},
        "data": {
            role: {"file": path.name, "sha256": file_digest(path)} for role, path in files.items() if path is not None
        },
        "options": dict(options),
        "changed_settings": {
            **dict(_changed(settings.encoder, "encoder", exclude={"cache_dir", "cache_max_bytes"})),
            **dict(_changed(settings.learner, "learner")),
        },
    }


def _changed(section: BaseModel, name: str, *, exclude: set[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a section that differ from their defaults."""
    defaults = type(section)().model_dump(mode="json", exclude=exclude)
    for key, value in section.model_dump(mode="json", exclude=exclude).items():
        if value != defaults[key]:
            yield f"{name}.{key}", value


def provenance_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the provenance of a report as rows of a table."""
    source = report["provenance"]
    headwater = source["headwater"]
    commit = headwater["commit"] or "not known"
    if headwater["dirty"]:
        commit += ", with uncommitted changes"
    return [
        ("Headwater", headwater["version"] or "not installed"),
        ("commit", commit),
        ("encoder", str(source["encoder"]["model"])),
        ("encoder digest", source["encoder"]["base_digest"]),
        *((f"{role}: {file['file']}", f"sha256 {file['sha256']}") for role, file in source["data"].items()),
        *((name, str(value)) for name, value in source["options"].items() if value is not None),
        *((name, str(value)) for name, value in source["changed_settings"].items()),
    ]
