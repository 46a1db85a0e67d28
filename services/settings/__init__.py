"""Settings of all processes. Flags override the environment, which overrides the file, which overrides the defaults.

The environment is ``HEADWATER_<SECTION>__<NAME>`` (``HEADWATER_KAFKA__SASL_USERNAME``), with
``HEADWATER_BOOTSTRAP_SERVERS`` as a short form of the most common one. The file is TOML with one table per section; its
path is given by ``--config`` or ``HEADWATER_CONFIG``. An unknown key is an error. Each section is a frozen model beside
the code that uses it: to add a section, add a field.
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
# Variables with the prefix that are no settings; the last one is for the tests.
OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, BOOTSTRAP_VARIABLE, "HEADWATER_TEST_KAFKA"})

# Tables whose keys are names chosen by the deployment, not settings.
FREE_TABLES = frozenset({("topics", "dialects")})

LogLevel = Literal["debug", "info", "warning", "error"]


class SettingsError(UsageError):
    """Invalid settings; the message names key, rule, value and remedy."""


# Settings of earlier releases, and their names today.
RENAMED = {
    "learner.taste_learning_rate": "learner.global_preference_learning_rate",
    "learner.list_taste_learning_rate": "learner.list_global_preference_learning_rate",
}


class Settings(BaseSettings):
    """All settings, by section. `load_settings` reads them; the class itself reads no file and no environment.

    Attributes:
        scenario: the scenario that the process ranks for, such as `home` or `search`.
        log_level: the lowest level that is logged.
        kafka: addresses and security of the Kafka brokers.
        topics: names of the topics.
        clock: how far times of events and records may be ahead of the reader's clock.
        registry: storage and address of the registry process.
        collector: address and spool of the HTTP collector.
        updater: micro-batches, checkpoints and publications of the updater.
        scorer: address, registry and limits of the scoring workers.
        search: candidates and ranking of search queries.
        state: source and storage of shoppers' states.
        limits: concurrent requests and connections, and time limits.
        security: keys, TLS and the audit log of HTTP servers.
        privacy: pseudonyms of users.
        guard: limits on the weight of a user or an item.
        fit: data split and length of an offline fit.
        encoder: the frozen encoder and the shape of its adapter.
        learner: learning rates, optimisers and sizes of the learner.
        gate: limits that a candidate adapter must keep.
        drift: detection of drift and the response to it.
        signing: the key that signs manifests, and the keys that are trusted.
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
        """Disable the sources of pydantic: `load_settings` reads file and environment after checking their keys."""
        return (init_settings,)


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings from flags, environment and file, in this order of precedence.

    Args:
        config: the path of a TOML file; None takes the path in ``HEADWATER_CONFIG``, if it is set.
        overrides: values of flags by section, such as ``kafka={"bootstrap_servers": "kafka:9092"}``. None means that a
            flag was not given.

    Raises:
        SettingsError: a key is unknown, a value breaks its rule, or the file cannot be read.
    """
    file = config or (Path(named) if (named := os.environ.get(CONFIG_VARIABLE)) else None)
    layers = (_from_file(file) if file else {}, _from_environment(), _from_arguments(overrides))
    values: dict[str, Any] = {}
    for layer in layers:
        values = _merge(values, layer)
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(fault) for fault in error.errors())) from None


def _from_file(path: Path) -> dict[str, Any]:
    """Read a TOML file, and check that its keys are known."""
    try:
        values = TomlConfigSettingsSource(Settings, path)() if path.is_file() else None
    except (OSError, ValueError) as error:
        raise SettingsError(f"settings file {path} cannot be read: {error}") from error
    if values is None:
        raise SettingsError(f"settings file {path} does not exist; give another --config or unset {CONFIG_VARIABLE}")
    _refuse_unknown((".".join(key) for key in _leaves(values)), set(_known_keys(Settings)), source=str(path))
    return values


def _from_arguments(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Drop values that were not given, and check that the other keys are known."""
    values = _drop_missing(overrides)
    _refuse_unknown((".".join(key) for key in _leaves(values)), set(_known_keys(Settings)), source="the arguments")
    return values


def _from_environment() -> dict[str, Any]:
    """Read the environment, and check that its ``HEADWATER_`` variables are known."""
    known = {_variable(key) for key in _known_keys(Settings)} | OTHER_VARIABLES
    renamed = {_variable(old): _variable(new) for old, new in RENAMED.items()}
    names = (name.upper() for name in os.environ if name.upper().startswith(ENV_PREFIX))
    _refuse_unknown(names, known, source="the environment", renamed_keys=renamed)
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
    """Yield all keys: ``scenario``, ``kafka`` as a whole, ``kafka.client_id`` and so on."""
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
    """Yield the paths of the values in nested tables; an empty table is a leaf itself."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value and (*prefix, name) not in FREE_TABLES:
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name)


def _drop_missing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop values that were not given, at every depth, and empty sections."""
    nested = {name: _drop_missing(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    return {name: value for name, value in nested.items() if value not in (None, {})}


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; the second one takes precedence."""
    result = dict(base)
    for name, value in override.items():
        both_nested = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = _merge(result[name], value) if both_nested else value
    return result


def _explain(fault: ErrorDetails) -> str:
    """Describe the key, the rule it breaks and its value; the value of a secret is never shown."""
    key = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    shown = isinstance(fault["input"], str | int | float) and not _is_secret(fault["loc"])
    return f"setting `{key}`: {message}" + (f", got {fault['input']!r}" if shown and "got" not in message else "")


def _is_secret(location: tuple[int | str, ...]) -> bool:
    """Return whether a key is declared as a secret."""
    annotation: Any = Settings
    for part in location:
        field = getattr(annotation, "model_fields", {}).get(part)
        annotation = field.annotation if field else None
    return annotation is SecretStr or SecretStr in get_args(annotation)
