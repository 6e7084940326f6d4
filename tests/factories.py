"""Makers for tests: plans, rules, and `Life`, one account that lives in the pure core by the real verbs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from shared.domain import lifecycle
from shared.domain.account import FULL_ACCESS, Account, AccountState, AccountStatus
from shared.domain.calendar import Interval
from shared.domain.credits import CreditGrant, CreditTransaction, GrantSource
from shared.domain.invoice import Invoice, InvoiceStatus, PaymentMethod
from shared.domain.plan import SEED_PLANS, Assigner, Plan, Rollover, Rules, TrialEnd
from shared.domain.subscription import Period, Subscription, SubscriptionStatus
from shared.ids import new_id

Table = Mapping[str, tuple[object, ...]]


def cases(table: Table) -> list[Any]:
    """A table of rows by the rule that each one shows, as parameters with that rule for id."""
    return [pytest.param(*row, id=rule) for rule, row in table.items()]


def on(text: str) -> datetime:
    """An instant in UTC, `2026-01-31` or `2026-01-31 09:30`; a day without a time means its noon."""
    instant = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return instant if len(text) > len("2026-01-31") else instant.replace(hour=12)


# --- plans and rules ----------------------------------------------------------------------------


def plan(slug: str = "basic", **terms: Any) -> Plan:
    """A plan without a price, monthly, that anybody may hand out, except for `terms`."""
    defaults: dict[str, Any] = {
        "id": new_id(),
        "slug": slug,
        "name": slug.title(),
        "price_minor": 0,
        "currency": "USD",
        "interval": Interval.MONTH,
        "interval_count": 1,
        "trial_days": 0,
        "credits_per_month": 100,
        "credit_rollover": Rollover.NONE,
        "credit_rollover_cap": None,
        "trial_end": TrialEnd.SUSPEND,
        "grace_days": 7,
        "assignable_by": frozenset(Assigner),
    }
    return Plan(**(defaults | terms))


def catalogue() -> list[Plan]:
    """The plans that a fresh system is seeded with."""
    return [
        plan(
            seed.slug,
            price_minor=seed.price_minor,
            credits_per_month=seed.credits_per_month,
            assignable_by=frozenset(seed.assignable_by),
            trial_days=seed.trial_days,
        )
        for seed in SEED_PLANS
    ]


def rules(plans: Iterable[Plan], **terms: Any) -> Rules:
    """Rules over these plans; ten days for an undecided transfer and fourteen to pay, except for `terms`."""
    defaults: dict[str, Any] = {"transfer_grace_days": 10, "invoice_due_days": 14, "new_id": new_id}
    return Rules(plans={one.id: one for one in plans}, **(defaults | terms))


def grant(amount: int = 100, **terms: Any) -> CreditGrant:
    """A grant that lasts for ever, given by an admin on New Year's Day, except for `terms`."""
    defaults: dict[str, Any] = {
        "id": new_id(),
        "account_id": UUID(int=1),
        "source": "adjust",
        "remaining": amount,
        "held": 0,
        "priority": 20,
        "effective_at": on("2026-01-01"),
        "expires_at": None,
    }
    return CreditGrant(amount=amount, **(defaults | terms))


# --- a life in the pure core --------------------------------------------------------------------


def as_loaded(state: AccountState) -> AccountState:
    """What is left of a state when it has been written and is loaded again."""
    live = state.live

    def is_loaded(invoice: Invoice) -> bool:
        if invoice.status is InvoiceStatus.PAID:
            return (
                live is not None
                and invoice.subscription_id == live.id
                and invoice.period_starts_at is not None
                and invoice.period_starts_at >= live.current_period_ends_at
            )
        return invoice.status is InvoiceStatus.OPEN

    return replace(
        state,
        subscriptions=() if live is None else (live,),
        periods=() if live is None else state.periods[-1:],
        invoices=tuple(sorted(filter(is_loaded, state.invoices), key=lambda invoice: invoice.id)),
        grants=tuple(sorted((one for one in state.grants if one.remaining), key=lambda one: one.id)),
        transactions=(),
    )


