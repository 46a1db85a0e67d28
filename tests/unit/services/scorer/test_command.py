"""The command `headwater scorer`: its flags, its settings, and what it says when it cannot start."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_model import tiny_bert

from peft_adapters.errors import EncoderError, RegistryAddressError
from peft_adapters.settings import EncoderSettings
from services import cli
from services.scorer.command import run
from services.settings import Settings
from services.settings.scorer import ScorerSettings
from services.settings.web import SecuritySettings
from services.web.server import ServeError


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    threads, switch_seconds = torch.get_num_threads(), sys.getswitchinterval()
    yield
    torch.set_num_threads(threads)
    sys.setswitchinterval(switch_seconds)


def test_flags_reach_the_settings_they_are_about(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Settings] = []
    monkeypatch.setitem(sys.modules, "services.scorer.command", SimpleNamespace(run=given.append))
    monkeypatch.setattr("services.logs.configure_logging", lambda **_: None)
    flags = ["--host", "0.0.0.0", "--port", "0", "--registry-url", "http://r/v1/files", "--cache-dir", "c"]  # noqa: S104
    monkeypatch.setattr(sys, "argv", ["headwater", "scorer", *flags, "--scenario", "search"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    (settings,) = given
    assert settings.scorer == ScorerSettings(host="0.0.0.0", port=0, registry_url="http://r/v1/files")  # noqa: S104
    assert settings.encoder.cache_dir == Path("c")
    assert settings.scenario == "search"


@pytest.mark.parametrize(
    "wrong", [{"port": 70_000}, {"max_k": 19}, {"max_candidates": 0}, {"torch_threads": 0}, {"cache_dir": "c"}]
)
def test_settings_out_of_range_or_unknown_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ScorerSettings(**wrong)


def settings(tmp_path: Path, *, model: str | None = None, **scorer: Any) -> Settings:
    return Settings(
        encoder=EncoderSettings(model=model or str(tiny_bert()), cache_dir=None),
        scorer=ScorerSettings(**({"registry_url": str(tmp_path), "port": 0} | scorer)),
    )


def test_an_encoder_that_cannot_be_loaded_ends_it_before_it_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EncoderError, match=r"`encoder\.model` must name"):
        run(settings(tmp_path, model=str(tmp_path / "no-such-model")))
    assert "listening" not in capsys.readouterr().out


def test_a_registry_of_no_known_kind_ends_it(tmp_path: Path) -> None:
    with pytest.raises(RegistryAddressError, match="no-such-store"):
        run(settings(tmp_path, registry_url="no-such-store://x"))


def test_an_address_that_cannot_be_listened_on_ends_it_and_its_threads(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="cannot listen"):
        run(settings(tmp_path, host="192.0.2.1").model_copy(update={"security": SecuritySettings(open_to_all=True)}))
