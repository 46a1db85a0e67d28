"""Logging: JSON that a log collector can read, and tracebacks without secrets."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from peft_adapters.ranking.lexical import LexicalIndex
from services.logs import configure_logging


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def test_away_from_a_terminal_a_line_is_a_json_object_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    structlog.get_logger("streams.consumer").info("reconnected", attempts=3)
    captured = capsys.readouterr()
    line = json.loads(captured.err)
    assert captured.out == ""
    assert (line["event"], line["attempts"], line["level"], line["logger"]) == (
        "reconnected",
        3,
        "info",
        "streams.consumer",
    )
    assert line["timestamp"].endswith("Z")


def test_the_standard_librarys_loggers_write_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(json=True)
    logging.getLogger("fsspec").warning("slow: %s", "s3", extra={"seconds": 2})
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["seconds"], line["logger"]) == ("slow: s3", 2, "fsspec")


def test_people_get_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(json=False)
    structlog.get_logger("x").warning("kafka is away", address="a:1")
    line = capsys.readouterr().err
    assert "kafka is away" in line
    assert "address=a:1" in line
    assert "\x1b" not in line


def test_the_level_holds_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="warning")
    structlog.get_logger("x").info("quiet")
    logging.getLogger("y").info("quiet")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_has_no_local_variables(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    configure_logging(json=as_json)
    password = "hunter" + str(sys.maxsize)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        structlog.get_logger("x").exception("failed")
    line = capsys.readouterr().err
    assert "RuntimeError: broken" in line
    assert password not in line


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="`level` must be debug, info, warning or error, got 'loud'"):
        configure_logging(level="loud")


def test_the_level_holds_for_libraries_that_set_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(json=True)
    LexicalIndex(["a blue mug", "a red mug"])  # bm25s gives its logger the level debug
    logging.getLogger("bm25s").debug("Building index")
    assert capsys.readouterr().err == ""
    configure_logging(json=True, level="debug")
    logging.getLogger("bm25s").debug("Building index")
    assert json.loads(capsys.readouterr().err)["level"] == "debug"
