"""Settings: precedence of their sources, and rejected values."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("HEADWATER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "headwater.toml"
    file.write_text(
        """
        scenario = "search"
        kafka = { bootstrap_servers = "file:1", client_id = "file" }
        topics = { clicks = "file.clicks" }
        """
    )
    return file


def test_defaults_need_no_file_and_no_environment() -> None:
    settings = load_settings()
    assert settings.kafka.bootstrap_servers == "127.0.0.1:9092"
    assert settings.topics.clicks == "headwater.clicks"
    assert settings.scenario == "home"


def test_flags_outrank_environment_outranks_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_file = load_settings(config)
    monkeypatch.setenv("HEADWATER_KAFKA__BOOTSTRAP_SERVERS", "environment:2")
    monkeypatch.setenv("HEADWATER_SCENARIO", "ads")
    from_environment = load_settings(config)
    from_flags = load_settings(config, kafka={"bootstrap_servers": "flag:3"}, scenario=None)
    assert [s.kafka.bootstrap_servers for s in (from_file, from_environment, from_flags)] == [
        "file:1",
        "environment:2",
        "flag:3",
    ]
    assert [s.scenario for s in (from_file, from_environment, from_flags)] == ["search", "ads", "ads"]
    assert {s.kafka.client_id for s in (from_file, from_environment, from_flags)} == {"file"}
    assert from_flags.topics.clicks == "file.clicks"


def test_every_section_is_set_in_the_same_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "headwater.toml"
    file.write_text('[learner]\nfeatures = ["popularity_fast"]\n[registry]\nport = 1\n')
    monkeypatch.setenv("HEADWATER_REGISTRY__PORT", "2")
    monkeypatch.setenv("HEADWATER_LEARNER__LORA", "false")
    settings = load_settings(file, encoder={"model": "elsewhere"})
    assert settings.learner.features == ("popularity_fast",)
    assert settings.learner.lora is False
    assert settings.registry.port == 2
    assert settings.encoder.model == "elsewhere"
    monkeypatch.setenv("HEADWATER_LEARNER__FEATURES", '["repeat", "last_basket"]')
    assert load_settings(file).learner.features == ("repeat", "last_basket")


def test_the_short_variable_names_the_brokers_and_the_long_one_outranks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_BOOTSTRAP_SERVERS", "short:1")
    monkeypatch.setenv("HEADWATER_KAFKA__CLIENT_ID", "beside-it")
    assert load_settings().kafka.bootstrap_servers == "short:1"
    assert load_settings().kafka.client_id == "beside-it"
    monkeypatch.setenv("HEADWATER_KAFKA__BOOTSTRAP_SERVERS", "long:2")
    assert load_settings().kafka.bootstrap_servers == "long:2"


def test_the_environment_can_name_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_CONFIG", str(config))
    assert load_settings().scenario == "search"


def test_what_was_given_is_told_from_what_is_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "bootstrap_servers" not in load_settings(kafka={"bootstrap_servers": None}).kafka.model_fields_set
    monkeypatch.setenv("HEADWATER_BOOTSTRAP_SERVERS", "127.0.0.1:9092")
    assert "bootstrap_servers" in load_settings().kafka.model_fields_set


@pytest.mark.parametrize(
    ("toml", "unknown", "nearest"),
    [
        ('scenaro = "home"', "scenaro", "scenario"),
        ('[kafka]\nbootstrap_server = "a:1"', "kafka.bootstrap_server", "kafka.bootstrap_servers"),
        ("[kafak]", "kafak", "kafka"),
    ],
)
def test_an_unknown_key_in_the_file_names_the_nearest(tmp_path: Path, toml: str, unknown: str, nearest: str) -> None:
    file = tmp_path / "headwater.toml"
    file.write_text(toml)
    with pytest.raises(SettingsError, match=rf"`{unknown}` in .*headwater.toml; the nearest known one is `{nearest}`"):
        load_settings(file)


def test_a_renamed_setting_is_an_error_that_names_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "headwater.toml"
    file.write_text("[learner]\nlist_taste_learning_rate = 0.1\n")
    with pytest.raises(SettingsError, match=r"renamed, use `learner\.list_global_preference_learning_rate`"):
        load_settings(file)
    monkeypatch.setenv("HEADWATER_LEARNER__TASTE_LEARNING_RATE", "0.1")
    with pytest.raises(SettingsError, match="renamed, use `HEADWATER_LEARNER__GLOBAL_PREFERENCE_LEARNING_RATE`"):
        load_settings()


def test_an_unknown_variable_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_KAFKA__SASL_USER", "u")
    with pytest.raises(SettingsError, match=r"`HEADWATER_KAFKA__SASL_USER`.*`HEADWATER_KAFKA__SASL_USERNAME`"):
        load_settings()


def test_variables_of_others_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATERS_KAFKA", "x")
    monkeypatch.setenv("HEADWATER_TEST_KAFKA", "/opt/kafka")
    assert load_settings() == Settings()


def test_a_bad_value_names_key_and_value() -> None:
    with pytest.raises(SettingsError, match=r"setting `log_level`: .*'debug'.*, got 'loud'"):
        load_settings(log_level="loud")


def test_a_secret_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_KAFKA__SASL_PASSWORD", "hunter2")
    with pytest.raises(SettingsError, match="`security_protocol` must be") as raised:
        load_settings()
    assert "hunter2" not in str(raised.value)
    with pytest.raises(SettingsError, match=r"kafka\.sasl_password") as raised:
        load_settings(kafka={"sasl_password": 271828})
    assert "271828" not in str(raised.value)


def test_a_missing_file_and_a_broken_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml does not exist"):
        load_settings(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("scenario = ")
    with pytest.raises(SettingsError, match=r"broken\.toml cannot be read: "):
        load_settings(broken)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().scenario = "ads"  # type: ignore[misc]


def test_updater_registry_and_scorer_meet_by_default() -> None:
    settings = load_settings()
    assert settings.updater.registry_url == settings.registry.url == settings.scorer.registry_url


@pytest.mark.parametrize(
    ("arguments", "unknown", "nearest"),
    [
        ({"learner": {"heads_lerning_rate": 1}}, "learner.heads_lerning_rate", "learner.heads_learning_rate"),
        ({"lerner": {"seed": 1}}, "lerner.seed", "learner.seed"),
    ],
)
def test_an_unknown_argument_names_the_nearest(arguments: dict[str, Any], unknown: str, nearest: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(**arguments)
    problem = f"unknown setting `{unknown}` in the arguments; the nearest known one is `{nearest}`"
    assert str(refused.value) == problem
