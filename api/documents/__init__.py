"""Printable documents laid out: the same content as HTML and as PDF. What they say is decided in `shared/domain`."""

from api.documents.html import as_html
from api.documents.pdf import as_pdf

__all__ = ["as_html", "as_pdf"]
