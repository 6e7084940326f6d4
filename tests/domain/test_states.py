"""Every pair of state and event of every state machine: what a rule declares happens, all else is refused."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import pytest

from shared.domain import account, bank_transfer, invoice, subscription
from shared.errors import AlreadyApproved, AlreadyRejected, BillingError, IllegalTransition

# Written out once more, by hand: state → event → next state. What is not here must be refused.
SUBSCRIPTION = {
    "trialing": {"activate": "active", "defer": "past_due", "end": "ended"},
    "active": {"activate": "active", "defer": "past_due", "end": "ended"},
    "past_due": {"activate": "active", "defer": "past_due", "end": "ended"},
    "ended": {},
}
ACCOUNT = {
    "trial": {"activate": "active", "defer": "past_due", "suspend": "suspended", "cancel": "cancelled"},
    "active": {"activate": "active", "defer": "past_due", "cancel": "cancelled"},
    "past_due": {"activate": "active", "defer": "past_due", "suspend": "suspended", "cancel": "cancelled"},
    "suspended": {"activate": "active"},
    "cancelled": {"activate": "active"},
}
INVOICE = {
    "open": {"settle": "paid", "void": "void"},
    "paid": {},
    "void": {},
}
BANK_TRANSFER = {
    "pending": {"approve": "approved", "reject": "rejected"},
    "approved": {},
    "rejected": {},
}

Declared = Mapping[str, Mapping[str, str]]
Machine = tuple[str, Declared, type[StrEnum], type[StrEnum], Callable[[Any, Any], StrEnum]]

MACHINES: list[Machine] = [
    (
        "a subscription",
        SUBSCRIPTION,
        subscription.SubscriptionStatus,
        subscription.SubscriptionEvent,
        subscription.next_status,
    ),
    ("an account", ACCOUNT, account.AccountStatus, account.AccountEvent, account.next_status),
    ("an invoice", INVOICE, invoice.InvoiceStatus, invoice.InvoiceEvent, invoice.next_status),
    (
        "a bank transfer",
        BANK_TRANSFER,
        bank_transfer.BankTransferStatus,
        bank_transfer.BankTransferEvent,
        bank_transfer.next_status,
    ),
]

DECLARED = [
    pytest.param(machine, state, event, declared[state][event], id=f"{name}: {state} + {event}")
    for name, declared, states, events, machine in MACHINES
    for state in states
    for event in events
    if event in declared[state]
]
REFUSED = [
    pytest.param(machine, state, event, id=f"{name}: {state} refuses {event}")
    for name, declared, states, events, machine in MACHINES
    for state in states
    for event in events
    if event not in declared[state]
]

REFUSALS: dict[StrEnum, type[BillingError]] = {
    bank_transfer.BankTransferStatus.APPROVED: AlreadyApproved,
    bank_transfer.BankTransferStatus.REJECTED: AlreadyRejected,
}


@pytest.mark.parametrize(("machine", "state", "event", "expected"), DECLARED)
def test_a_declared_event_leads_to_its_state(
    machine: Callable[[StrEnum, StrEnum], StrEnum], state: StrEnum, event: StrEnum, expected: str
) -> None:
    after = machine(state, event)
    assert after == expected
    assert type(after) is type(state)


@pytest.mark.parametrize(("machine", "state", "event"), REFUSED)
def test_every_other_event_is_refused(
    machine: Callable[[StrEnum, StrEnum], StrEnum], state: StrEnum, event: StrEnum
) -> None:
    with pytest.raises(REFUSALS.get(state, IllegalTransition)):
        machine(state, event)


@pytest.mark.parametrize(("name", "declared", "states", "events", "machine"), MACHINES)
def test_the_tables_above_name_every_state_and_no_other_event(
    name: str, declared: Declared, states: type[StrEnum], events: type[StrEnum], machine: object
) -> None:
    assert set(declared) == {str(state) for state in states}
    assert {event for pairs in declared.values() for event in pairs} == {str(event) for event in events}
