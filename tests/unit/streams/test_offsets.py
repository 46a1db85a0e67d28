"""The text form of offsets."""

import pytest

from streams.offsets import decode_offsets, encode_offsets, parse_partition_name


def test_offsets_survive_encoding_in_the_order_of_their_partitions() -> None:
    offsets = {("shop.items", 0): 3, ("shop.clicks", 10): 7, ("shop.clicks", 2): 5}
    encoded = encode_offsets(offsets)
    assert list(encoded.items()) == [("shop.clicks/2", 5), ("shop.clicks/10", 7), ("shop.items/0", 3)]
    assert decode_offsets(encoded) == offsets


@pytest.mark.parametrize("name", ["shop.clicks", "shop.clicks/", "shop.clicks/two"])
def test_a_text_that_names_no_partition_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"partition|int"):
        parse_partition_name(name)
