"""Bank transfers: submitted by a customer, decided once by an admin.

Source: docs/rules.md, "Bank transfers".
"""

from enum import StrEnum
from typing import Final

from shared.errors import AlreadyApproved, AlreadyRejected


class BankTransferStatus(StrEnum):
    """Both decisions are final."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"


class BankTransferEvent(StrEnum):
    """An admin's decision."""

    APPROVE = "approve"
    REJECT = "reject"


TRANSITIONS: Final = {
    (BankTransferStatus.PENDING, BankTransferEvent.APPROVE): BankTransferStatus.APPROVED,
    (BankTransferStatus.PENDING, BankTransferEvent.REJECT): BankTransferStatus.REJECTED,
}


def next_status(status: BankTransferStatus, event: BankTransferEvent) -> BankTransferStatus:
    """Raises AlreadyApproved or AlreadyRejected: one decision wins, ever."""
    try:
        return TRANSITIONS[status, event]
    except KeyError:
        decided = AlreadyApproved if status is BankTransferStatus.APPROVED else AlreadyRejected
        raise decided(f"the bank transfer was {status} before") from None
