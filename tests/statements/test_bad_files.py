"""Files that are none: whatever the bytes are, the answer is a list of entries or InvalidStatement, in good time."""

import logging
import zipfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import statements
from shared.domain.statement import BankEntry, StatementFormat
from shared.errors import InvalidStatement
from tests.statements.samples import camt053, csv_table, entry, mt940

ENTRIES = [
    entry(transaction_id="T1"),
    entry(amount_minor=-100, reference="RF18539007547034"),
    entry(amount_minor=50, returned=True),
]
VALID = {
    StatementFormat.CAMT053: [camt053(ENTRIES), camt053([ENTRIES], version=8)],
    StatementFormat.MT940: [mt940(ENTRIES)],
    StatementFormat.CSV: [csv_table(ENTRIES), csv_table(ENTRIES, delimiter=",", bom=True)],
}
NAMESPACE = "urn:iso:std:iso:20022:tech:xsd:camt.053.001.02"
# What breaks readers: markup, delimiters, tags, marks, digits of other scripts, numbers that are none.
MARKUP = [b"<", b">", b"&amp;", b"<Ntry>", b"</Ntry>", b";", b'"', b":61:", b":86:", b":20:", b"\n:", b"?20", b"SVWZ+"]
BYTES = [b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\x85", b"\x0c", b"\r", "٣".encode(), b"1E9", b"NaN", b"RC", b"//"]
SCRAPS = st.sampled_from([*MARKUP, *BYTES]) | st.binary(max_size=6)


def survives(content: bytes, kind: StatementFormat) -> None:
    with suppress(InvalidStatement):
        assert all(isinstance(each, BankEntry) for each in statements.parse(content, kind))


@st.composite
def mutations(draw: st.DrawFn, kind: StatementFormat) -> bytes:
    """A valid file in which up to four stretches or lines are replaced, repeated, dropped or moved."""
    content = draw(st.sampled_from(VALID[kind]))
    for _ in range(draw(st.integers(1, 4))):
        separator = draw(st.sampled_from([b"", b"\n"]))
        parts = content.split(separator) if separator else [content[place : place + 1] for place in range(len(content))]
        begins = draw(st.integers(0, len(parts)))
        ends = min(len(parts), begins + draw(st.integers(0, 8)))
        stretch = parts[begins:ends]
        put = draw(st.sampled_from([[], stretch * 2, stretch[::-1]]) | SCRAPS.map(lambda scrap: [scrap]))
        content = separator.join(parts[:begins] + put + parts[ends:])
    return content


@pytest.mark.parametrize("kind", StatementFormat)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_file_with_damage_is_read_or_refused(kind: StatementFormat, data: st.DataObject) -> None:
    survives(data.draw(mutations(kind)), kind)


@pytest.mark.parametrize("kind", StatementFormat)
@given(content=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_read_or_refused(kind: StatementFormat, content: bytes) -> None:
    survives(content, kind)


@pytest.mark.parametrize("kind", StatementFormat)
def test_a_file_that_ends_early_gives_nothing(kind: StatementFormat) -> None:
    content = VALID[kind][0].rstrip(b"\r\n-")
    complete = statements.parse(content, kind)
    for length in range(len(content)):
        if kind is StatementFormat.CSV and content[:length].endswith(b"\n"):
            continue  # a table with fewer rows is a table
        try:
            entries = statements.parse(content[:length], kind)
        except InvalidStatement:
            continue
        assert kind is not StatementFormat.CAMT053
        assert len(entries) == len(complete) or kind is StatementFormat.CSV


def zipped() -> bytes:
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("statement.xml", VALID[StatementFormat.CAMT053][0])
    return archive.getvalue()


@pytest.mark.parametrize("kind", StatementFormat)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \r\n\t\n", id="blank"),
        pytest.param(b"\xef\xbb\xbf", id="a byte order mark alone"),
        pytest.param(b"a\0b", id="NUL"),
        pytest.param("<Document>".encode("utf-16"), id="UTF-16"),
        pytest.param(bytes(range(256)), id="every byte"),
        pytest.param(zipped(), id="zipped"),
        pytest.param(b"%PDF-1.7\n", id="a PDF"),
        pytest.param(b'{"error": "session expired"}', id="JSON"),
        pytest.param(b"<!DOCTYPE html><html><body>Sign in</body></html>", id="HTML"),
    ],
)
def test_what_is_no_statement_is_refused(kind: StatementFormat, content: bytes) -> None:
    with pytest.raises(InvalidStatement):
        statements.parse(content, kind)


