"""The public names of `streams`, and that importing the package is cheap."""

import subprocess
import sys

import pytest

import streams
from streams import errors


def test_public_names_are_importable() -> None:
    assert all(getattr(streams, name).__name__ == name for name in streams.__all__)
    assert set(streams.__all__) <= set(dir(streams))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'streams' has no attribute 'Consumer'"):
        _ = streams.Consumer


def test_importing_the_package_and_its_events_loads_no_kafka_client() -> None:
    program = "import sys, streams; streams.Click; streams.Topics; assert not {'kafka', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_error_derives_from_the_root() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(issubclass(value, streams.HeadwaterStreamError) for value in classes)
