"""Addresses: one spelling for each, so that an address is one whatever it is typed like.

Source: docs/rules.md, "Identity".
"""

import unicodedata
from collections.abc import Iterable
from typing import Final

from email_validator import EmailNotValidError, validate_email

from shared.errors import InvalidInput

MAX_LENGTH: Final = 254


def normalised(address: str) -> str:
    """The address in lower case, composed (NFC), with its domain in Unicode. Raises InvalidInput.

    Whether mail arrives there is not looked at.
    """
    try:
        valid = validate_email(address, check_deliverability=False).normalized
    except EmailNotValidError as error:
        raise InvalidInput(str(error)) from None
    lower = unicodedata.normalize("NFC", valid.lower())
    if len(lower) > MAX_LENGTH:
        raise InvalidInput(f"an address has {MAX_LENGTH} characters at most")
    return lower


def is_below(email: str, domains: Iterable[str]) -> bool:
    """Whether a normalised address is at one of these domains or below one; either may be spelled in ASCII (IDNA)."""
    valid = validate_email(email, check_deliverability=False)
    spelled = {valid.domain.lower(), valid.ascii_domain.lower()}
    return any(domain == own or own.endswith(f".{domain}") for domain in domains for own in spelled)
