"""A printable document as a page of HTML: everything in one file, nothing that runs, and made for A4.

`page.html` shows every text through Jinja2's escaping, so a name is never markup. CONTENT_SECURITY_POLICY is the second
wall: whoever serves the page on the API's own origin sends it along.

Source: docs/rules.md, "Invoices".
"""

from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shared.domain.printable import PrintableDocument

CONTENT_SECURITY_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGE: Final = _TEMPLATES.get_template("page.html")


def as_html(document: PrintableDocument) -> str:
    """The page."""
    return _PAGE.render(document=document)
