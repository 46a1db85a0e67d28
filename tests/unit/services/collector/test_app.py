"""The collector's HTTP side, over real HTTP, with the broker away: what is taken, what is not, and how it is said."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from collector_app import CollectorApp, full_disk, open_collector

from services.settings.collector import CollectorSettings
from streams.events import MODELS, Click, Impression, Item

CLICK = {"type": "click", "event_id": "c1", "ts": 5, "user_id": "ann", "item_id": "mug"}
ITEM = {"type": "item", "event_id": "i1", "ts": 5, "item_id": "mug", "kind": "product", "title": "Blue mug"}
SHOWN = {"type": "impression", "event_id": "s1", "ts": 5, "user_id": "ann", "request_id": "r", "scenario": "home"}
SHOWN |= {"items": [{"item_id": "mug", "position": 0}]}
BOUGHT = {"type": "purchase", "event_id": "p1", "ts": 5, "user_id": "ann", "item_id": "mug"}
SMALL: dict[str, Any] = {"max_batch_events": 5, "spool_max_events": 7, "max_body_bytes": 5_000}


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[CollectorApp]:
    with open_collector(tmp_path / "spool.db", **SMALL) as collector:
        yield collector


def spooled(collector: CollectorApp) -> list[Any]:
    waiting = collector.spool.oldest(max_events=1_000, max_bytes=10**7)
    return [MODELS[event.kind].model_validate_json(event.value) for _, event in waiting]


class TestTaken:
    def test_one_event_of_each_kind(self, collector: CollectorApp) -> None:
        for event in (CLICK, ITEM, SHOWN, BOUGHT):
            answer = collector.post(event)
            assert answer.status_code == 202
            accepted = {"status": "accepted", "event_id": event["event_id"]}
            assert answer.json() == {"accepted": 1, "rejected": 0, "events": [accepted]}
        assert [type(event) for event in spooled(collector)][:3] == [Click, Item, Impression]
        assert [event.event_id for event in spooled(collector)] == ["c1", "i1", "s1", "p1"]

    def test_a_record_is_keyed_as_producers_key_it(self, collector: CollectorApp) -> None:
        collector.post({"events": [CLICK, ITEM]})
        waiting = collector.spool.oldest(max_events=9, max_bytes=10**6)
        assert [(event.kind, event.key) for _, event in waiting] == [("click", b"ann"), ("item", b"mug")]
        assert json.loads(waiting[0].record.value) == {"schema_version": 1, "scenario": "home"} | {
            name: value for name, value in CLICK.items() if name != "type"
        }

    def test_id_and_time_are_made_up_when_they_are_missing(self, collector: CollectorApp) -> None:
        before = time.time_ns() // 1_000_000
        bare = {"type": "click", "user_id": "ann", "item_id": "mug"}
        ids = [outcome["event_id"] for outcome in collector.post({"events": [bare, bare]}).json()["events"]]
        kept = spooled(collector)
        assert ids == [event.event_id for event in kept]
        assert len(set(ids)) == 2
        assert all(before <= event.ts <= time.time_ns() // 1_000_000 for event in kept)

    @pytest.mark.parametrize(
        "event",
        [
            CLICK | {"ts": 5.0, "position": 3.0},
            CLICK | {"ts": "2026-01-31T09:00:00.123456789+05:30", "session_id": None},
            ITEM | {"price": 2**60 + 1, "vectors": {"image": [1, 0.5]}, "colour": True},
        ],
    )
    def test_what_json_schema_calls_right(self, collector: CollectorApp, event: dict[str, Any]) -> None:
        assert collector.post(event).status_code == 202

    @pytest.mark.parametrize(("ts", "unit"), [(1_764_500_000, "seconds"), (1_764_500_000_000_000, "microseconds")])
    def test_a_time_in_another_unit_is_refused_with_that_reason(
        self, collector: CollectorApp, ts: int, unit: str
    ) -> None:
        answer = collector.post(CLICK | {"ts": ts})
        assert answer.status_code == 422
        assert f"looks like {unit}; `ts` must be epoch milliseconds, got {ts}" in answer.text
        assert spooled(collector) == []

    def test_a_mixed_batch_has_an_outcome_for_each_in_order(self, collector: CollectorApp) -> None:
        no_item = {name: value for name, value in CLICK.items() if name != "item_id"}
        answer = collector.post({"events": [no_item, CLICK, {"type": "view"}, ITEM, "click"]})
        assert answer.status_code == 202
        body = answer.json()
        assert (body["accepted"], body["rejected"]) == (2, 3)
        kinds = "impression, click, purchase, item"
        assert body["events"] == [
            {"status": "rejected", "reason": "`item_id`: Field required"},
            {"status": "accepted", "event_id": "c1"},
            {"status": "rejected", "reason": f"`type` must be one of {kinds}, got 'view'"},
            {"status": "accepted", "event_id": "i1"},
            {"status": "rejected", "reason": "an event must be a JSON object, got str"},
        ]
        assert [event.event_id for event in spooled(collector)] == ["c1", "i1"]
        assert collector.counted("click") == {"accepted": 1, "rejected": 1, "refused_full": 0}
        assert collector.counted("item") == {"accepted": 1, "rejected": 0, "refused_full": 0}
        assert collector.counted("unknown") == {"accepted": 0, "rejected": 2, "refused_full": 0}

    def test_clients_at_once_are_all_answered_for(self, tmp_path: Path) -> None:
        def send(client: int, collector: CollectorApp) -> list[str]:
            ids = [f"{client}-{number}" for number in range(20)]
            for event_id in ids:
                assert collector.post(CLICK | {"event_id": event_id}).status_code == 202
            return ids

        with open_collector(tmp_path / "spool.db") as collector, ThreadPoolExecutor(8) as pool:
            sent = list(pool.map(send, range(8), [collector] * 8))
            kept = [event.event_id for event in spooled(collector)]
        assert sorted(kept) == sorted(event_id for ids in sent for event_id in ids)
        for client, ids in enumerate(sent):  # one client's events keep their order
            assert [event_id for event_id in kept if event_id.startswith(f"{client}-")] == ids


class TestRefused:
    @pytest.mark.parametrize(
        ("event", "reason"),
        [
            ({}, "an event must name its `type`"),
            ({"type": 3}, "`type` must be one of impression, click, purchase, item, got int"),
            ({"type": "v" * 500}, f"got '{'v' * 40}'"),
            (CLICK | {"user_id": ""}, "`user_id`: String should have at least 1 character"),
            (CLICK | {"ts": "2026-01-01T00:00:00"}, "`ts` must carry a UTC offset"),
            (CLICK | {"user_id": "\ud800"}, "`user_id`: "),
            (BOUGHT | {"quantity": 0}, "`quantity`: Input should be greater than or equal to 1"),
            (ITEM | {"title": "\ud800"}, "`title`: must be Unicode text, got half a surrogate pair at 0"),
            (SHOWN | {"query": "a\ud800"}, "`query`: must be Unicode text, got half a surrogate pair at 1"),
            (SHOWN | {"items": [{"item_id": "mug"}]}, "`items.0.position`: Field required"),
            (ITEM | {"status": "gone"}, "`status`: Input should be 'active' or 'blocked'"),
            (ITEM | {"price": "cheap"}, "`price`: "),
            (ITEM | {"price": "5"}, "`price`: must be a number of JSON, got a text"),
            (ITEM | {"in_stock": 1}, "`in_stock`: must be true or false of JSON, got a number"),
            (
                ITEM | {"vectors": {"image": [0.5, True]}},
                "`vectors.image.1`: must be a number of JSON, got true or false",
            ),
            (SHOWN | {"items": [{"item_id": "mug", "position": "0"}]}, "`items.0.position`: must be a number of JSON"),
            (CLICK | {"schema_version": True}, "`schema_version`: must be a number of JSON, got true or false"),
            (CLICK | {"ts": "2026-01-01 00:00:00Z"}, "`ts` must be epoch milliseconds or an RFC 3339 time with `T`"),
        ],
    )
    def test_an_event_alone_is_a_problem_that_names_field_and_rule(
        self, collector: CollectorApp, event: dict[str, Any], reason: str
    ) -> None:
        answer = collector.post(event)
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        [error] = answer.json()["errors"]
        assert error["pointer"] == "body"
        assert reason in error["detail"]
        assert reason in answer.json()["detail"]
        assert len(collector.spool) == 0

    def test_a_batch_of_which_nothing_is_acceptable_lists_each(self, collector: CollectorApp) -> None:
        answer = collector.post({"events": [[], {"type": "click"}]})
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == ["body/events/0", "body/events/1"]
        assert answer.json()["detail"].endswith("; and 1 more")
        assert collector.counted("click")["rejected"] == 1

    @pytest.mark.parametrize(
        ("body", "detail"),
        [
            ([CLICK], 'the body must be one event, or {"events": [...]} for several, got list'),
            (None, "got NoneType"),
            (7, "got int"),
            ({"events": []}, "`events` must be a list of at least 1 event, got an empty list"),
            ({"events": CLICK}, "got dict"),
            ({"events": [CLICK], "user_id": "ann"}, "a batch must have `events` only"),
            ({"events": [CLICK] * 6}, "`events` must have at most 5 events, got 6; send several batches"),
        ],
    )
    def test_what_is_neither_event_nor_batch_is_refused(self, collector: CollectorApp, body: Any, detail: str) -> None:
        answer = collector.post(body)
        assert answer.status_code == 422
        assert detail in answer.json()["detail"]
        assert len(collector.spool) == 0

    @pytest.mark.parametrize(
        ("body", "detail"),
        [
            (b"", "not JSON: Expecting value at column 1"),
            (b'{"type": "click"', "not JSON: "),
            (b'{"type": "\xff"}', "not UTF-8: invalid start byte at byte 11"),
            (b"[" * 4_000, "nested too deeply"),
            (b"1" * 4_500, "integer string conversion"),
        ],
    )
    def test_what_is_not_json_is_refused(self, collector: CollectorApp, body: bytes, detail: str) -> None:
        for content_type in ("application/json", "text/plain"):  # said to be or not
            answer = collector.client.post("/v1/events", content=body, headers={"content-type": content_type})
            assert answer.status_code == 400
            assert detail in answer.json()["detail"]

    @pytest.mark.parametrize(
        "headers",
        [{}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": "application/jsonp"}],
    )
    def test_json_must_say_that_it_is_json(self, collector: CollectorApp, headers: dict[str, str]) -> None:
        answer = collector.client.post("/v1/events", content=json.dumps(CLICK), headers=headers)
        assert answer.status_code == 415
        assert "-H 'content-type: application/json'" in answer.json()["detail"]
        assert len(collector.spool) == 0

    def test_a_large_body_is_cut_off(self, collector: CollectorApp) -> None:
        answer = collector.post(ITEM | {"description": "x" * 6_000})
        assert answer.status_code == 413
        assert "at most 5000 bytes; send fewer events at a time" in answer.json()["detail"]

        def endless() -> Iterator[bytes]:
            for _ in range(1_000):
                yield b" " * 100

        assert collector.client.post("/v1/events", content=endless()).status_code == 413

    def test_an_event_that_no_record_takes_is_rejected_at_once(self, tmp_path: Path) -> None:
        with open_collector(tmp_path / "spool.db", max_body_bytes=3_000_000) as collector:
            large = ITEM | {"description": "x" * 1_100_000}
            answer = collector.post({"events": [large, CLICK]})
            assert answer.status_code == 202
            assert "an event must have at most 1047552 bytes, got 1100" in answer.json()["events"][0]["reason"]
            assert [event.event_id for event in spooled(collector)] == ["c1"]

    def test_other_methods_and_paths_are_problems_too(self, collector: CollectorApp) -> None:
        assert collector.client.get("/v1/events").status_code == 405
        assert collector.client.post("/v1/event").json()["status"] == 404


class TestFull:
    def test_429_says_when_to_come_back_and_takes_nothing(self, collector: CollectorApp) -> None:
        wait_until_away(collector)
        assert collector.post({"events": [CLICK] * 5}).status_code == 202
        answer = collector.post({"events": [ITEM, CLICK, {"type": "click"}, CLICK]})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "10"
        assert answer.headers["content-type"] == "application/problem+json"
        assert "5 events of " in answer.json()["detail"]
        assert "no event of this request was taken" in answer.json()["detail"]
        assert len(collector.spool) == 5
        assert collector.counted("click") == {"accepted": 5, "rejected": 1, "refused_full": 2}
        assert collector.counted("item") == {"accepted": 0, "rejected": 0, "refused_full": 1}
        assert collector.post({"events": [CLICK] * 2}).status_code == 202  # there is room for two
        assert collector.post(CLICK).status_code == 429

    def test_a_bad_request_is_so_though_there_is_no_room(self, collector: CollectorApp) -> None:
        for count in (5, 2):
            collector.post({"events": [CLICK] * count})
        assert collector.post({"type": "click"}).status_code == 422

    def test_a_full_spool_is_not_ready_and_alive(self, collector: CollectorApp) -> None:
        for count in (5, 2):
            collector.post({"events": [CLICK] * count})
        wait_until_away(collector)
        answer = collector.client.get("/readyz")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "10"
        assert answer.json()["detail"] == "the spool is full and the broker is away"
        assert (answer.json()["broker"], answer.json()["spool_events"]) == ("away", 7)
        assert collector.client.get("/healthz").json() == {"status": "ok"}

    def test_a_disk_that_fails_is_503_and_takes_nothing(self, tmp_path: Path) -> None:
        with open_collector(tmp_path / "spool.db") as collector:
            collector.post(CLICK)
            with full_disk():
                answer = collector.post(ITEM | {"description": "x" * 200_000})
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "10"
            assert "none of this request was taken" in answer.json()["detail"]
            assert str(tmp_path) not in answer.text
            assert collector.post(CLICK | {"event_id": "c2"}).status_code == 202
            assert [event.event_id for event in spooled(collector)] == ["c1", "c2"]
            assert collector.counted("item") == {"accepted": 0, "rejected": 0, "refused_full": 0}


class TestLooks:
    def test_ready_though_the_broker_is_away_and_says_so(self, collector: CollectorApp) -> None:
        collector.post(CLICK)
        wait_until_away(collector)
        answer = collector.client.get("/readyz")
        assert answer.status_code == 200
        waiting = {"spool_events": 1, "spool_bytes": collector.spool.size_bytes}
        assert answer.json() == {"status": "ready", "broker": "away", **waiting}

    def test_metrics_show_what_waits(self, collector: CollectorApp) -> None:
        name = "headwater_collector_spool_oldest_timestamp_seconds"
        assert "headwater_collector_spool_events 0.0" in collector.client.get("/metrics").text
        assert time.time() - (collector.value(name) or 0) < 5
        collector.post({"events": [CLICK, ITEM]})
        oldest = collector.spool.oldest_accepted_ms()
        assert oldest is not None
        collector.client.get("/metrics")
        assert collector.value(name) == oldest / 1000
        assert collector.value("headwater_collector_spool_events") == 2
        assert collector.value("headwater_collector_spool_bytes") == collector.spool.size_bytes
        assert collector.value("headwater_requests_total", route="/v1/events", status="202") == 1
        assert collector.value("headwater_requests_total", route="/v1/events", status="429") == 0

    def test_openapi_shows_single_and_batch_and_every_answer(self, collector: CollectorApp) -> None:
        document = collector.client.get("/openapi.json").json()
        post = document["paths"]["/v1/events"]["post"]
        assert {"202", "400", "413", "415", "422", "429", "503"} <= set(post["responses"])
        event, batch = post["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
        events = batch["properties"]["events"]
        assert (events["contains"], events["maxItems"]) == (event, SMALL["max_batch_events"])
        click = next(schema for schema in event["oneOf"] if schema["properties"]["type"] == {"const": "click"})
        assert click["required"] == ["type", "user_id", "item_id"]
        assert "#/$defs" not in json.dumps(document)
        for example in post["requestBody"]["content"]["application/json"]["examples"].values():
            assert collector.post(example["value"]).json()["rejected"] == 0


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"spool_max_events": 999}, "`spool_max_events` must be at least `max_batch_events`, 1000, got 999; raise it"),
        ({"spool_max_bytes": 2_000_000}, "`spool_max_bytes` must be at least .* 2072576, got 2000000; raise it"),
        ({"max_batches": 3}, "Extra inputs"),
    ],
)
def test_a_spool_that_could_never_take_a_request_is_refused(settings: dict[str, int], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        CollectorSettings.model_validate(settings)


def wait_until_away(collector: CollectorApp) -> None:
    deadline = time.monotonic() + 5
    while "no Kafka broker answers" not in (collector.forwarder.problem or ""):
        assert time.monotonic() < deadline, collector.forwarder.problem
        time.sleep(0.01)
