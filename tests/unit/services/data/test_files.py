"""Input files of every kind that people have: recognised, or refused with the reason."""

import gzip
import io
import json
import re
import zipfile
from pathlib import Path

import pytest

from services.data.dataset import read_events, read_items
from services.data.files import InputError
from services.data.rows import RefusedRows, refused_rows
from services.lab.offline.judged_queries import read_judged_queries
from services.operate.publish.lines import read_file
from streams.events import Click, Event, Impression, Item, Purchase

HEADER = "user_id,timestamp,event_type,item_id,quantity,price\n"
ROWS = (
    "ann,2026-11-01T10:00:00Z,purchase,22423,1,12.75\n"
    "ann,2026-11-01T10:01:00Z,purchase,85123A,-6,2.55\n"
    "bob,2026-11-01T10:02:00Z,purchase,85123A,1,2.55\n"
)
JSON_LINES = (
    b'{"type": "click", "user_id": "ann", "item_id": "i1"}\n{"type": "click", "user_id": "bob", "item_id": "i2"}\n'
)


def file_of(tmp_path: Path, content: bytes, name: str = "events.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def published(path: Path, kind: str | None = None) -> list[tuple[int, Event | str]]:
    with path.open("rb") as file:
        return list(read_file(file, path, kind=kind))


def users(found: list[tuple[int, Event | str]]) -> list[str]:
    return [event.user_id for _, event in found if isinstance(event, Click | Purchase | Impression)]


@pytest.mark.parametrize(
    "content",
    [
        HEADER.encode(),
        HEADER.encode("utf-8-sig"),
        HEADER.encode("utf-16"),
        HEADER.encode("utf-16-le"),
        HEADER.encode("utf-16-be"),
        HEADER.replace("\n", "\r\n").encode(),
        ("\n" + HEADER).encode(),
        HEADER.replace(",", ";").encode(),
        HEADER.replace(",", "\t").encode(),
        HEADER.replace(",", "|").encode(),
        b"sep=;\n" + HEADER.replace(",", ";").encode(),
        HEADER.replace(",", ", ").encode(),
        gzip.compress(HEADER.encode()),
        gzip.compress(gzip.compress(HEADER.encode("utf-8-sig"))),
    ],
)
@pytest.mark.parametrize("name", ["events.csv", "events.csv.gz", "events"])
def test_tables_are_recognised_by_their_content(tmp_path: Path, content: bytes, name: str) -> None:
    header = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    header = gzip.decompress(header) if header[:2] == b"\x1f\x8b" else header
    encoding = "utf-16-be" if header[0] == 0 else "utf-16-le" if header[1] in (0, 0xFE) else "utf-8"
    delimiter = next((mark for mark in ";\t|" if mark.encode(encoding) in header), ",")
    rows = ROWS.splitlines(keepends=True)
    body = header + (rows[0] + rows[2]).replace(",", delimiter).encode(encoding)
    for _ in range(0 if content[:2] != b"\x1f\x8b" else 2 if gzip.decompress(content)[:2] == b"\x1f\x8b" else 1):
        body = gzip.compress(body)
    path = file_of(tmp_path, body, name)
    assert [(event.user_id, event.item_id) for event in read_events(path) if isinstance(event, Purchase)] == [
        ("ann", "22423"),
        ("bob", "85123A"),
    ]
    assert users(published(path)) == ["ann", "bob"]


def test_a_bad_row_is_named_with_file_line_value_and_reason_and_skipped(tmp_path: Path) -> None:
    path, refused = file_of(tmp_path, (HEADER + ROWS).encode()), RefusedRows(strict=False)
    assert [event.event_id for event in read_events(path, refused=refused)] == ["events-1", "events-3"]
    assert refused.count == 1
    assert refused.named == [
        f"{path}, row 2: `quantity`: Input should be greater than or equal to 1, got '-6' (line 3)"
    ]
    assert list(refused.lines())[-1] == "1 bad rows skipped; --strict stops at the first"
    with pytest.raises(InputError, match=r"row 2: `quantity`.*got '-6'"):
        list(read_events(path))


def test_bad_rows_are_named_also_where_they_leave_nothing_to_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(tmp_path, b"query,item_id,relevance\nred mug,i1,much\n")
    with pytest.raises(InputError, match="found none"), refused_rows(strict=False) as refused:
        read_judged_queries(path, {"i1"}, refused=refused)
    assert f"{path}, row 1: `relevance` must be a number, 0 or more, got 'much'" in capsys.readouterr().err


def test_many_bad_rows_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    path, refused = file_of(tmp_path, b"item_id,title\n" + b",nothing\n" * 9 + b"1,MUG\n"), RefusedRows(strict=False)
    assert [item.item_id for item in read_items(path, refused=refused)] == ["1"]
    assert (refused.count, len(refused.named)) == (9, 5)
    assert list(refused.lines())[5:] == ["... and 4 more", "9 bad rows skipped; --strict stops at the first"]


def test_newlines_delimiters_and_quotes_in_quotes_belong_to_the_cell_and_lines_are_counted(tmp_path: Path) -> None:
    text = 'item_id,title,description\n1,"MUG, ""big""","two\nlines"\n,POT,none\n3,"CUP\r\nblue",\n'
    path, refused = file_of(tmp_path, text.encode(), "items.csv"), RefusedRows(strict=False)
    mug, cup = read_items(path, refused=refused)
    assert (mug.title, mug.description) == ('MUG, "big"', "two\nlines")
    assert (cup.item_id, cup.title) == ("3", "CUP\r\nblue")
    assert "row 2" in refused.named[0]
    assert "(line 4)" in refused.named[0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"2,Caf\xe9,\n", "not UTF-8: byte 0xe9 after '2,Caf'; save it as UTF-8"),
        (b"2,MUG, big, blue\n", "has 4 cells, and the header 3; quote cells that contain ','"),
        (b'2,"MUG" big,\n', "not CSV: ',' expected after '\"'"),
        (
            b"2,MUG,dear\n",
            "`price`: Input should be a valid number, unable to parse string as a number, got 'dear'",
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_skipped_too(tmp_path: Path, row: bytes, reason: str) -> None:
    path = file_of(tmp_path, b"item_id,title,price\n1,CUP,\n" + row + b"3,POT,1.5\n", "items.csv")
    refused = RefusedRows(strict=False)
    assert [item.item_id for item in read_items(path, refused=refused)] == ["1", "3"]
    assert refused.named == [f"{path}, row 2: {reason} (line 3)"]
    [_, (line, fault), _] = published(path, kind="item")
    assert (line, fault) == (3, reason)


def zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("events.csv", content)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"is empty"),
        (b"\xef\xbb\xbf", r"cannot be read: it must have the columns .* it has no header"),
        (HEADER.encode(), r"has a header and no rows"),
        (b"user,timestamp,type,item\nann,2026-11-01T10:00:00Z,purchase,1\n", r"is 'item' meant to be item_id\?"),
        (b"UserID,timestamp,EventType,Item_Id\na,b,c,d\n", r"'UserID' meant to be user_id\?.*'EventType' meant to be"),
        (b"item_id,item_id,user_id,event_type\n1,2,3,4\n", r"has the column item_id more than once"),
        (zipped(HEADER.encode()), r"is a ZIP archive or an Excel workbook; unpack it"),
        (b"PAR1\x15\x04\x15", r"is a Parquet file"),
        (gzip.compress(b"PAR1\x15\x04\x15"), r"is a Parquet file"),
        (b"BZh91AY", r"is compressed with bzip2"),
        (b"\x28\xb5\x2f\xfd\x04", r"is compressed with zstd"),
        (b"name" + b"\0" * 253 + b"ustar", r"is a tar archive"),
        (gzip.compress((HEADER + ROWS).encode())[:-12], r"cannot be read: its gzip data is cut short"),
        (gzip.compress((HEADER + ROWS).encode())[:-8] + b"damaged!", r"cannot be read: its gzip data is damaged"),
        ((HEADER + 'ann,"2026-11-01T10:00:00Z,purchase,1\n' + ROWS).encode(), r"line 2: a quotation mark is opened"),
        ((HEADER + ROWS).encode("utf-16") + b"x", r"cannot be read: not utf-16"),
    ],
)
def test_a_file_that_is_none_of_these_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = file_of(tmp_path, content)
    with pytest.raises(InputError, match=rf"events\.csv.*{reason}"):
        list(read_events(path, refused=RefusedRows(strict=False)))
    with pytest.raises(InputError, match=r"events\.csv"):
        published(path)


