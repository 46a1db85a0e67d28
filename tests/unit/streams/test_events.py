import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from streams.events import (
    MAX_TS_MS,
    MAX_VECTOR_LENGTH,
    MAX_VECTORS,
    MODELS,
    SECONDS_FROM,
    SECONDS_UNTIL,
    Click,
    Impression,
    Item,
    Purchase,
    json_schemas,
    time_problem,
)

CLICK = {"event_id": "e-1", "ts": 1_700_000_000_000, "user_id": "u-1", "item_id": "i-1"}
ITEM = {"event_id": "e-1", "ts": 1, "item_id": "i-1", "kind": "product", "title": "Teapot"}
SHOWN = {"event_id": "e", "ts": 1, "request_id": "r", "user_id": "u", "scenario": "home"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (1_700_000_000_123, 1_700_000_000_123),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14T23:13:20.123+01:00", 1_700_000_000_123),
        ("1700000000000", None),
        ("2023-11-14T22:13:20", None),
        ("2023-11-14", None),
        ("yesterday", None),
        (True, None),
        (1.5, None),
        (-1, None),
        (MAX_TS_MS + 1, None),
        (None, None),
    ],
)
def test_time_is_epoch_milliseconds_or_rfc_3339(given: Any, expected: int | None) -> None:
    value = json.dumps(CLICK | {"ts": given})
    if expected is None:
        with pytest.raises(ValidationError, match="ts"):
            Click.model_validate_json(value)
    else:
        assert Click.model_validate_json(value).ts == expected


