"""Operations: one accepted request, executed once; what may be asked, and when to look again.

Source: docs/rules.md, "Operations".
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

PAYLOAD_VERSION: Final = 1
LONGEST_BACKOFF: Final = timedelta(minutes=10)


class OperationKind(StrEnum):
    """What an accepted request asks for."""

    SIGN_UP = "sign_up"
    OPEN_INVOICE = "open_invoice"
    CONFIRM_PAYMENT = "confirm_payment"
    RECORD_PAYMENT = "record_payment"
    SUBMIT_BANK_TRANSFER = "submit_bank_transfer"
    APPROVE_BANK_TRANSFER = "approve_bank_transfer"
    REJECT_BANK_TRANSFER = "reject_bank_transfer"
    CANCEL_SUBSCRIPTION = "cancel_subscription"
    ASSIGN_PLAN = "assign_plan"
    ADJUST_CREDITS = "adjust_credits"
    REVERSE_CREDITS = "reverse_credits"
    CHARGE_INVOICE = "charge_invoice"
    APPLY_PAYMENT = "apply_payment"
    REFUND_PAYMENT = "refund_payment"
    FOLLOW_REFUNDS = "follow_refunds"
    IMPORT_BANK_STATEMENT = "import_bank_statement"
    ADVANCE_TEST_CLOCK = "advance_test_clock"
    SEND_MAIL = "send_mail"

    @property
    def task_name(self) -> str:
        """The Celery task that executes such an operation."""
        return f"billing.{self.value}"


# Due at an instant of the account, which on a test clock is not the world's. Others happen when they are asked for.
SCHEDULED: Final = frozenset({OperationKind.CHARGE_INVOICE})


class OperationStatus(StrEnum):
    """`succeeded` and `failed` are answers; `dead` waits for an admin."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEAD = "dead"


class PrincipalKind(StrEnum):
    """Who asks."""

    ANONYMOUS = "anonymous"
    USER = "user"
    API_KEY = "api_key"
    ADMIN = "admin"
    SYSTEM = "system"


class Operation(Struct, frozen=True, kw_only=True):
    """One row of `operations`, as its executor sees it, and what has to be known of its account.

    account_is_due: something is, at the operation's instant, and the account is not parked.
    """

    id: UUID
    kind: OperationKind
    payload: dict[str, Any]
    payload_version: int
    account_id: UUID | None
    principal_kind: PrincipalKind
    principal_id: UUID | None
    attempts: int
    created_at: datetime
    account_is_due: bool
    on_test_clock: bool


def backoff(attempts: int, *, base: timedelta, jitter: float) -> timedelta:
    """Wait before an operation is sent again: `base`, doubling, at most LONGEST_BACKOFF.

    jitter: in [0, 1); adds up to a half, so that what failed together does not return together.
    """
    doublings = min(max(attempts - 1, 0), 16)
    return min(base * (1 << doublings), LONGEST_BACKOFF) * (1 + jitter / 2)
