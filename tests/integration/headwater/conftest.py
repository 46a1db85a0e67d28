"""One running shop for all tests of a file."""

from collections.abc import Iterator

import pytest
from library_shop import Shop, running_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Yield a running shop."""
    with running_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop
