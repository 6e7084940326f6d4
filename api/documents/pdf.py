"""A printable document as a PDF on A4: text wraps and pages break, so nothing runs off the paper.

The same document gives the same bytes: its date is the document's own instant, and nothing in it is random. Fonts come
from a package and are embedded as far as they are used. Noto Sans has Latin, Greek and Cyrillic letters; any other
character is printed as `?`, and a note says so.

Source: docs/rules.md, "Invoices"; docs/adr/0020.
"""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from fpdf import FPDF, FontFace
from fpdf.enums import Align, TableBordersLayout, VAlign, XPos, YPos
from fpdf.fonts import TTFFont
from pymupdf_fonts import myfont

from shared.domain.printable import Block, Code, Fact, Party, PrintableDocument

FONT: Final = "Noto Sans"
FONT_CODES: Final = {"": "notos", "B": "notosbo"}  # by style, as pymupdf-fonts calls them
MARGIN_MM: Final = 20
GAP_MM: Final = 8
LINE_MM: Final = 5
TITLE_PT: Final = 20
TEXT_PT: Final = 10
SMALL_PT: Final = 8
CODE_MM: Final = 40
GREY: Final = (85, 85, 85)
BLACK: Final = (0, 0, 0)
QUIET: Final = FontFace(color=GREY)
LOUD: Final = FontFace(emphasis="BOLD")
UNPRINTABLE: Final = "?"
INCOMPLETE: Final = f"Characters that this file cannot show are printed as {UNPRINTABLE}; the HTML version shows all."

# It warns of every table of a font that a subset goes without, at every document.
logging.getLogger("fontTools.subset").setLevel(logging.ERROR)


def as_pdf(document: PrintableDocument) -> bytes:
    """The file."""
    with TemporaryDirectory(prefix="fonts-") as folder:  # fpdf2 reads fonts from files alone
        paper = _Paper(document, fonts=Path(folder))
        paper.write_title(document.title)
        paper.write_parties(document.seller, document.customer)
        paper.write_facts(document.about)
        paper.write_line(document)
        for block in document.blocks:
            paper.write_block(block)
        if document.code is not None:
            paper.draw_code(document.code)
        paper.write_notes(document.notes)
        return bytes(paper.output())


class _Paper(FPDF):
    """A4 pages, filled from top to bottom; every page ends with the document's name and its own number."""

    def __init__(self, document: PrintableDocument, *, fonts: Path) -> None:
        super().__init__(format="A4")
        self.document = document
        self.is_incomplete = False
        for style, code in FONT_CODES.items():
            file = fonts / f"{code}.ttf"
            file.write_bytes(myfont(code))
            self.add_font(FONT, style, file)
        self.set_creation_date(document.created_at)
        self.set_title(document.name)
        self.set_lang("en")
        self.alias_nb_pages("")  # a name may contain fpdf2's mark for the number of pages
        self.set_margin(MARGIN_MM)
        self.set_auto_page_break(auto=True, margin=MARGIN_MM)
        self.set_font(FONT, size=TEXT_PT)
        self.add_page()

    def normalize_text(self, text: str) -> str:
        """What every text passes on its way to the page: characters that no font has are replaced."""
        known = self.current_font.cmap if isinstance(self.current_font, TTFFont) else {}
        shown = "".join(c if ord(c) in known or c == "\n" else UNPRINTABLE for c in text)
        self.is_incomplete = self.is_incomplete or shown != text
        return super().normalize_text(shown)

    def footer(self) -> None:
        """At the foot of every page."""
        self.set_y(-MARGIN_MM + LINE_MM)
        self.set_font(FONT, size=SMALL_PT)
        self.set_text_color(GREY)
        self.cell(0, LINE_MM, f"{self.document.name}, page {self.page_no()}")

    def write_title(self, title: str) -> None:
        self._write(title, style="B", size_pt=TITLE_PT)
        self.ln(GAP_MM)

    def write_parties(self, seller: Party, customer: Party) -> None:
        with self.table(
            borders_layout=TableBordersLayout.NONE,
            first_row_as_headings=False,
            line_height=LINE_MM,
            text_align=Align.L,
            v_align=VAlign.T,
            gutter_width=GAP_MM,
        ) as table:
            table.row([seller.heading, customer.heading], style=LOUD)
            table.row(["\n".join(seller.lines), "\n".join(customer.lines)])
        self.ln(GAP_MM)

    def write_facts(self, facts: tuple[Fact, ...]) -> None:
        with self.table(
            borders_layout=TableBordersLayout.NONE,
            col_widths=(30, 70),
            first_row_as_headings=False,
            line_height=LINE_MM,
            text_align=Align.L,
            v_align=VAlign.T,
        ) as table:
            for fact in facts:
                row = table.row()
                row.cell(fact.label, style=QUIET)
                row.cell(fact.text)
        self.ln(GAP_MM)

    def write_line(self, document: PrintableDocument) -> None:
        with self.table(
            borders_layout=TableBordersLayout.HORIZONTAL_LINES,
            col_widths=(40, 35, 25),
            headings_style=QUIET,
            line_height=LINE_MM,
            padding=(1, 0),
            text_align=(Align.L, Align.L, Align.R),
            v_align=VAlign.T,
        ) as table:
            table.row(document.columns)
            table.row(document.line)
            total = table.row(style=LOUD)
            total.cell(document.total.label, colspan=2)
            total.cell(document.total.text)
        self.ln(GAP_MM)

    def write_block(self, block: Block) -> None:
        self._write(block.heading, style="B")
        self.write_facts(block.facts)

    def draw_code(self, code: Code) -> None:
        if self.will_page_break(CODE_MM + LINE_MM):
            self.add_page()
        left, top, module = self.l_margin, self.get_y(), CODE_MM / code.side
        for bar in code.bars:
            self.rect(left + bar.x * module, top + bar.y * module, bar.length * module, module, style="F")
        self.set_y(top + CODE_MM)
        self._write(code.caption)
        self.ln(GAP_MM)

    def write_notes(self, notes: tuple[str, ...]) -> None:
        for note in notes:
            self._write(note, size_pt=SMALL_PT, color=GREY)
        if self.is_incomplete:
            self._write(INCOMPLETE, size_pt=SMALL_PT, color=GREY)

    def _write(
        self, text: str, *, style: str = "", size_pt: float = TEXT_PT, color: tuple[int, int, int] = BLACK
    ) -> None:
        """A paragraph over the whole width."""
        with self.local_context():
            self.set_font(FONT, style, size_pt)
            self.set_text_color(color)
            line_mm = max(LINE_MM, self.font_size)
            self.multi_cell(0, line_mm, text, align=Align.L, new_x=XPos.LMARGIN, new_y=YPos.NEXT)
