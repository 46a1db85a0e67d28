"""Generated pages of the reference, and links to files of the repository: a hook of MkDocs.

`reference/settings.md`, `commands.md`, `http.md` and `metrics.md` are made from the settings models, the command line,
the OpenAPI documents and the metrics classes, so that they cannot fall behind the code.
"""

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import typer
from fastapi import FastAPI
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from peft_adapters.registry.registry import AdapterRegistry
from services.cli import app as command_line
from services.metrics.collector import CollectorMetrics
from services.metrics.registry import RegistryMetrics
from services.metrics.scorer import ScorerMetrics
from services.metrics.state_writer import StateWriterMetrics
from services.metrics.updater import UpdaterMetrics
from services.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[1]
REPOSITORY_LINK = re.compile(
    r"\]\(((?:\.\./)+)((?:services|streams|peft_adapters|headwater|deploy|benchmarks|examples|tests)[^)]*)\)"
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {"settings": settings_page, "commands": commands_page, "http": http_page, "metrics": metrics_page}
    for name, make in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content="\n".join(make())))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show links to files of the repository as code: the site does not hold those files."""
    return re.sub(r"\[`?([^\]`]+)`?" + REPOSITORY_LINK.pattern, lambda link: f"`{link[3]}`", markdown)


def settings_page() -> Iterator[str]:
    """Yield the lines of the page on settings."""
    yield "# Settings"
    yield (
        f"\nEvery setting is a variable `{ENV_PREFIX}<SECTION>__<NAME>`, a key of a TOML file (`--config FILE`) or, "
        "for the usual ones, a flag. Flags win over variables, variables over the file. An unknown key is an error "
        "that names the nearest known one.\n"
    )
    plain = {name: field for name, field in Settings.model_fields.items() if not _is_section(field.annotation)}
    documented = _attributes(Settings.__doc__ or "")
    rows = ((f"`{name}`", _type(field), _default(field), documented[name]) for name, field in plain.items())
    yield from _table(("setting", "type", "default", "meaning"), rows)
    for name, field in Settings.model_fields.items():
        if _is_section(field.annotation):
            yield f"\n## {name}\n\n{_first_paragraph(field.annotation.__doc__)}\n"
            documented = _attributes(field.annotation.__doc__ or "")
            rows = (
                (f"`{key}`", _type(each), _default(each), each.description or documented.get(key, ""))
                for key, each in field.annotation.model_fields.items()
            )
            yield from _table(("setting", "type", "default", "meaning"), rows)


def commands_page() -> Iterator[str]:
    """Yield the lines of the page on commands."""
    yield "# Commands\n"
    yield from _command(typer.main.get_command(command_line), "headwater")


def http_page() -> Iterator[str]:
    """Yield the lines of the page on HTTP calls."""
    yield "# HTTP\n\nEvery process serves its own document at `/openapi.json`; errors are RFC 9457 problem documents."
    for title, app in _applications().items():
        yield f"\n## {title}\n"
        document = app.openapi()
        rows = (
            (f"`{method.upper()} {path}`", _first_paragraph(operation.get("description") or operation["summary"]))
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        )
        yield from _table(("call", "what it does"), rows)
        for name, schema in document.get("components", {}).get("schemas", {}).items():
            if name.endswith(("Request", "Query", "Call")) and schema.get("properties"):
                yield f"\n### {name}\n\n{_first_paragraph(schema.get('description'))}\n"
                required = schema.get("required", ())
                fields = (
                    (f"`{key}`", "yes" if key in required else "", field.get("description", ""))
                    for key, field in schema["properties"].items()
                )
                yield from _table(("field", "required", "meaning"), fields)


def metrics_page() -> Iterator[str]:
    """Yield the lines of the page on metrics."""
    yield "# Metrics\n\nEvery process serves its metrics at `/metrics`. Units are base units; times are Unix times."
    processes = {
        "Updater": UpdaterMetrics,
        "Scorer": ScorerMetrics,
        "Registry": RegistryMetrics,
        "Collector": CollectorMetrics,
        "State writer": StateWriterMetrics,
    }
    for title, metrics in processes.items():
        registry = CollectorRegistry()
        metrics(registry)
        yield f"\n## {title}\n"
        rows = []
        for collector in list(registry._collector_to_names):
            for family in collector.describe() if hasattr(collector, "describe") else collector.collect():
                labels = ", ".join(f"`{name}`" for name in getattr(collector, "_labelnames", ()))
                name = family.name + ("_total" if family.type == "counter" else "")
                rows.append((f"`{name}`", family.type, labels, family.documentation))
        yield from _table(("metric", "type", "labels", "meaning"), iter(sorted(rows)))


def _applications() -> dict[str, FastAPI]:
    """Return the applications of the processes, over parts that are never called."""
    from services.collector.app import create_app as collector
    from services.registry.app import create_app as registry
    from services.scorer.app import create_app as scorer

    part: Any = MagicMock()
    series = CollectorRegistry()
    settings = Settings()
    return {
        "Scorer": scorer(part, settings.scorer, ScorerMetrics(CollectorRegistry()), series, search=MagicMock()),
        "Registry": registry(AdapterRegistry("memory://docs")),
        "Collector": collector(part, part, settings.collector, CollectorMetrics(CollectorRegistry()), series),
    }


def _command(command: Any, name: str, depth: int = 2) -> Iterator[str]:
    if hasattr(command, "commands"):  # a group; typer brings its own click
        if depth > 2:
            yield f"\n{'#' * depth} {name}\n\n{_text(command.help)}\n"
        for child_name, child in sorted(command.commands.items()):
            if not child.hidden:
                yield from _command(child, f"{name} {child_name}", min(depth + 1, 4) if depth > 2 else 3)
        return
    yield f"\n{'#' * depth} {name}\n\n{_text(command.help)}\n"
    rows = [
        (f"`{', '.join(each.opts)}`", str(getattr(each, "help", None) or each.name))
        for each in command.params
        if getattr(each, "help", None) != "Show this message and exit."
    ]
    if rows:
        yield from _table(("option", "meaning"), iter(rows))


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(_cell(cell) for cell in row) + " |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type(field: Any) -> str:
    name = getattr(field.annotation, "__name__", None)
    text = name if name and "[" not in str(field.annotation) else str(field.annotation)
    return "`" + re.sub(r"\b(typing|pathlib|collections\.abc|streams\.\w+|services\.[\w.]+)\.", "", text) + "`"


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "" if field.default_factory is None else "made at start"
    value = getattr(field.default, "value", field.default)
    return f"`{'' if value is None else value}`" if value not in (None, "", ()) else "none"


def _attributes(docstring: str) -> dict[str, str]:
    """Return the notes of a docstring's `Attributes:` section, by name."""
    section = cleandoc(docstring).partition("Attributes:")[2].split("\n\n")[0]
    notes = re.findall(r"^    (\w+): (.+(?:\n {8,}.+)*)", section, flags=re.M)
    return {name: " ".join(note.split()) for name, note in notes}


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _text(text: str | None) -> str:
    """Return a help text as Markdown: examples are indented, so that they become code."""
    return re.sub(r"^(\s*)(headwater .*)$", r"    \2", (text or "").replace("\b", "").strip(), flags=re.M)
