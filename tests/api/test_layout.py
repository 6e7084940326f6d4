"""HTML and PDF of the same document: they say the same, and neither can be made to say or do anything else."""

import os
import re
import subprocess
import sys
from datetime import date
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import pytest
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]  # it ships no types
from pymupdf_fonts import myfont
from pypdf import PdfReader

from api.documents import as_html, as_pdf
from api.documents.pdf import CODE_MM, INCOMPLETE, MARGIN_MM
from shared.config import PROJECT_DIR
from shared.domain.invoice import InvoiceStatus, PaymentMethod
from shared.domain.printable import (
    Customer,
    Payment,
    PrintableDocument,
    Refund,
    invoice_document,
    receipt_document,
)
from tests.factories import on, paid, printable, seller, texts

POINTS_PER_MM = 72 / 25.4
FOOTER = r"(Invoice|Receipt) [\d-]+, page \d+"
PAGE_WIDTH = 210 * POINTS_PER_MM
PAGE_HEIGHT = 297 * POINTS_PER_MM
MANY_REFUNDS = tuple(Refund(refunded_on=date(2026, 3, 1), amount_minor=minor) for minor in range(1, 101))
LONG = {
    "seller": seller(name="W" * 200, address=("ÄÖ " * 66, "Q" * 200), email="m" * 254),
    "customer": Customer(name="W" * 200, email="m" * 254),
    "plan_name": "long words " * 30,
}
DOCUMENTS: dict[str, PrintableDocument] = {
    "open": invoice_document(printable()),
    "open, in euros": invoice_document(printable(currency="EUR")),
    "void": invoice_document(printable(status=InvoiceStatus.VOID, voided_at=on("2026-02-03"))),
    "a renewal": invoice_document(printable(period_starts_at=on("2026-02-28"), period_ends_at=on("2026-03-31"))),
    "paid": invoice_document(paid()),
    "a receipt": receipt_document(paid()),
    "a receipt with refunds": receipt_document(paid(refunds=MANY_REFUNDS[:2])),
    "long names": invoice_document(printable(currency="EUR", **LONG)),
    "a receipt with long names and many refunds": receipt_document(paid(refunds=MANY_REFUNDS, **LONG)),
}
ALL = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)