@pytest.mark.parametrize(
    "content",
    [
        JSON_LINES,
        gzip.compress(JSON_LINES),
        JSON_LINES.decode().encode("utf-8-sig"),
        JSON_LINES.decode().encode("utf-16"),
        JSON_LINES.replace(b"\n", b"\r\n"),
        b"\n\n" + JSON_LINES,
        b"[" + b",".join(JSON_LINES.splitlines()) + b"]",
        json.dumps([json.loads(line) for line in JSON_LINES.splitlines()], indent=2).encode("utf-16"),
        b"\n".join(json.dumps(json.loads(line), indent=2).encode() for line in JSON_LINES.splitlines()),
    ],
)
@pytest.mark.parametrize("name", ["clicks.jsonl", "clicks.json.gz", "-"])
def test_json_is_recognised_by_its_content(tmp_path: Path, content: bytes, name: str) -> None:
    assert users(published(file_of(tmp_path, content, name))) == ["ann", "bob"]


@pytest.mark.parametrize("content", [JSON_LINES, b"[" + b",".join(JSON_LINES.splitlines()) + b"]"])
def test_json_where_a_table_is_needed_is_named(tmp_path: Path, content: bytes) -> None:
    path = file_of(tmp_path, content)
    with pytest.raises(InputError, match=r"events\.csv must be a table with a header .*, got JSON"):
        list(read_events(path))
    assert users(published(path)) == ["ann", "bob"]  # whatever its name


