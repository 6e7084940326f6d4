"""What is printed of an invoice: the invoice, and the receipt of one that is paid.

Every word and number on paper is decided here. HTML and PDF lay it out and add nothing, so they cannot differ. No clock
is read: the same facts make the same document, whenever it is printed.

Source: docs/rules.md, "Invoices".
"""

from collections.abc import Iterator
from datetime import date, datetime
from itertools import groupby
from typing import Final
from unicodedata import category, normalize
from zoneinfo import ZoneInfo

from msgspec import Struct

from shared.domain.epc import epc_code
from shared.domain.invoice import InvoiceStatus, PaymentMethod
from shared.domain.money import written
from shared.errors import InvoiceNotPaid

METHODS: Final = {
    PaymentMethod.STRIPE: "card, by Stripe",
    PaymentMethod.BANK_TRANSFER: "bank transfer",
    PaymentMethod.MANUAL: "recorded by the seller",
    PaymentMethod.SANDBOX: "sandbox, without money",
}
QUIET_ZONE: Final = 4  # modules around a QR code that stay white
JOINERS: Final = "\u200c\u200d"  # invisible, but words of some languages are spelled with them


# --- the facts --------------------------------------------------------------------------------


class Seller(Struct, frozen=True, kw_only=True):
    """Who sells, as the settings say."""

    name: str
    address: tuple[str, ...]
    iban: str
    bic: str
    tax_id: str | None = None
    registration: str | None = None
    email: str | None = None


class Customer(Struct, frozen=True, kw_only=True):
    """Who buys: the account, and the address of its owner."""

    name: str
    email: str | None


class Payment(Struct, frozen=True, kw_only=True):
    """What settled the invoice."""

    method: PaymentMethod
    external_payment_id: str
    amount_minor: int
    currency: str


class Refund(Struct, frozen=True, kw_only=True):
    """Money given back of that payment, in its currency."""

    refunded_on: date
    amount_minor: int


class PrintableInvoice(Struct, frozen=True, kw_only=True):
    """All that a document tells from. Instants are aware; `time_zone` is the account's."""

    number: str
    reference: str
    status: InvoiceStatus
    plan_name: str
    amount_minor: int
    currency: str
    opened_at: datetime
    due_at: datetime
    time_zone: str
    seller: Seller
    customer: Customer
    period_starts_at: datetime | None = None
    period_ends_at: datetime | None = None
    paid_at: datetime | None = None
    voided_at: datetime | None = None
    payment: Payment | None = None
    refunds: tuple[Refund, ...] = ()


# --- the document -----------------------------------------------------------------------------


class Fact(Struct, frozen=True):
    """A line of a document: what, and what it is."""

    label: str
    text: str


class Block(Struct, frozen=True, kw_only=True):
    """Facts under a heading."""

    heading: str
    facts: tuple[Fact, ...]


class Party(Struct, frozen=True, kw_only=True):
    """One of the two that a document is between."""

    heading: str
    lines: tuple[str, ...]


class Bar(Struct, frozen=True):
    """Dark modules of a QR code, side by side, counted from the top left."""

    x: int
    y: int
    length: int


class Code(Struct, frozen=True, kw_only=True):
    """A QR code of `side` times `side` modules, quiet zone included."""

    caption: str
    side: int
    bars: tuple[Bar, ...]


class PrintableDocument(Struct, frozen=True, kw_only=True):
    """An invoice or a receipt, in the order in which it is read. `created_at` is the instant it bears in a PDF."""

    title: str
    number: str
    created_at: datetime
    seller: Party
    customer: Party
    about: tuple[Fact, ...]
    columns: tuple[str, str, str]
    line: tuple[str, str, str]
    total: Fact
    blocks: tuple[Block, ...]
    code: Code | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """`Invoice 2026-00000001`."""
        return f"{self.title} {self.number}"

    @property
    def file_stem(self) -> str:
        """`invoice-2026-00000001`."""
        return f"{self.title.lower()}-{self.number}"


def invoice_document(invoice: PrintableInvoice) -> PrintableDocument:
    """The invoice as it stands: open, with how to pay it; paid, with what was given back of that; or void."""
    is_open = invoice.status is InvoiceStatus.OPEN
    return _document(
        invoice,
        title="Invoice",
        created_at=invoice.opened_at,
        about=(
            Fact("Invoice number", invoice.number),
            Fact("Date", _day(invoice.opened_at, invoice)),
            Fact("Due", _day(invoice.due_at, invoice)),
            Fact("Status", _status(invoice)),
        ),
        blocks=(_payment_instructions(invoice),) if is_open else _refunds(invoice),
        code=_code(invoice) if is_open else None,
    )


def receipt_document(invoice: PrintableInvoice) -> PrintableDocument:
    """What was paid for the invoice, and what of it was given back. Raises InvoiceNotPaid."""
    if invoice.payment is None or invoice.paid_at is None:
        raise InvoiceNotPaid(f"this invoice is {invoice.status}; only a paid one has a receipt")
    return _document(
        invoice,
        title="Receipt",
        created_at=invoice.paid_at,
        about=(
            Fact("For invoice", invoice.number),
            Fact("Invoice date", _day(invoice.opened_at, invoice)),
            Fact("Paid on", _day(invoice.paid_at, invoice)),
        ),
        blocks=(_payment(invoice.payment), *_refunds(invoice)),
        code=None,
    )


