"""Every route with a body that fits, for tables over all of them. A route that is missing here fails a test."""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from uuid import UUID

from flask import Flask

SOME_ID: Final = "01a00000-0000-7000-8000-000000000000"
SOME_TOKEN: Final = "A" * 64

BODIES: Final[dict[str, dict[str, Any]]] = {
    "POST /signup": {"account_name": "Ada", "email": "ada@example.com", "password": "long enough for this"},
    "POST /auth/login": {"email": "ada@example.com", "password": "long enough for this"},
    "POST /admin/auth/login": {"email": "root@example.com", "password": "long enough for this"},
    "POST /auth/verify-email": {"token": SOME_TOKEN, "password": "long enough for this"},
    "POST /invitations/accept": {"token": SOME_TOKEN, "password": "long enough for this"},
    "POST /members/invitations": {"email": "bob@example.com", "role": "viewer"},
    "PATCH /members/{member_id}": {"role": "viewer"},
    "POST /subscription/cancel": {"at_period_end": True},
    "POST /invoices": {"plan": "starter", "payment_method": "bank_transfer"},
    "POST /invoices/{invoice_id}/checkout": {"payment_method": "bank_transfer", "save_payment_method": False},
    "POST /payments": {"invoice_id": SOME_ID, "provider": "sandbox", "external_payment_id": "card-1"},
    "POST /bank-transfers": {
        "invoice_id": SOME_ID,
        "payer_name": "Ada",
        "transferred_on": "2026-02-01",
        "note": "two\nlines",
    },
    "POST /credits/consume": {"amount": 1, "reason": "a call"},
    "POST /credits/consume-batch": {"items": [{"key": "a", "amount": 1, "reason": "a call"}], "all_or_nothing": True},
    "POST /credits/holds": {"amount": 1, "ttl_seconds": 60},
    "POST /credits/holds/{hold_id}/capture": {"amount": 1},
    "POST /sites": {"name": "Shop", "domain": "shop.example.com"},
    "PATCH /sites/{site_id}": {"name": "Shop", "domain": "shop.example.com"},
    "POST /api-keys": {"name": "backend", "scopes": ["credits:consume"], "expires_at": "2100-01-01T00:00:00Z"},
    "POST /api-keys/{api_key_id}/rotate": {"overlap_hours": 24},
    "POST /sandbox/payments": {"invoice_id": SOME_ID, "outcome": "succeeded", "saves_card": "good"},
    "POST /admin/bank-transfers/{bank_transfer_id}/approve": {
        "amount_minor": 8900,
        "currency": "USD",
        "value_on": "2026-02-01",
        "bank_transaction_id": "bank-1",
        "override_reason": "a fee",
    },
    "POST /admin/bank-transfers/{bank_transfer_id}/reject": {"reason": "nothing came"},
    "POST /admin/accounts/{account_id}/plan": {"plan": "enterprise", "reason": "a deal", "at_period_end": False},
    "POST /admin/accounts/{account_id}/credits/transactions/{seq}/reverse": {"reason": "it failed"},
    "POST /admin/accounts/{account_id}/credits": {
        "amount": 5,
        "reason": "sorry",
        "expires_at": "2100-01-01T00:00:00Z",
    },
    "POST /admin/invoices/{invoice_id}/payments": {
        "external_payment_id": "cash-1",
        "amount_minor": 8900,
        "currency": "USD",
        "reason": "cash",
    },
    "POST /admin/payments/{payment_id}/refunds": {
        "amount_minor": 4450,
        "reason": "unhappy",
        "transfer_reference": "SEPA 4711",
    },
    "POST /admin/payments/{payment_id}/apply": {"invoice_id": SOME_ID, "override_reason": "a fee"},
    "POST /admin/test-clocks": {"name": "a clock", "now_at": "2026-01-31T09:00:00Z"},
    "POST /admin/test-clocks/{test_clock_id}/advance": {"to": "2026-02-28T09:00:00Z"},
}
RAW: Final = {"POST /webhooks/stripe"}  # bytes that are no document of ours
WITHOUT_BODY: Final = {
    "POST /auth/refresh",
    "POST /auth/logout",
    "POST /auth/logout-all",
    "POST /admin/auth/refresh",
    "POST /admin/auth/logout",
    "POST /admin/auth/logout-all",
    "POST /credits/holds/{hold_id}/release",
    "POST /admin/operations/{operation_id}/retry",
    "POST /admin/bank-statements",  # a file
}
PUBLIC: Final = {
    "POST /signup",
    "POST /auth/login",
    "POST /auth/verify-email",
    "POST /invitations/accept",
    "POST /admin/auth/login",
    "GET /plans",
}
# What changes something and is refused to nobody for the account's standing: it takes access away.
TAKING_AWAY: Final = {
    "POST /auth/logout",
    "POST /auth/logout-all",
    "DELETE /api-keys/{api_key_id}",
    "DELETE /members/{member_id}",
    "DELETE /members/invitations/{invitation_id}",
}
SIGNED: Final = {"POST /webhooks/stripe"}  # where a signature is the credential
POLLING: Final = "GET /operations/{operation_id}"
NEEDS_KEY: Final = {"POST /credits/consume", "POST /credits/holds"}


class Route(NamedTuple):
    """A method and a path template."""

    method: str
    template: str

    @property
    def name(self) -> str:
        """As BODIES names it."""
        return f"{self.method} {self.template}"

    @property
    def for_admins(self) -> bool:
        return self.template.startswith("/admin/")

    def path(self, some_id: UUID | str = SOME_ID) -> str:
        """With this id wherever one is wanted, and the number of no row where that is."""
        return re.sub(r"\{\w+\}", str(some_id), self.template.replace("{seq}", "1000000"))


def routes_of(app: Flask) -> Iterator[Route]:
    """All routes under /api/v1."""
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/api/v1/"):
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield Route(method, re.sub(r"<\w+:(\w+)>", r"{\1}", rule.rule.removeprefix("/api/v1")))


ROUTES_WITH_BODY: Final = [Route(*name.split(" ")) for name in BODIES]