class Parsed(HTMLParser):
    """What a browser would make of a page: its tags, their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def printed(pdf: bytes) -> str:
    """The text of a PDF without the spaces and lines that wrapping takes and adds, and without its footers."""
    pages = [page.extract_text() for page in PdfReader(BytesIO(pdf)).pages]
    return re.sub(r"\s", "", "".join(re.sub(f"{FOOTER}$", "", page) for page in pages))


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


# --- what is said -------------------------------------------------------------------------------


@ALL
def test_html_and_pdf_say_all_of_the_document(document: PrintableDocument) -> None:
    shown, pdf = Parsed(as_html(document)).texts, printed(as_pdf(document))
    for text in texts(document):
        assert text in shown
        assert squeezed(text) in pdf


@ALL
def test_neither_says_anything_else(document: PrintableDocument) -> None:
    """With each of its texts taken out, the longest first, nothing is left."""
    page = "".join(text for text in Parsed(as_html(document)).texts if "@page" not in text)
    for rest in (squeezed(page), printed(as_pdf(document))):
        for text in sorted([*texts(document), document.name], key=len, reverse=True):
            rest = rest.replace(squeezed(text), "")  # noqa: PLW2901
        assert rest == ""


NAMES = {
    "German": "Größe & Söhne",
    "Polish": "Zażółć Łódź",
    "Czech": "Dvořák",
    "Turkish": "İstanbul Şişli Ağaç",
    "Vietnamese": "Nguyễn Thị",
    "Greek": "Αθήνα",
    "Ukrainian": "Київ",
    "Serbian": "Љубљана",
    "with signs": "№ 1 · “Ada” € ©",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_pdf_has_the_letters_of_europe(name: str) -> None:
    pdf = printed(as_pdf(invoice_document(printable(customer=Customer(name=name, email=None)))))
    assert squeezed(name) in pdf
    assert squeezed(INCOMPLETE) not in pdf


def test_what_a_pdf_cannot_show_is_marked_and_html_has_it() -> None:
    document = invoice_document(printable(customer=Customer(name="日本 Ada 🎉", email=None)))
    pdf = printed(as_pdf(document))
    assert "??Ada?" in pdf
    assert squeezed(INCOMPLETE) in pdf
    assert "日本 Ada 🎉" in Parsed(as_html(document)).texts


def test_nothing_in_a_name_is_taken_for_a_command_of_the_pdf_writer() -> None:
    name = "{nb} **bold** __under__ [a](https://example.com) \\n"
    document = invoice_document(printable(customer=Customer(name=name, email=None), plan_name=name))
    pdf = as_pdf(document)
    assert printed(pdf).count(squeezed(name)) == 2
    assert "/Annots" not in PdfReader(BytesIO(pdf)).pages[0]


# --- HTML ---------------------------------------------------------------------------------------

HOSTILE = {
    "a script": "<script>alert(1)</script>",
    "an attribute": '" onmouseover="alert(1)',
    "single quotes": "' onload='alert(1)",
    "the end of the title": "</title><script>alert(1)</script>",
    "the end of the style": "</style><img src=x onerror=alert(1)>",
    "a comment": "<!-- Ada -->",
    "an entity": "&lt;script&gt; &amp; &#x3c;",
    "a template": "{{ 7 * 7 }}{% include 'x' %}",
}


def named(name: str) -> list[PrintableDocument]:
    """An invoice and a receipt with this wherever text comes from outside."""
    outside = dict.fromkeys(("name", "bic", "tax_id", "registration", "email"), name)
    payment = Payment(method=PaymentMethod.MANUAL, external_payment_id=name, amount_minor=89_00, currency="USD")
    terms: dict[str, Any] = {
        "plan_name": name,
        "customer": Customer(name=name, email=name),
        "seller": seller(address=(name,), **outside),
    }
    return [invoice_document(printable(**terms)), receipt_document(paid(payment=payment, **terms))]


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_name_is_text_and_never_markup(name: str) -> None:
    for document, plain in zip(named(name), named("Ada"), strict=True):
        page, same_page = Parsed(as_html(document)), Parsed(as_html(plain))
        assert page.tags == same_page.tags
        assert page.attributes == same_page.attributes
        assert page.texts.count(name) == same_page.texts.count("Ada")


@ALL
def test_a_page_needs_nothing_from_elsewhere_and_runs_nothing(document: PrintableDocument) -> None:
    html = as_html(document)
    page = Parsed(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on") or name in {"src", "href", "style"}}
    assert not re.search(r"url\(|@import|//", html)
    assert html.startswith("<!doctype html>")
    assert "size: A4" in html


# --- PDF ----------------------------------------------------------------------------------------


def widths(code: str) -> Any:
    """The width of a text in thousandths of its size, by the font itself."""
    font = TTFont(BytesIO(myfont(code)))
    units, names, advances = font["head"].unitsPerEm, font.getBestCmap(), font["hmtx"].metrics
    return lambda text: sum(advances[names[ord(c)]][0] for c in text) * 1000 / units


@ALL
def test_nothing_runs_off_the_paper(document: PrintableDocument) -> None:
    regular, bold = widths("notos"), widths("notosbo")
    left, right = MARGIN_MM * POINTS_PER_MM, PAGE_WIDTH - MARGIN_MM * POINTS_PER_MM
    pieces = []

    def place(text: str, cm: Any, tm: Any, font: Any, size: float) -> None:
        for line in text.split("\n"):
            if line.strip():
                width = (bold if "Bold" in font["/BaseFont"] else regular)(line.rstrip()) * size / 1000
                pieces.append((line, tm[4], tm[4] + width, tm[5]))

    for page in PdfReader(BytesIO(as_pdf(document))).pages:
        assert (float(page.mediabox.width), float(page.mediabox.height)) == pytest.approx(
            (PAGE_WIDTH, PAGE_HEIGHT), 0.01
        )
        page.extract_text(visitor_text=place)
    assert pieces
    for line, starts, ends, height in pieces:
        assert left - 1 < starts < ends < right + 1, line
        lowest = 0 if re.fullmatch(FOOTER, line) else MARGIN_MM * POINTS_PER_MM
        assert lowest < height < PAGE_HEIGHT - MARGIN_MM * POINTS_PER_MM, line


def test_the_code_is_drawn_as_the_document_has_it() -> None:
    document = DOCUMENTS["open, in euros"]
    code, drawn = document.code, []
    assert code is not None

    def draw(operator: bytes, operands: Any, cm: Any, tm: Any) -> None:
        if operator == b"re":
            drawn.append([float(number) for number in operands])

    (page,) = PdfReader(BytesIO(as_pdf(document))).pages
    page.extract_text(visitor_operand_before=draw)
    module = CODE_MM * POINTS_PER_MM / code.side
    first_x, first_y = drawn[0][0] - code.bars[0].x * module, drawn[0][1] + code.bars[0].y * module
    for bar, (x, y, width, height) in zip(code.bars, drawn, strict=True):
        assert (x, y) == pytest.approx((first_x + bar.x * module, first_y - bar.y * module), abs=0.05)
        assert (width, abs(height)) == pytest.approx((bar.length * module, module), abs=0.05)
    path = "".join(f"M{bar.x} {bar.y}h{bar.length}v1h-{bar.length}z" for bar in code.bars)
    assert f'd="{path}"' in as_html(document)


def test_a_long_receipt_goes_on_on_further_pages_and_stays_small() -> None:
    pdf = as_pdf(DOCUMENTS["a receipt with long names and many refunds"])
    assert 2 <= len(PdfReader(BytesIO(pdf)).pages) <= 5
    assert len(pdf) < 100_000


def test_a_pdf_bears_the_instant_of_its_document_and_no_other() -> None:
    for document in (DOCUMENTS["open"], DOCUMENTS["a receipt"]):
        facts = PdfReader(BytesIO(as_pdf(document))).metadata
        assert facts is not None
        assert facts.creation_date == document.created_at
        assert facts.modification_date in {None, document.created_at}
        assert facts.title == document.name


SCRIPT = """
import hashlib
from api.documents import as_html, as_pdf
from tests.api.test_layout import DOCUMENTS
for name, document in DOCUMENTS.items():
    print(name, hashlib.sha256(as_pdf(document) + as_html(document).encode()).hexdigest())
"""


def test_the_same_facts_are_the_same_bytes_in_every_process() -> None:
    def made(seed: str) -> str:
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT]
        return subprocess.run(
            command, cwd=PROJECT_DIR, env=environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    assert made("1") == made("2") != ""