@dataclass
class Life:
    """An account and all that was ever written of it.

    Each verb first lets time pass up to `at`, as every operation does, then acts, then forgets what a
    reload would not find; `subscriptions`, `periods`, `invoices`, `grants` and `ledger` keep everything.
    """

    rules: Rules
    now: datetime
    time_zone: str = "UTC"
    state: AccountState = field(init=False)
    subscriptions: dict[UUID, Subscription] = field(default_factory=dict)
    periods: dict[tuple[UUID, datetime], Period] = field(default_factory=dict)
    invoices: dict[UUID, Invoice] = field(default_factory=dict)
    grants: dict[UUID, CreditGrant] = field(default_factory=dict)
    ledger: list[CreditTransaction] = field(default_factory=list)
    deeds: int = 0

    @classmethod
    def of(cls, rules: Rules, at: datetime, *, start_on: str = "free-trial", time_zone: str = "UTC") -> "Life":
        """An account that signs up at `at`, on the plan of that name."""
        life = cls(rules, at, time_zone)
        account = Account(
            id=rules.new_id(),
            status=AccountStatus.TRIAL,
            status_reason=None,
            time_zone=time_zone,
            balance_credits=0,
            ledger_seq=0,
            acted_at=at,
        )
        life.state = AccountState(account=account)
        life._become(lifecycle.sign_up(account, rules, life.plan(start_on), at=at))
        return life

    def until(self, at: datetime, *, steps: int | None = None) -> None:
        """Let time pass."""
        self._become(lifecycle.advance(self.state, self.rules, as_of=at, steps=steps))
        self.now = max(self.now, at)

    def checkout(self, at: datetime, slug: str, method: PaymentMethod = PaymentMethod.MANUAL) -> Invoice | None:
        self._live_until(at)
        state, invoice = lifecycle.choose_plan(self.state, self.rules, self.plan(slug), method=method, at=at)
        self._become(state)
        return invoice

    def pay(self, at: datetime, invoice: Invoice | None = None, method: PaymentMethod = PaymentMethod.MANUAL) -> None:
        """Pay an invoice; the newest open one if none is named."""
        self._live_until(at)
        self.deeds += 1
        self._become(
            lifecycle.settle(
                self.state,
                self.rules,
                invoice_id=(invoice or self._newest_open()).id,
                method=method,
                external_payment_id=f"payment {self.deeds}",
                at=at,
            )
        )

    def buy(self, at: datetime, slug: str) -> None:
        """Check out and pay at the same instant."""
        self.pay(at, self.checkout(at, slug))

    def submit(self, at: datetime, invoice: Invoice | None = None) -> None:
        """Submit a bank transfer for an invoice; the newest open one if none is named."""
        self._live_until(at)
        invoice_id = (invoice or self._newest_open()).id
        self._become(lifecycle.transfer_submitted(self.state, invoice_id, at=at))

    def reject(self, at: datetime, invoice: Invoice | None = None) -> None:
        """Reject the bank transfer for an invoice; the newest open one if none is named."""
        self._live_until(at)
        invoice_id = (invoice or self._newest_open()).id
        self._become(lifecycle.transfer_rejected(self.state, self.rules, invoice_id, at=at))

    def cancel(self, at: datetime, *, at_period_end: bool = True) -> None:
        self._live_until(at)
        self._become(lifecycle.cancel(self.state, at=at, at_period_end=at_period_end))

    def cancel_now(self, at: datetime) -> None:
        self.cancel(at, at_period_end=False)

    def assign(self, at: datetime, slug: str, *, at_period_end: bool = False) -> None:
        self._live_until(at)
        self._become(
            lifecycle.assign_plan(self.state, self.rules, self.plan(slug), at=at, at_period_end=at_period_end)
        )

    def assign_next(self, at: datetime, slug: str) -> None:
        self.assign(at, slug, at_period_end=True)

    def adjust(self, at: datetime, amount: int, expires_at: datetime | None = None) -> None:
        self._live_until(at)
        self.deeds += 1
        self._become(
            lifecycle.adjust_credits(
                self.state,
                self.rules,
                amount,
                admin_id=UUID(int=7),
                reason="a test",
                idempotency_key=f"adjust {self.deeds}",
                expires_at=expires_at,
                at=at,
            )
        )

    # --- what became of it

    def plan(self, slug: str) -> Plan:
        found = self.rules.plan_by_slug(slug)
        assert found is not None, slug
        return found

    @property
    def account(self) -> Account:
        return self.state.account

    @property
    def live(self) -> Subscription:
        assert self.state.live is not None
        return self.state.live

    @property
    def open_invoices(self) -> list[Invoice]:
        return [invoice for invoice in self.invoices.values() if invoice.status is InvoiceStatus.OPEN]

    def period_list(self) -> list[Period]:
        return sorted(self.periods.values(), key=lambda period: period.starts_at)

    def access_ends_at(self) -> datetime | None:
        return lifecycle.access_ends_at(self.state, self.rules)

    def _newest_open(self) -> Invoice:
        return self.open_invoices[-1]

    def _live_until(self, at: datetime) -> None:
        """As `account_state.open_account` does it."""
        self.until(at)
        self.state = lifecycle.acted(self.state, at)

    def _become(self, decided: AccountState) -> None:
        """Write the difference, as `account_state.write` does, and load again."""
        assert decided.account.acted_at >= self.state.account.acted_at, "nothing happens in the past"
        withdrawn = {(one.subscription_id, one.starts_at) for one in self.state.periods}
        for key in withdrawn - {(one.subscription_id, one.starts_at) for one in decided.periods}:
            del self.periods[key]
        self.subscriptions |= {one.id: one for one in decided.subscriptions}
        self.periods |= {(one.subscription_id, one.starts_at): one for one in decided.periods}
        self.invoices |= {one.id: one for one in decided.invoices}
        self.grants |= {one.id: one for one in decided.grants}
        self.ledger += decided.transactions
        self.state = as_loaded(decided)