@pytest.mark.parametrize("field", ["event_id", "user_id", "item_id"])
@pytest.mark.parametrize("bad", ["", "x" * 257, None, 7])
def test_ids_are_texts_of_1_to_256_characters(field: str, bad: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        Click.model_validate(CLICK | {field: bad})
    assert Click.model_validate(CLICK | {field: "ß" * 256})


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (Click, CLICK | {"position": -1}),
        (Click, CLICK | {"position": 2**31}),
        (Purchase, CLICK | {"quantity": 2**31}),
        (Click, CLICK | {"scenario": "CheckpointStore Page"}),
        (Click, CLICK | {"schema_version": 2}),
        (Purchase, CLICK | {"quantity": 0}),
        (Purchase, CLICK | {"price": -0.01}),
        (Purchase, CLICK | {"price": float("nan")}),
        (Item, ITEM | {"kind": "banner"}),
        (Item, ITEM | {"status": "gone"}),
        (Item, ITEM | {"vectors": {"image": []}}),
        (Item, ITEM | {"vectors": {"image": [0.0] * (MAX_VECTOR_LENGTH + 1)}}),
        (Item, ITEM | {"vectors": {"image": [1.0, float("nan")]}}),
        (Item, ITEM | {"vectors": {"image": [float("inf")]}}),
        (Item, ITEM | {"vectors": {"image": "1, 2"}}),
        (Item, ITEM | {"vectors": {"An Image": [1.0]}}),
        (Item, ITEM | {"vectors": {f"m{number}": [1.0] for number in range(MAX_VECTORS + 1)}}),
        (Impression, SHOWN | {"items": []}),
        (Impression, SHOWN | {"items": [{"item_id": "i"}]}),
    ],
)
def test_what_is_wrong_is_refused(model: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(fields)


def test_unknown_fields_are_ignored_and_defaults_filled_in() -> None:
    click = Click.model_validate(CLICK | {"colour": "red"})
    assert click == Click(**CLICK, scenario="home", schema_version=1)
    assert not hasattr(click, "colour")
    assert Purchase.model_validate(CLICK).quantity == 1
    assert Item.model_validate(ITEM).status == "active"
    assert Item.model_validate(ITEM).vectors == {}


def test_an_item_brings_vectors_of_any_length_up_to_the_largest() -> None:
    vectors = {"image": [0.5] * MAX_VECTOR_LENGTH, "sound": [1]}
    assert Item.model_validate_json(json.dumps(ITEM | {"vectors": vectors})).vectors == vectors


def test_events_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Click.model_validate(CLICK).item_id = "i-2"  # type: ignore[misc]


def test_user_events_are_keyed_by_user_and_items_by_item() -> None:
    assert Click.model_validate(CLICK).key() == Purchase.model_validate(CLICK).key() == "u-1"
    assert Item.model_validate(ITEM).key() == "i-1"


def test_schemas_are_complete_and_name_both_forms_of_time() -> None:
    schemas = json_schemas()
    assert set(schemas) == set(MODELS) == {"impression", "click", "purchase", "item"}
    for kind, schema in schemas.items():
        assert schema["properties"]["ts"]["anyOf"][1]["format"] == "date-time", kind
        assert schema["properties"]["schema_version"]["const"] == 1
        json.dumps(schema)
    assert set(schemas["click"]["required"]) == {"event_id", "ts", "user_id", "item_id"}


@pytest.mark.parametrize(
    ("stated", "unit"),
    [
        (1_764_500_000, "seconds"),
        (1_764_500_000.0, "seconds"),
        (1_764_500_000.25, "seconds"),
        ("1764500000", "seconds"),
        ("1764500000.5", "seconds"),
        ("1.7645e+18", "nanoseconds"),
        ("1970-01-21T10:08:20Z", "seconds"),
        (SECONDS_FROM, "seconds"),
        (SECONDS_UNTIL - 1, "seconds"),
        (1_764_500_000_000_000, "microseconds"),
        (1_764_500_000_000_000_000, "nanoseconds"),
    ],
)
def test_a_time_in_another_unit_is_refused_with_that_reason(stated: Any, unit: str) -> None:
    with pytest.raises(ValidationError, match=f"looks like {unit}; `ts` must be epoch milliseconds, got [159]"):
        Click.model_validate(CLICK | {"ts": stated})
    assert f"looks like {unit};" in (time_problem(stated) or "")
    with pytest.raises(ValidationError, match="ts"):
        Click.model_validate_json(json.dumps(CLICK | {"ts": stated}))


@pytest.mark.parametrize("stated", ["1764500000000", "1796070402006", "1796070402006.0", " 1801010100000"])
def test_a_number_in_quotes_is_named_and_never_read_as_a_date(stated: str) -> None:
    problem = f"`ts` must be epoch milliseconds as a number of JSON, got the text {stated!r}; write no quotes"
    with pytest.raises(ValidationError) as refused:
        Click.model_validate(CLICK | {"ts": stated})
    assert problem in str(refused.value)
    assert time_problem(stated) == problem


@pytest.mark.parametrize("stated", [float("inf"), 10**30])
def test_a_number_that_is_no_time_in_any_unit_has_no_unit(stated: float) -> None:
    with pytest.raises(ValidationError) as refused:
        Click.model_validate(CLICK | {"ts": stated})
    assert "looks like" not in str(refused.value)


@pytest.mark.parametrize(
    "stated", [0, SECONDS_FROM - 1, SECONDS_UNTIL, 946_684_800_000, 1_764_500_000_000.0, MAX_TS_MS]
)
def test_milliseconds_are_taken_whatever_the_year(stated: float) -> None:
    assert Click.model_validate(CLICK | {"ts": stated}).ts == stated
    assert Click.model_validate_json(json.dumps(CLICK | {"ts": stated})).ts == stated


@given(st.integers(-(10**19), 10**19))
def test_the_schema_and_the_models_agree_on_numbers(number: int) -> None:
    forms = json_schemas()["click"]["properties"]["ts"]["anyOf"]
    is_stated = any(
        form["minimum"] <= number <= form.get("maximum", form.get("exclusiveMaximum", 1) - 1)
        for form in forms
        if form["type"] == "integer"
    )
    try:
        Click.model_validate_json(json.dumps(CLICK | {"ts": number}))
    except ValidationError:
        assert not is_stated
    else:
        assert is_stated
