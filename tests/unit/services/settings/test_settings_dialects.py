"""Settings of topics in other dialects."""

from pathlib import Path

import pytest

from services.settings import SettingsError, load_settings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "headwater.toml"
    file.write_text('[topics.dialects]\n"ga4.events" = "ga4"\nclickstream = "segment"\n')
    return file


def test_a_file_names_topics_with_dots(config: Path) -> None:
    assert load_settings(config).topics.dialects == {"ga4.events": "ga4", "clickstream": "segment"}
    assert "ga4.events" not in load_settings(config).topics.names()


def test_the_environment_adds_to_the_file_and_outranks_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_TOPICS__DIALECTS", '{"ranklens": "metarank", "clickstream": "ga4"}')
    expected = {"ga4.events": "ga4", "clickstream": "ga4", "ranklens": "metarank"}
    assert load_settings(config).topics.dialects == expected


@pytest.mark.parametrize(
    ("dialects", "message"),
    [
        ('"ga4.events" = "adobe"', r"`topics\.dialects\.ga4\.events`.*'ga4', 'segment' or 'metarank', got 'adobe'"),
        ('"headwater.clicks" = "ga4"', r"must name topics of other producers, got 'headwater\.clicks'"),
        ('"a topic" = "ga4"', r"topics\.dialects\.a topic"),
        ('events = { "x" = "ga4" }', r"topics\.dialects\.events"),
    ],
)
def test_what_cannot_be_is_refused(config: Path, dialects: str, message: str) -> None:
    config.write_text(f"[topics.dialects]\n{dialects}\n")
    with pytest.raises(SettingsError, match=message):
        load_settings(config)


def test_a_key_beside_it_is_still_unknown(config: Path) -> None:
    config.write_text('[topics.dialect]\n"ga4.events" = "ga4"\n')
    with pytest.raises(SettingsError, match=r"unknown setting `topics\.dialect\.ga4\.events`.*`topics\.dialects`"):
        load_settings(config)
