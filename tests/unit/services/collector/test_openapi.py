"""The collector's OpenAPI document: requests made from it, right or wrong, meet what it says, over a real spool."""

from pathlib import Path

import pytest
from collector_app import open_collector
from document_checks import check_document


@pytest.mark.timeout(900)  # some hundred requests on a machine that may do much else
def test_of_requests_made_from_the_document_none_fails_a_check(tmp_path: Path) -> None:
    with open_collector(tmp_path / "spool.db") as collector:
        check_document(f"{collector.client.base_url}/openapi.json", tmp_path, operations=4, cases=60)
        for kind in ("impression", "click", "purchase", "item"):
            counted = collector.counted(kind)
            assert counted["accepted"], kind
            assert counted["rejected"], kind
