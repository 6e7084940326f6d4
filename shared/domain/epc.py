"""The QR code that banking apps read to fill in a transfer (EPC069-12), which knows euros alone.

Source: docs/rules.md, "Invoices".
"""

from typing import Final

from segno import QRCode, helpers

from shared.domain.money import to_decimal

CURRENCY: Final = "EUR"
NAME_LENGTH: Final = 70
MAX_AMOUNT_MINOR: Final = 99_999_999_999


def epc_code(
    *, beneficiary: str, iban: str, bic: str, amount_minor: int, currency: str, reference: str
) -> QRCode | None:
    """The code of a transfer with this ISO 11649 reference; None for what the standard cannot say."""
    if currency != CURRENCY or amount_minor > MAX_AMOUNT_MINOR:
        return None
    return helpers.make_epc_qr(
        name=beneficiary[:NAME_LENGTH],
        iban=iban,
        bic=bic,
        amount=to_decimal(amount_minor, currency),
        reference=reference,
    )