def test_all_of_several_arrays_is_read(tmp_path: Path) -> None:
    ann, bob = (line.decode() for line in JSON_LINES.splitlines())
    found = published(file_of(tmp_path, f"[{ann}]\n[{bob},\n5]\n{ann}\n[]".encode(), "a.json"))
    assert users(found) == ["ann", "bob", "ann"]
    assert [line for line, _ in found] == [1, 2, 3, 4]
    assert "got int" in str(found[2][1])


def test_a_bad_element_of_an_array_is_named_with_its_line_and_skipped(tmp_path: Path) -> None:
    text = '[\n {"type": "click", "user_id": "ann", "item_id": "i1"},\n {"type": "view"},\n 5,\n'
    text += ' {"type": "click",\n  "user_id": "bob", "item_id": "i1"}\n]\n'
    found = published(file_of(tmp_path, text.encode(), "a.json"))
    assert [line for line, _ in found] == [2, 3, 4, 5]
    assert users(found) == ["ann", "bob"]
    assert "must be one of" in str(found[1][1])
    assert "an event must be a JSON object, got int" in str(found[2][1])


@pytest.mark.parametrize(
    ("end", "line", "reason"),
    [("", 3, "the array is not closed"), (",\n{oops}]", 3, "not JSON: .*; the rest of the file cannot be read")],
)
def test_an_array_that_breaks_off_gives_what_came_before(tmp_path: Path, end: str, line: int, reason: str) -> None:
    text = '[\n{"type": "click", "user_id": "ann", "item_id": "i1"}' + (end or "\n")
    found = published(file_of(tmp_path, text.encode(), "a.json"))
    assert users(found) == ["ann"]
    assert found[-1][0] == line
    assert re.search(reason, str(found[-1][1]))


def test_a_catalogue_is_published_from_its_table(tmp_path: Path) -> None:
    path = file_of(
        tmp_path, b"item_id;title;price\n22423;REGENCY CAKESTAND 3 TIER;12.75\n85123A;HEART;dear\n", "items.csv"
    )
    [(_, item), (line, fault)] = published(path, kind="item")
    assert isinstance(item, Item)
    assert (item.item_id, item.title, item.price) == ("22423", "REGENCY CAKESTAND 3 TIER", 12.75)
    assert line == 3
    assert str(fault).startswith("`price`")
    [(_, again), _] = published(path, kind="item")
    assert isinstance(again, Item)
    assert again.event_id != item.event_id  # a changed catalogue that is published again is no repeat
    assert again.ts > 1_700_000_000_000


def test_a_table_without_a_kind_names_the_option(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"item_id,title\n22423,CAKESTAND\n", "items.csv")
    with pytest.raises(InputError, match=r"lacks event_type; .*name the kind of all rows with --kind"):
        published(path)


def test_columns_that_decide_what_is_served_and_counted_are_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"item_id,title,status,in_stock\n1,A,blocked,false\n2,B,,\n3,C,gone,\n", "items.csv")
    [(_, blocked), (_, active), (_, fault)] = published(path, kind="item")
    assert isinstance(blocked, Item)
    assert isinstance(active, Item)
    assert (blocked.status, blocked.in_stock, active.status, active.in_stock) == ("blocked", False, "active", True)
    assert str(fault).startswith("`status`")
    rows = "timestamp,user_id,event_type,item_id,order_id,shown_items,query\n"
    rows += "2026-11-01T10:00:00Z,ann,purchase,1,O-1,,\n2026-11-01T10:00:00Z,ann,impression,,,1 2,mug\n"
    purchase, shown = read_events(file_of(tmp_path, rows.encode()))
    assert isinstance(purchase, Purchase)
    assert purchase.order_id == "O-1"
    assert isinstance(shown, Impression)
    assert shown.query == "mug"


def test_a_row_of_another_kind_than_asked_for_is_a_bad_line(tmp_path: Path) -> None:
    path = file_of(tmp_path, (HEADER + "ann,2026-11-01T10:00:00Z,return,1,,\n" + ROWS).encode())
    found = published(path)
    assert "`event_type` must be one of impression, click, purchase, item, got 'return'" in str(found[0][1])
    assert "`event_type` must be click, as --kind says, got 'purchase'" in str(published(path, kind="click")[1][1])
