import itertools
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from streams.connection import KafkaConnection, backoff_seconds, wait_for_broker
from streams.errors import BrokerUnreachableError

SASL = {"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "u", "sasl_password": "secret"}


def test_plain_connection_needs_nothing() -> None:
    options = KafkaConnection().client_options()
    assert options["bootstrap_servers"] == ["127.0.0.1:9092"]
    assert options["security_protocol"] == "PLAINTEXT"
    assert not [name for name in options if name.startswith(("sasl_", "ssl_"))]


def test_security_settings_reach_the_client(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.touch()
    connection = KafkaConnection(
        bootstrap_servers="a:1, b:2,", security_protocol="SASL_SSL", ssl_cafile=authority, **SASL
    )
    options = connection.client_options()
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", "secret")
    assert options["ssl_cafile"] == str(authority)
    assert "ssl_keyfile" not in options


def test_password_is_not_shown() -> None:
    assert "secret" not in repr(KafkaConnection(security_protocol="SASL_SSL", **SASL))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"bootstrap_servers": ""}, "bootstrap_servers"),
        ({"bootstrap_servers": "localhost"}, "must be host:port"),
        ({"bootstrap_servers": "localhost:http"}, "must be host:port"),
        ({"bootstrap_servers": "localhost:70000"}, "must be host:port"),
        ({"bootstrap_servers": ":9092"}, "must be host:port"),
        ({"security_protocol": "TLS"}, "security_protocol"),
        ({"security_protocol": "SASL_SSL"}, "must be set with SASL_SSL"),
        ({"security_protocol": "SASL_SSL"} | SASL | {"sasl_password": ""}, "must be set with SASL_SSL"),
        (SASL, "must be SASL_SSL or SASL_PLAINTEXT"),
        ({"ssl_cafile": "no/such/file"}, "ssl_cafile"),
        ({"bootstrap_server": "localhost:9092"}, "bootstrap_server"),
    ],
)
def test_wrong_settings_are_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        KafkaConnection.model_validate(fields)


def test_brackets_of_an_ipv6_address_are_understood() -> None:
    assert KafkaConnection(bootstrap_servers="[::1]:9092").servers() == ["[::1]:9092"]


def test_backoff_doubles_up_to_five_seconds() -> None:
    assert list(itertools.islice(backoff_seconds(), 7)) == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_command_that_waits_for_a_while_does_not_say_that_it_waits_for_ever() -> None:
    with capture_logs() as logs, pytest.raises(BrokerUnreachableError):
        wait_for_broker(KafkaConnection(bootstrap_servers="127.0.0.1:1"), timeout_seconds=0.5)
    assert [line["retry"] for line in logs] == ["for 0.5 s"]
