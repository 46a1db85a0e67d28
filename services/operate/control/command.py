"""`headwater forget`, `headwater quarantine list`, `headwater quarantine release` and `headwater guard list`."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from services.producers import BROKER_TIMEOUT_SECONDS, open_producer
from services.secrets import require_same_secret
from services.settings import Settings
from streams.connection import wait_for_broker
from streams.control import Command, GuardReport, Quarantined, forget_record, parse_control, release_key
from streams.dead_letters import DeadLetter
from streams.errors import SecretError
from streams.privacy import pseudonymiser
from streams.whole_topic import read_to_end

KINDS = ("user/", "item/")


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What `forget` did.

    Attributes:
        user: the pseudonym that is to be forgotten.
        dead_letters: how many were removed.
        is_checked: whether the deployment's fingerprint was found, and is that of the secret used here.
    """

    user: str
    dead_letters: int
    is_checked: bool


def forget(settings: Settings, user_id: str) -> Forgotten:
    """Write that a user is to be forgotten, and remove the dead letters that name them.

    Args:
        settings: which Kafka, which topics, and the secret that the user is known by.
        user_id: as the shop knows them.

    Raises:
        SecretError: the secret cannot be had.
        SecretMismatchError: the deployment uses another; nothing was written.
        BrokerUnreachableError: no broker answers.
        DeliveryError: the broker did not confirm it.
    """
    # A secret made here would be nobody else's: its pseudonyms name no one.
    pseudonymise = pseudonymiser(settings.privacy, make=False)
    user = pseudonymise(user_id)
    names, topics = {user_id, user}, settings.topics
    with open_producer(settings) as producer:
        is_checked = require_same_secret(settings, pseudonymise)
        producer.send_raw(topics.control, *forget_record(user, ts_ms=time.time_ns() // 1_000_000))
        producer.send_raw(topics.control, release_key(f"user/{user}"), None)
        letters = _letters_naming(names, settings)
        for key in letters:
            producer.send_raw(topics.dead_letters, key, None)
        producer.flush(BROKER_TIMEOUT_SECONDS)
    return Forgotten(user, len(letters), is_checked)


def quarantined(settings: Settings) -> list[Quarantined]:
    """What is in quarantine, the latest first.

    Raises:
        BrokerUnreachableError: no broker answers.
        TopicError: there is no control topic.
        ConsumeError: the broker does not give what is there.
    """
    found = [command for command in _newest(settings).values() if isinstance(command, Quarantined)]
    return sorted(found, key=lambda inside: inside.why.ts, reverse=True)


def guard_reports(settings: Settings) -> list[GuardReport]:
    """Return what the guards leave out or weigh down at present, as each scenario's updater reported last.

    Raises:
        BrokerUnreachableError: no broker answers.
        TopicError: there is no control topic.
        ConsumeError: the broker does not give what is there.
    """
    found = [command for command in _newest(settings).values() if isinstance(command, GuardReport)]
    return sorted(found, key=lambda report: report.scenario)


def _newest(settings: Settings) -> dict[bytes | None, Command | None]:
    """Return the newest command of each key of the control topic."""
    wait_for_broker(settings.kafka, timeout_seconds=BROKER_TIMEOUT_SECONDS)
    newest = {}
    for record in read_to_end(settings.kafka, settings.topics.control):
        newest[record.key] = parse_control(record)
    _require_same_if_known(settings)
    return newest


def _require_same_if_known(settings: Settings) -> None:
    """Refuse a secret that is set here and is not the deployment's; these commands work without one."""
    try:
        pseudonymise = pseudonymiser(settings.privacy, make=False)
    except SecretError:
        return
    require_same_secret(settings, pseudonymise)


def release(settings: Settings, key: str) -> bool:
    """Let a user or an item out of quarantine; whether it was in.

    Args:
        settings: which Kafka, which topics.
        key: `user/<pseudonym>` or `item/<item id>`, as `quarantined` gives them.

    Raises:
        BrokerUnreachableError: no broker answers.
        DeliveryError: the broker did not confirm it.
    """
    with open_producer(settings) as producer:
        was_in = any(inside.key == key for inside in quarantined(settings))
        producer.send_raw(settings.topics.control, release_key(key), None)
        producer.flush(BROKER_TIMEOUT_SECONDS)
    return was_in


# ---- dead letters


def _letters_naming(names: set[str], settings: Settings) -> set[bytes | None]:
    """Keys of the dead letters that hold one of some names; one letter is looked at at a time, they can be large."""
    naming: set[bytes | None] = set()
    for record in read_to_end(settings.kafka, settings.topics.dead_letters):
        if record.value is not None and _names_one_of(names, record.value):
            naming.add(record.key)
        else:  # removed, or written anew without the name
            naming.discard(record.key)
    return naming


def _names_one_of(names: set[str], value: bytes) -> bool:
    """Whether a dead letter holds one of some names: as its key, or anywhere in a payload that can be read.

    A payload that is no JSON is searched as text. Better a letter too many removed than a name left.
    """
    try:
        letter = DeadLetter.model_validate_json(value)
    except ValidationError:
        return _says(names, value)
    if (letter.original_key() or b"").decode(errors="replace") in names:
        return True
    payload = letter.original() or b""
    try:
        return _holds(json.loads(payload), names)
    except (ValueError, RecursionError):
        return _says(names, payload)


def _says(names: set[str], text: bytes) -> bool:
    """Whether a name is a word of some text."""
    return any(re.search(rb"(?<!\w)" + re.escape(name.encode()) + rb"(?!\w)", text) for name in names)


def _holds(value: Any, names: set[str]) -> bool:
    """Whether a name is among the values of parsed JSON, at any depth; some producers send ids as numbers."""
    if isinstance(value, dict):
        return any(_holds(part, names) for part in value.values())
    if isinstance(value, list):
        return any(_holds(part, names) for part in value)
    return isinstance(value, str | int) and str(value) in names