def clean(text: str) -> str:
    """As it may be put on paper: composed (NFC), on one line, without invisible characters.

    Those are control characters and, among others, the ones that turn the direction of what is around them, with which
    a name could make an amount or another name read differently.
    """
    visible = (c for c in normalize("NFC", text) if c in JOINERS or category(c) != "Cf")
    return " ".join("".join(" " if category(c) in {"Cc", "Zl", "Zp"} else c for c in visible).split())


# --- parts ------------------------------------------------------------------------------------


def _document(
    invoice: PrintableInvoice,
    *,
    title: str,
    created_at: datetime,
    about: tuple[Fact, ...],
    blocks: tuple[Block, ...],
    code: Code | None,
) -> PrintableDocument:
    """What invoice and receipt have in common."""
    amount = written(invoice.amount_minor, invoice.currency)
    return PrintableDocument(
        title=title,
        number=invoice.number,
        created_at=created_at,
        seller=_seller(invoice.seller),
        customer=_customer(invoice.customer),
        about=about,
        columns=("Description", "Period", "Amount"),
        line=(clean(invoice.plan_name), _period(invoice), amount),
        total=Fact("Total", amount),
        blocks=blocks,
        code=code,
        notes=(f"Dates are those of the time zone {invoice.time_zone}.",),
    )


def _seller(seller: Seller) -> Party:
    lines = [seller.name, *seller.address]
    if seller.tax_id is not None:
        lines.append(f"Tax ID: {seller.tax_id}")
    if seller.registration is not None:
        lines.append(f"Registration: {seller.registration}")
    if seller.email is not None:
        lines.append(seller.email)
    return Party(heading="Seller", lines=tuple(clean(line) for line in lines))


def _customer(customer: Customer) -> Party:
    lines = [customer.name] if customer.email is None else [customer.name, customer.email]
    return Party(heading="Customer", lines=tuple(clean(line) for line in lines))


def _status(invoice: PrintableInvoice) -> str:
    if invoice.paid_at is not None:
        return f"paid on {_day(invoice.paid_at, invoice)}"
    if invoice.voided_at is not None:
        return f"void since {_day(invoice.voided_at, invoice)}"
    return "open"


def _period(invoice: PrintableInvoice) -> str:
    """A renewal is for dates that are known beforehand, an activation for what begins when it is paid."""
    if invoice.period_starts_at is not None and invoice.period_ends_at is not None:
        return f"from {_day(invoice.period_starts_at, invoice)} until {_day(invoice.period_ends_at, invoice)}"
    if invoice.paid_at is not None:
        return f"from {_day(invoice.paid_at, invoice)}, the day of payment"
    return "from the day of payment"


def _payment_instructions(invoice: PrintableInvoice) -> Block:
    return Block(
        heading="Payment by bank transfer",
        facts=(
            Fact("Beneficiary", clean(invoice.seller.name)),
            Fact("IBAN", _in_fours(invoice.seller.iban)),
            Fact("BIC", clean(invoice.seller.bic)),
            Fact("Reference", _in_fours(invoice.reference)),
            Fact("Amount", written(invoice.amount_minor, invoice.currency)),
        ),
    )


def _payment(payment: Payment) -> Block:
    return Block(
        heading="Payment",
        facts=(
            Fact("Paid", written(payment.amount_minor, payment.currency)),
            Fact("Method", METHODS[payment.method]),
            Fact("Payment ID", clean(payment.external_payment_id)),
        ),
    )


def _refunds(invoice: PrintableInvoice) -> tuple[Block, ...]:
    """Each refund and what is left of the payment; no block where there are none."""
    payment, refunds = invoice.payment, invoice.refunds
    if payment is None or not refunds:
        return ()
    kept_minor = payment.amount_minor - sum(refund.amount_minor for refund in refunds)
    facts = [
        Fact(f"Refunded on {refund.refunded_on.isoformat()}", written(refund.amount_minor, payment.currency))
        for refund in refunds
    ]
    return (Block(heading="Refunds", facts=(*facts, Fact("Kept", written(kept_minor, payment.currency)))),)


def _code(invoice: PrintableInvoice) -> Code | None:
    code = epc_code(
        beneficiary=invoice.seller.name,
        iban=invoice.seller.iban,
        bic=invoice.seller.bic,
        amount_minor=invoice.amount_minor,
        currency=invoice.currency,
        reference=invoice.reference,
    )
    if code is None:
        return None
    rows = [bytes(row) for row in code.matrix_iter(border=QUIET_ZONE)]
    return Code(
        caption="Read by banking apps (EPC)",
        side=len(rows),
        bars=tuple(bar for y, row in enumerate(rows) for bar in _bars(y, row)),
    )


def _bars(y: int, row: bytes) -> Iterator[Bar]:
    x = 0
    for dark, modules in groupby(row):
        length = len(list(modules))
        if dark:
            yield Bar(x, y, length)
        x += length


def _day(at: datetime, invoice: PrintableInvoice) -> str:
    """The date of an instant where the account is."""
    return at.astimezone(ZoneInfo(invoice.time_zone)).date().isoformat()


def _in_fours(text: str) -> str:
    """In groups of four, as banks print what has to be typed."""
    compact = "".join(text.split())
    return " ".join(compact[start : start + 4] for start in range(0, len(compact), 4))
