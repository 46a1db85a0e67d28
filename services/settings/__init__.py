"""One settings module: flags over environment over file over defaults, and no key that nobody knows.

The environment is ``HEADWATER_<SECTION>__<NAME>`` (``HEADWATER_KAFKA__SASL_USERNAME``), with
``HEADWATER_BOOTSTRAP_SERVERS`` for the one that everybody sets. The file is TOML with one table per section, named by
``--config`` or ``HEADWATER_CONFIG``. A section is a frozen model that lives beside its user: to add one, add a field.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from peft_adapters.settings import DriftSettings, EncoderSettings, GateSettings, LearnerSettings, SigningSettings
from services.errors import UsageError
from services.settings.collector import CollectorSettings
from services.settings.fit import FitSettings
from services.settings.registry import RegistrySettings
from services.settings.scorer import ScorerSettings
from services.settings.search import SearchSettings
from services.settings.state import StateSettings
from services.settings.updater import UpdaterSettings
from services.settings.web import LimitSettings, SecuritySettings
from streams.clocks import ClockSettings
from streams.connection import KafkaConnection
from streams.events import Scenario
from streams.guard_settings import GuardSettings
from streams.privacy import PrivacySettings
from streams.topics import Topics

ENV_PREFIX = "HEADWATER_"
CONFIG_VARIABLE = "HEADWATER_CONFIG"
BOOTSTRAP_VARIABLE = "HEADWATER_BOOTSTRAP_SERVERS"
# Variables of ours that are no settings: the last one belongs to the tests.
OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, BOOTSTRAP_VARIABLE, "HEADWATER_TEST_KAFKA"})

# Tables whose keys are names of the deployment's own, not settings.
FREE_TABLES = frozenset({("topics", "dialects")})

LogLevel = Literal["debug", "info", "warning", "error"]


class SettingsError(UsageError):
    """Settings that cannot be used; the message names key, rule, value and remedy."""


# Settings of earlier releases, and their names today.
RENAMED = {
    "learner.taste_learning_rate": "learner.global_preference_learning_rate",
    "learner.list_taste_learning_rate": "learner.list_global_preference_learning_rate",
}


class Settings(BaseSettings):
    """All that can be set, by section. `load_settings` fills it; the class itself reads nothing from outside.

    Attributes:
        scenario: Which ranking a process works for, such as `home` or `search`.
        log_level: The least severe level that is logged.
        kafka: How to reach and trust the brokers.
        topics: The names of the topics.
        clock: How far times of events and records may be ahead of the reader's clock.
        registry: Where the registry process keeps and serves adapters.
        collector: Where events are collected over HTTP, and how many may wait for Kafka.
        updater: When batches close and adapters are published.
        scorer: Where a scorer answers, and what from.
        search: How queries in words are answered.
        state: Where scorers have shoppers' states from.
        limits: How many requests at once a process answers, and how long one may take.
        security: Who may call, over TLS or not, and where admin calls are told.
        privacy: How user ids are hidden.
        guard: What a user or an item may weigh.
        fit: How an offline fit splits its data, and how long it learns.
        encoder: The frozen encoder and the shape of its adapter.
        learner: How the learner learns.
        gate: What a candidate must keep to.
        drift: What counts as drift, and what follows.
        signing: With which key manifests are signed, and whose signatures count.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", validate_default=True
    )

    scenario: Scenario = "home"
    log_level: LogLevel = "info"
    kafka: KafkaConnection = KafkaConnection()
    topics: Topics = Topics()
    clock: ClockSettings = ClockSettings()
    registry: RegistrySettings = RegistrySettings()
    collector: CollectorSettings = CollectorSettings()
    scorer: ScorerSettings = ScorerSettings()
    search: SearchSettings = SearchSettings()
    updater: UpdaterSettings = UpdaterSettings()
    state: StateSettings = StateSettings()
    limits: LimitSettings = LimitSettings()
    security: SecuritySettings = SecuritySettings()
    privacy: PrivacySettings = PrivacySettings()
    guard: GuardSettings = GuardSettings()
    fit: FitSettings = FitSettings()
    encoder: EncoderSettings = EncoderSettings()
    learner: LearnerSettings = LearnerSettings()
    gate: GateSettings = GateSettings()
    drift: DriftSettings = DriftSettings()
    signing: SigningSettings = SigningSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leaves the reading of file and environment to `load_settings`, which checks their keys first."""
        return (init_settings,)


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Reads the settings: flags over environment over file over defaults.

    Args:
        config: A TOML file; without it, the one that ``HEADWATER_CONFIG`` names, if any.
        overrides: Values by section, as flags give them: ``kafka={"bootstrap_servers": "kafka:9092"}``. A value
            that is None was not given.

    Raises:
        SettingsError: A key is not known, a value breaks its rule, or the file cannot be read.
    """
    file = config or (Path(named) if (named := os.environ.get(CONFIG_VARIABLE)) else None)
    layers = (_from_file(file) if file else {}, _from_environment(), _given(overrides))
    values: dict[str, Any] = {}
    for layer in layers:
        values = _merged(values, layer)
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(fault) for fault in error.errors())) from None


