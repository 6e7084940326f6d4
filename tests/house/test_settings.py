"""What production refuses to start on: whatever of the seller would be printed as an example."""

from typing import Any

import pytest
from pydantic import ValidationError

from shared.config import EXAMPLE_ADDRESS, EXAMPLE_IBAN, EXAMPLE_SELLER, Settings
from tests.factories import cases

PRODUCTION: dict[str, Any] = {
    "environment": "production",
    "secret_key": "s" * 32,
    "database_url": "postgresql://127.0.0.1/billing",
    "broker_url": "redis://127.0.0.1",
    "billing_sandbox": False,
    "seller_name": "Ada Ltd",
    "seller_address": "12 St James's Square | London||",
    "seller_iban": "GB29NWBK60161331926819",
    "seller_bic": "NWBKGB2L",
}
EXAMPLES = {
    "the name": ("seller_name", EXAMPLE_SELLER),
    "the address": ("seller_address", EXAMPLE_ADDRESS),
    "the account": ("seller_iban", EXAMPLE_IBAN),
}


def test_production_needs_of_the_seller_what_every_invoice_prints_and_no_more() -> None:
    settings = Settings(**PRODUCTION)
    assert settings.seller_address_lines == ("12 St James's Square", "London")
    assert (settings.seller_tax_id, settings.seller_registration, settings.seller_email) == (None, None, None)


@pytest.mark.parametrize(("name", "example"), cases(EXAMPLES))
def test_production_prints_no_example(name: str, example: str) -> None:
    with pytest.raises(ValidationError, match="SELLER_ADDRESS"):
        Settings(**PRODUCTION | {name: example})


@pytest.mark.parametrize("name", ["seller_tax_id", "seller_registration", "seller_email"])
def test_what_is_blank_is_not_printed(name: str) -> None:
    blank: dict[str, Any] = {name: " "}
    assert getattr(Settings(**blank), name) is None


@pytest.mark.parametrize("address", ["", "|", " | "])
def test_an_address_has_a_line(address: str) -> None:
    with pytest.raises(ValidationError, match="must have a line"):
        Settings(seller_address=address)