@pytest.mark.parametrize("kind", StatementFormat)
@pytest.mark.parametrize(("content", "refusal"), [(b"", "is empty"), (b"\r\n", "is empty"), (None, "NUL bytes")])
def test_the_refusal_says_what_is_wrong(kind: StatementFormat, content: bytes | None, refusal: str) -> None:
    with pytest.raises(InvalidStatement, match=refusal):
        statements.parse(VALID[kind][0].replace(b"Invoice", b"Inv\0ice") if content is None else content, kind)


@pytest.mark.parametrize(
    ("kind", "other"), [(one, other) for one in StatementFormat for other in StatementFormat if one is not other]
)
def test_a_statement_in_another_format_is_refused(kind: StatementFormat, other: StatementFormat) -> None:
    with pytest.raises(InvalidStatement):
        statements.parse(VALID[other][0], kind)


def document(body: str, *, before: str = "", attributes: str = "") -> bytes:
    return f'<?xml version="1.0"?>{before}<Document xmlns="{NAMESPACE}"{attributes}>{body}</Document>'.encode()


LAUGHS = "".join(f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' for level in range(1, 10))


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        pytest.param(
            document("&a9;", before=f'<!DOCTYPE D [<!ENTITY a0 "ha">{LAUGHS}]>'), "DTD or entities", id="billion laughs"
        ),
        pytest.param(
            document("&a;" * 4_000, before=f'<!DOCTYPE D [<!ENTITY a "{"a" * 10_000}">]>'),
            "DTD or entities",
            id="quadratic blowup",
        ),
        pytest.param(
            document("&a;", before='<!DOCTYPE D [<!ENTITY a SYSTEM "file:///etc/passwd">]>'),
            "DTD or entities",
            id="external entity",
        ),
        pytest.param(
            document("", before='<!DOCTYPE D SYSTEM "http://127.0.0.1:9/d.dtd">'), "DTD or entities", id="external DTD"
        ),
        pytest.param(document("&unknown;"), "not well-formed", id="an entity that is not declared"),
        pytest.param(document("<a>" * 500_000 + "</a>" * 500_000), "nested too deep", id="depth"),
        pytest.param(document("<a>" * 500_000), "nested too deep", id="depth without an end"),
        pytest.param(
            document("", attributes=f' xmlns:p="{"u" * 200_000}"' + "".join(f' p:a{n}=""' for n in range(50_000))),
            "longer than",
            id="attributes in a long namespace",
        ),
        pytest.param(
            document("".join(f"<p:a{n}/>" for n in range(50_000)), attributes=f' xmlns:p="{"u" * 16_000}"'),
            "named too long",
            id="elements in a long namespace",
        ),
        pytest.param(document(f"<a>{'x' * 1_000_000}</a>"), "longer than", id="a long text"),
        pytest.param(
            document("").replace(b"?>", b' encoding="klingon"?>', 1), "encoding", id="an encoding that is none"
        ),
        pytest.param(
            document("").replace(b"?>", b' encoding="utf-7"?>', 1), "encoding|well-formed", id="more bytes for a letter"
        ),
    ],
)
def test_xml_that_attacks_its_reader_is_refused(content: bytes, refusal: str) -> None:
    with pytest.raises(InvalidStatement, match=refusal):
        statements.parse(content, StatementFormat.CAMT053)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b":20:A\n" * 200_000, id="statements without anything"),
        pytest.param(mt940([]).replace(b":62F:", b":86:x\n" * 200_000 + b":62F:"), id="details of nothing"),
        pytest.param(mt940([entry()]).replace(b":62F:", b":86:x\r\n" * 200_000 + b":62F:"), id="details without end"),
        pytest.param(mt940([entry()]).replace(b":62F:", b"x\r\n" * 500_000 + b":62F:"), id="lines without end"),
    ],
)
def test_long_files_take_no_longer_than_their_length(content: bytes) -> None:
    survives(content, StatementFormat.MT940)


def test_a_file_that_reads_like_a_path_opens_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "statement"
    secret.write_bytes(mt940([entry()]))
    with pytest.raises(InvalidStatement):
        statements.parse(str(secret).encode(), StatementFormat.MT940)


def test_what_cannot_be_read_is_not_written_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(InvalidStatement):
        statements.parse(mt940([entry()]).replace(b"NTRFNONREF", b"!Ada Lovelace"), StatementFormat.MT940)
    assert caplog.text == ""