def _from_file(path: Path) -> dict[str, Any]:
    """Reads a TOML file whose keys are all known."""
    try:
        values = TomlConfigSettingsSource(Settings, path)() if path.is_file() else None
    except (OSError, ValueError) as error:
        raise SettingsError(f"settings file {path} cannot be read: {error}") from error
    if values is None:
        raise SettingsError(f"settings file {path} is not there; give another --config or unset {CONFIG_VARIABLE}")
    _refuse_unknown((".".join(key) for key in _leaves(values)), set(_known_keys(Settings)), source=str(path))
    return values


def _from_environment() -> dict[str, Any]:
    """Reads the environment, in which every ``HEADWATER_`` variable must be known."""
    known = {_variable(key) for key in _known_keys(Settings)} | OTHER_VARIABLES
    renamed = {_variable(old): _variable(new) for old, new in RENAMED.items()}
    ours = (name.upper() for name in os.environ if name.upper().startswith(ENV_PREFIX))
    _refuse_unknown(ours, known, source="the environment", renamed_keys=renamed)
    try:
        values = dict(EnvSettingsSource(Settings)())
    except ValueError as error:
        raise SettingsError(f"the environment cannot be read: {error}") from error
    if servers := os.environ.get(BOOTSTRAP_VARIABLE):
        values["kafka"] = {"bootstrap_servers": servers, **values.get("kafka", {})}
    return values


def _variable(key: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + key.upper().replace(".", "__")


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Lists the keys that can be set: ``scenario``, ``kafka`` as a whole, ``kafka.client_id`` and so on."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")


def _refuse_unknown(
    keys: Iterable[str], known: set[str], *, source: str, renamed_keys: Mapping[str, str] = RENAMED
) -> None:
    for key in keys:
        if key not in known:
            if renamed := renamed_keys.get(key):
                raise SettingsError(f"unknown setting `{key}` in {source}; it was renamed, use `{renamed}`")
            nearest = get_close_matches(key, known, n=1, cutoff=0.0)
            raise SettingsError(f"unknown setting `{key}` in {source}; the nearest known one is `{nearest[0]}`")


def _leaves(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Lists the paths to the values of nested tables; an empty table is its own leaf."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value and (*prefix, name) not in FREE_TABLES:
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what was not given, at every depth, and sections of which nothing was."""
    nested = {name: _given(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    return {name: value for name, value in nested.items() if value not in (None, {})}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lays one nested mapping over another."""
    result = dict(below)
    for name, value in above.items():
        both_nested = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = _merged(result[name], value) if both_nested else value
    return result


def _explain(fault: ErrorDetails) -> str:
    """Says which key broke which rule with which value; what may hold a secret is never repeated."""
    key = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    shown = isinstance(fault["input"], str | int | float) and not _is_secret(fault["loc"])
    return f"setting `{key}`: {message}" + (f", got {fault['input']!r}" if shown and "got" not in message else "")


def _is_secret(location: tuple[int | str, ...]) -> bool:
    """Whether a key is declared as a secret."""
    annotation: Any = Settings
    for part in location:
        field = getattr(annotation, "model_fields", {}).get(part)
        annotation = field.annotation if field else None
    return annotation is SecretStr or SecretStr in get_args(annotation)