def loses_access_at(state: AccountState, rules: Rules) -> datetime | None:
    """When full access ends if nobody does anything, found by letting time pass one transition at a time."""
    while state.account.status in FULL_ACCESS:
        sub = state.live
        assert sub is not None
        undisturbed = not sub.cancel_at_period_end and sub.next_plan_id is None
        if sub.status is SubscriptionStatus.ACTIVE and sub.price_minor == 0 and undisturbed:
            return None  # nothing is ever owed
        due = lifecycle.next_transition(state)
        assert due is not None
        state = as_loaded(lifecycle.advance(state, rules, as_of=due[0], steps=1))
        if state.account.status not in FULL_ACCESS:
            return due[0]
    return None


def assert_sound(life: Life) -> None:
    """What is true of every account at any time."""
    account, live = life.account, life.state.live
    periods = life.period_list()
    assert all(period.starts_at < period.ends_at for period in periods), "a period has length"
    assert all(a.ends_at <= b.starts_at for a, b in pairwise(periods)), "no two periods overlap"
    for sub in life.subscriptions.values():
        own = [period for period in periods if period.subscription_id == sub.id]
        assert all(a.ends_at == b.starts_at == b.previous_ends_at for a, b in pairwise(own)), "no gap"
        assert not own or (own[0].starts_at, own[0].previous_ends_at) == (sub.started_at, None)
        assert sub.is_live or not own or own[-1].ends_at == sub.ended_at, "the last period ends with its subscription"
    assert sum(sub.is_live for sub in life.subscriptions.values()) == (live is not None), "one live at most"

    assert [row.seq for row in life.ledger] == list(range(1, len(life.ledger) + 1)), "numbered without a gap"
    sums = list(accumulate(row.amount for row in life.ledger))
    assert [row.balance_after for row in life.ledger] == sums, "each row carries the sum"
    assert all(after >= 0 for after in sums), "never below zero"
    assert account.balance_credits == (sums[-1] if sums else 0) == sum(one.remaining for one in life.grants.values())
    assert len({(row.idempotency_key, row.line) for row in life.ledger}) == len(life.ledger), "posted once"
    assert [row.effective_at for row in life.ledger] == sorted(row.effective_at for row in life.ledger), "in order"
    seeds = [one for one in life.grants.values() if one.source is GrantSource.SEED]
    assert len({(one.subscription_id, one.phase, one.credit_month_index) for one in seeds}) == len(seeds), "seeded once"
    assert all(one.expires_at is None or one.effective_at < one.expires_at for one in life.grants.values())
    assert not [g for g in life.grants.values() if g.remaining and g.expires_at and g.expires_at <= life.now], "swept"

    assert account.acted_at <= life.now
    due = lifecycle.next_transition(life.state)
    assert due is None or due[0] > life.now, "nothing is due"
    assert (live is not None) == (account.status in FULL_ACCESS), "access goes with a live subscription"
    if live is not None:
        by_status = {"trialing": "trial", "active": "active", "past_due": "past_due"}
        assert by_status[live.status] == account.status
        assert (live.grace_ends_at is not None) == (live.status is SubscriptionStatus.PAST_DUE)
        assert live.current_period_starts_at <= life.now < live.current_period_ends_at
        assert periods[-1].ends_at == live.current_period_ends_at
        assert (live.status is SubscriptionStatus.ACTIVE) <= (live.activated_at is not None)
    for invoice in life.invoices.values():
        assert (invoice.status is InvoiceStatus.PAID) == (invoice.paid_at is not None)
        assert (invoice.status is InvoiceStatus.VOID) == (invoice.voided_at is not None)
