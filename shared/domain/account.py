"""Accounts: states, the gate that every kind of access passes, and the whole that `lifecycle` decides on.

Source: docs/rules.md, "Accounts" and "Access".
"""

from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from msgspec import Struct

from shared.domain.credits import CreditGrant, CreditTransaction
from shared.domain.event import Event
from shared.domain.invoice import Invoice
from shared.domain.payment import Charge
from shared.domain.subscription import ENDED, Period, Subscription
from shared.errors import AccountCancelled, AccountSuspended, IllegalTransition

SYSTEM_ACCOUNT_ID: Final = UUID("00000000-0000-7000-8000-000000000000")


class AccountStatus(StrEnum):
    """Trial, active and past due have full access; suspended may read and pay; cancelled may read."""

    TRIAL = "trial"
    ACTIVE = "active"
    PAST_DUE = "past_due"
    SUSPENDED = "suspended"
    CANCELLED = "cancelled"


class AccountEvent(StrEnum):
    """What happens to an account; each accompanies an event of its subscription."""

    ACTIVATE = "activate"
    DEFER = "defer"
    SUSPEND = "suspend"
    CANCEL = "cancel"


FULL_ACCESS: Final = frozenset({AccountStatus.TRIAL, AccountStatus.ACTIVE, AccountStatus.PAST_DUE})

TRANSITIONS: Final = {
    (AccountStatus.TRIAL, AccountEvent.ACTIVATE): AccountStatus.ACTIVE,
    (AccountStatus.TRIAL, AccountEvent.DEFER): AccountStatus.PAST_DUE,
    (AccountStatus.TRIAL, AccountEvent.SUSPEND): AccountStatus.SUSPENDED,
    (AccountStatus.TRIAL, AccountEvent.CANCEL): AccountStatus.CANCELLED,
    (AccountStatus.ACTIVE, AccountEvent.ACTIVATE): AccountStatus.ACTIVE,
    (AccountStatus.ACTIVE, AccountEvent.DEFER): AccountStatus.PAST_DUE,
    (AccountStatus.ACTIVE, AccountEvent.CANCEL): AccountStatus.CANCELLED,
    (AccountStatus.PAST_DUE, AccountEvent.ACTIVATE): AccountStatus.ACTIVE,
    (AccountStatus.PAST_DUE, AccountEvent.DEFER): AccountStatus.PAST_DUE,
    (AccountStatus.PAST_DUE, AccountEvent.SUSPEND): AccountStatus.SUSPENDED,
    (AccountStatus.PAST_DUE, AccountEvent.CANCEL): AccountStatus.CANCELLED,
    (AccountStatus.SUSPENDED, AccountEvent.ACTIVATE): AccountStatus.ACTIVE,
    (AccountStatus.CANCELLED, AccountEvent.ACTIVATE): AccountStatus.ACTIVE,
}


def next_status(status: AccountStatus, event: AccountEvent) -> AccountStatus:
    """Raises IllegalTransition for every pair that TRANSITIONS does not declare."""
    try:
        return TRANSITIONS[status, event]
    except KeyError:
        raise IllegalTransition(f"an account that is {status} cannot {event}") from None


class Action(StrEnum):
    """What a principal wants to do, as coarse as the gate decides."""

    READ = "read"
    PAY = "pay"
    USE = "use"


def require_access(action: Action, *, status: AccountStatus, access_ends_at: datetime | None, now: datetime) -> None:
    """The one gate. Raises AccountSuspended or AccountCancelled.

    It decides from dates: once `access_ends_at` has come the account counts as suspended, whether or
    not a worker has been there to write it down.
    """
    if action is Action.READ:
        return
    if status is AccountStatus.CANCELLED:
        raise AccountCancelled("the account is cancelled; it may be read")
    if action is Action.PAY:
        return
    if status is AccountStatus.SUSPENDED or (access_ends_at is not None and now >= access_ends_at):
        raise AccountSuspended("the account is suspended; it may be read, and paying lifts the suspension")


class Account(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """The part of an account that billing decides on."""

    id: UUID
    status: AccountStatus
    status_reason: str | None
    time_zone: str
    balance_credits: int
    ledger_seq: int  # number of the newest credit transaction
    acted_at: datetime  # of the newest thing that happened to it; nothing happens before that
    payment_method: str | None = None
    external_payment_id: str | None = None
    saved_payment_method: str | None = None  # can be charged without the customer


class AccountState(Struct, frozen=True, kw_only=True, gc=False):
    """An account with everything that its next transition depends on.

    Loaded: the live subscription and its current period, invoices that are open or paid ahead,
    grants with credits left. Decisions put a value in the place of the one that it replaces, and new ones
    after all others; the difference between the state loaded and the state decided is what is written.
    """

    account: Account
    subscriptions: tuple[Subscription, ...] = ()
    periods: tuple[Period, ...] = ()
    invoices: tuple[Invoice, ...] = ()
    grants: tuple[CreditGrant, ...] = ()
    transactions: tuple[CreditTransaction, ...] = ()  # new ones only
    events: tuple[Event, ...] = ()  # likewise
    charges: tuple[Charge, ...] = ()  # likewise

    @property
    def live(self) -> Subscription | None:
        """The live subscription."""
        if not self.subscriptions or self.subscriptions[-1].status is ENDED:
            return None
        return self.subscriptions[-1]
