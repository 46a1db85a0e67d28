"""Implementation of `headwater forget`, `headwater quarantine` and `headwater guard`."""

from __future__ import annotations

import json
import re
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from services.producers import BROKER_TIMEOUT_SECONDS, open_producer
from services.secrets import require_same_secret
from services.settings import Settings
from streams.connection import wait_for_broker
from streams.consumer import PartitionConsumer
from streams.control import Command, GuardReport, Quarantined, forget_record, parse_control, release_key
from streams.dead_letters import DeadLetter
from streams.errors import SecretError
from streams.offsets import Offsets
from streams.privacy import pseudonymiser
from streams.whole_topic import read_to_end

KINDS = ("user/", "item/")


@dataclass(frozen=True, slots=True)
class ForgetResult:
    """The result of `forget`.

    Attributes:
        user: the pseudonym that is to be forgotten.
        dead_letters: the number of removed dead letters.
        is_checked: whether a fingerprint of the deployment's secret was found, and is that of the local secret.
    """

    user: str
    dead_letters: int
    is_checked: bool


def forget(settings: Settings, user_id: str) -> ForgetResult:
    """Publish the command to forget a user, and remove the dead letters that name the user.

    Args:
        settings: the settings with brokers, topics and the secret for pseudonyms.
        user_id: the user's id in the shop's events.

    Raises:
        SecretError: the secret cannot be read.
        SecretMismatchError: the deployment uses another secret; nothing was written.
        BrokerUnreachableError: no broker answers.
        DeliveryError: the broker did not confirm the command.
    """
    # A secret made here would be unknown to the deployment, and its pseudonyms would match no one.
    pseudonymise = pseudonymiser(settings.privacy, make=False)
    user = pseudonymise(user_id)
    names, topics = {user_id, user}, settings.topics
    with open_producer(settings) as producer:
        is_checked = require_same_secret(settings, pseudonymise)
        ends, topic_ids = _event_log_ends(settings)
        command = forget_record(user, ts_ms=time.time_ns() // 1_000_000, ends=ends, topic_ids=topic_ids)
        producer.send_raw(topics.control, *command)
        producer.send_raw(topics.control, release_key(f"user/{user}"), None)
        letters = _letters_naming(names, settings)
        for key in letters:
            producer.send_raw(topics.dead_letters, key, None)
        producer.flush(BROKER_TIMEOUT_SECONDS)
    return ForgetResult(user, len(letters), is_checked)


def _event_log_ends(settings: Settings) -> tuple[Offsets, dict[str, str]]:
    """Return the present end of each partition with shoppers' events, and the ids of their topics."""
    names = settings.topics
    with closing(
        PartitionConsumer(settings.kafka, [names.impressions, names.clicks, names.purchases, *names.dialects])
    ) as probe:
        lag = probe.lag()
        return {at: start + lag.get(at, 0) for at, start in probe.positions().items()}, probe.topic_ids()


def quarantined(settings: Settings) -> list[Quarantined]:
    """Return the entries in quarantine, the latest first.

    Raises:
        BrokerUnreachableError: no broker answers.
        TopicError: there is no control topic.
        ConsumeError: the broker refuses the records.
    """
    entries = [command for command in _newest(settings).values() if isinstance(command, Quarantined)]
    return sorted(entries, key=lambda entry: entry.why.ts, reverse=True)


def guard_reports(settings: Settings) -> list[GuardReport]:
    """Return the last report of each scenario's guard on the events that it leaves out or weighs down.

    Raises:
        BrokerUnreachableError: no broker answers.
        TopicError: there is no control topic.
        ConsumeError: the broker refuses the records.
    """
    reports = [command for command in _newest(settings).values() if isinstance(command, GuardReport)]
    return sorted(reports, key=lambda report: report.scenario)


def _newest(settings: Settings) -> dict[bytes | None, Command | None]:
    """Return the newest command of each key of the control topic."""
    wait_for_broker(settings.kafka, timeout_seconds=BROKER_TIMEOUT_SECONDS)
    newest = {}
    for record in read_to_end(settings.kafka, settings.topics.control):
        newest[record.key] = parse_control(record)
    _require_same_if_known(settings)
    return newest


def _require_same_if_known(settings: Settings) -> None:
    """Refuse a local secret that is not the deployment's; these commands work without one."""
    try:
        pseudonymise = pseudonymiser(settings.privacy, make=False)
    except SecretError:
        return
    require_same_secret(settings, pseudonymise)


def release(settings: Settings, key: str) -> bool:
    """Release a user or an item from quarantine; return whether it was there.

    Args:
        settings: the settings with brokers and topics.
        key: `user/<pseudonym>` or `item/<item id>`, as in the entries of `quarantined`.

    Raises:
        BrokerUnreachableError: no broker answers.
        DeliveryError: the broker did not confirm the release.
    """
    with open_producer(settings) as producer:
        was_in = any(entry.key == key for entry in quarantined(settings))
        producer.send_raw(settings.topics.control, release_key(key), None)
        producer.flush(BROKER_TIMEOUT_SECONDS)
    return was_in


def _letters_naming(names: set[str], settings: Settings) -> set[bytes | None]:
    """Return the keys of dead letters that contain one of the names. Letters can be large: one is read at a time."""
    naming: set[bytes | None] = set()
    for record in read_to_end(settings.kafka, settings.topics.dead_letters):
        if record.value is not None and _mentions(names, record.value):
            naming.add(record.key)
        else:  # removed, or written again without the name
            naming.discard(record.key)
    return naming


def _mentions(names: set[str], value: bytes) -> bool:
    """Return whether a dead letter contains one of the names, in its key or anywhere in its payload.

    A payload that is not JSON is searched as text. A name must not be left, so rather too many letters are removed.
    """
    try:
        letter = DeadLetter.model_validate_json(value)
    except ValidationError:
        return _contains_word(names, value)
    if (letter.original_key() or b"").decode(errors="replace") in names:
        return True
    payload = letter.original() or b""
    try:
        return _contains_value(json.loads(payload), names)
    except (ValueError, RecursionError):
        return _contains_word(names, payload)


def _contains_word(names: set[str], text: bytes) -> bool:
    """Return whether one of the names is a word of a text."""
    return any(re.search(rb"(?<!\w)" + re.escape(name.encode()) + rb"(?!\w)", text) for name in names)


def _contains_value(value: Any, names: set[str]) -> bool:
    """Return whether a name is a value of parsed JSON, at any depth; some producers send ids as numbers."""
    if isinstance(value, dict):
        return any(_contains_value(part, names) for part in value.values())
    if isinstance(value, list):
        return any(_contains_value(part, names) for part in value)
    return isinstance(value, str | int) and str(value) in names
