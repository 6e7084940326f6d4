"""`Life`: one account that lives in the pure core by the real verbs; deeds and generated lives, for properties."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate, pairwise
from typing import Any, Protocol
from uuid import UUID

from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from shared.domain import lifecycle
from shared.domain.account import FULL_ACCESS, Account, AccountState, AccountStatus, Action, require_access
from shared.domain.calendar import Interval
from shared.domain.credits import (
    LASTING_PRIORITY,
    CreditGrant,
    CreditTransaction,
    GrantSource,
    Source,
    TransactionKind,
    burn_down_order,
    take,
)
from shared.domain.event import Event
from shared.domain.invoice import Invoice, InvoiceStatus, PaymentMethod
from shared.domain.plan import Assigner, Plan, Rollover, Rules, TrialEnd
from shared.domain.subscription import Period, Subscription, SubscriptionStatus
from shared.errors import BillingError, HoldNotOpen
from tests.factories import on, plan, rules

ADMIN_ID = UUID(bytes=b"an administrator")
USER_ID = UUID(bytes=b"the owner of it.")


class Living(Protocol):
    """What is done to an account, each deed at its instant, in order of time: in the pure core, or in a database."""

    @property
    def open_invoices(self) -> list[Invoice]:
        """In the order in which they were opened."""

    def until(self, at: datetime) -> None: ...
    def checkout(self, at: datetime, slug: str) -> Invoice | None: ...
    def pay(self, at: datetime, invoice: Invoice | None = None, method: PaymentMethod = ...) -> None: ...
    def buy(self, at: datetime, slug: str) -> None: ...
    def submit(self, at: datetime, invoice: Invoice | None = None) -> None: ...
    def approve(self, at: datetime, invoice: Invoice | None = None) -> None: ...
    def reject(self, at: datetime, invoice: Invoice | None = None) -> None: ...
    def cancel(self, at: datetime, *, at_period_end: bool = True) -> None: ...
    def assign(self, at: datetime, slug: str, *, at_period_end: bool = False) -> None: ...
    def adjust(self, at: datetime, amount: int, expires_at: datetime | None = None) -> None: ...
    def consume(self, at: datetime, amount: int) -> None: ...
    def hold(self, at: datetime, amount: int, ttl: timedelta) -> None: ...
    def capture(self, at: datetime) -> None: ...
    def release(self, at: datetime) -> None: ...


class Hold(Struct, frozen=True, kw_only=True):
    """One row of `holds`, and what it reserves from which grants."""

    id: UUID
    account_id: UUID
    status: str
    amount: int
    captured_amount: int
    idempotency_key: str
    held_at: datetime
    expires_at: datetime
    resolved_at: datetime | None
    parts: tuple[tuple[UUID, int], ...]


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
        events=(),
    )


@dataclass
class Life:
    """An account and all that was ever written of it.

    Each verb acts on the account brought up to `at`, as every operation does, and then forgets what a reload
    would not find; `subscriptions`, `periods`, `invoices`, `grants`, `ledger` and `holds` keep everything.
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
    events: list[Event] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
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
        for hold in self.holds:
            if hold.status == "open" and hold.expires_at <= at:
                self._resolve(hold, "expired", hold.expires_at)
        self._become(lifecycle.advance(self.state, self.rules, as_of=at, steps=steps))
        self.now = max(self.now, at)

    def checkout(self, at: datetime, slug: str, method: PaymentMethod = PaymentMethod.MANUAL) -> Invoice | None:
        state = self._opened(at)
        require_access(Action.PAY, status=state.account.status, access_ends_at=None, now=at)
        state, invoice = lifecycle.choose_plan(state, self.rules, self.plan(slug), method=method, at=at)
        self._become(state)
        return invoice

    def pay(self, at: datetime, invoice: Invoice | None = None, method: PaymentMethod = PaymentMethod.MANUAL) -> None:
        """Pay an invoice; the newest open one if none is named."""
        state = self._opened(at)
        self.deeds += 1
        self._become(
            lifecycle.settle(
                state,
                self.rules,
                invoice_id=(invoice or self.open_invoices[-1]).id,
                method=method,
                external_payment_id=f"payment {self.deeds} of {self.account.id}",
                at=at,
            )
        )

    def buy(self, at: datetime, slug: str) -> None:
        """Check out and pay at the same instant."""
        self.pay(at, self.checkout(at, slug))

    def submit(self, at: datetime, invoice: Invoice | None = None) -> None:
        """Submit a bank transfer for an invoice; the newest open one if none is named."""
        state = self._opened(at)
        self._become(lifecycle.transfer_submitted(state, (invoice or self.open_invoices[-1]).id, at=at))

    def approve(self, at: datetime, invoice: Invoice | None = None) -> None:
        """Approve the bank transfer for an invoice; the newest open one if none is named."""
        self.pay(at, invoice, PaymentMethod.BANK_TRANSFER)

    def reject(self, at: datetime, invoice: Invoice | None = None) -> None:
        """Reject the bank transfer for an invoice; the newest open one if none is named."""
        state = self._opened(at)
        self._become(lifecycle.transfer_rejected(state, self.rules, (invoice or self.open_invoices[-1]).id, at=at))

    def cancel(self, at: datetime, *, at_period_end: bool = True) -> None:
        self._become(lifecycle.cancel(self._opened(at), at=at, at_period_end=at_period_end))

    def cancel_now(self, at: datetime) -> None:
        self.cancel(at, at_period_end=False)

    def assign(self, at: datetime, slug: str, *, at_period_end: bool = False) -> None:
        state = self._opened(at)
        self._become(lifecycle.assign_plan(state, self.rules, self.plan(slug), at=at, at_period_end=at_period_end))

    def assign_next(self, at: datetime, slug: str) -> None:
        self.assign(at, slug, at_period_end=True)

    def adjust(self, at: datetime, amount: int, expires_at: datetime | None = None) -> None:
        state = self._opened(at)
        self.deeds += 1
        posting: dict[str, Any] = {
            "key": f"adjust:{self.rules.new_id().hex}",
            "kind": TransactionKind.ADJUST,
            "source": Source.ADMIN,
            "source_id": ADMIN_ID,
            "reason": "goodwill",
        }
        if amount < 0:
            taken = [(one, -part) for one, part in take(state.grants, -amount, at=at)]
        else:
            grant = CreditGrant(
                id=self.rules.new_id(),
                account_id=self.account.id,
                source=GrantSource.ADJUST,
                amount=amount,
                remaining=0,
                held=0,
                priority=LASTING_PRIORITY,
                effective_at=at,
                expires_at=expires_at,
            )
            state = replace(state, grants=(*state.grants, grant))
            taken = [(grant, amount)]
        self._post(state, at, taken, **posting)

    def consume(self, at: datetime, amount: int) -> None:
        self._use_credits(at)
        taken = [(one, -part) for one, part in take(self.state.grants, amount, at=at)]
        self._post(self.state, at, taken, key=f"consume:call {self.deeds}", source=Source.USER, source_id=USER_ID)

    def hold(self, at: datetime, amount: int, ttl: timedelta) -> None:
        self._use_credits(at)
        taken = take(self.state.grants, amount, at=at)
        hold = Hold(
            id=self.rules.new_id(),
            account_id=self.account.id,
            status="open",
            amount=amount,
            captured_amount=0,
            idempotency_key=f"hold {self.deeds}",
            held_at=at,
            expires_at=min([at + ttl, *(one.expires_at for one, _ in taken if one.expires_at is not None)]),
            resolved_at=None,
            parts=tuple((one.id, part) for one, part in taken),
        )
        self.holds.append(hold)
        self._reserve(hold.parts, 1)

    def capture(self, at: datetime) -> None:
        """Take half of what the newest hold reserves, if there ever was one."""
        self.until(at)
        if not self.holds:
            return
        hold = self.holds[-1]
        left = (hold.amount + 1) // 2
        if hold.status == "captured":
            return
        if hold.status != "open":
            raise HoldNotOpen("it is resolved")
        self._require_use(at)
        self._resolve(hold, "captured", at, captured_amount=left)
        taken = []
        reserved = {one.id: one for one in self.state.grants}
        for grant_id, part in sorted(hold.parts, key=lambda one: burn_down_order(reserved[one[0]])):
            if left:
                taken.append((reserved[grant_id], -min(part, left)))
                left -= min(part, left)
        self._post(self.state, at, taken, key=f"capture:{hold.id}", source=Source.HOLD, source_id=hold.id)

    def release(self, at: datetime) -> None:
        """Free what the newest hold reserves, if there ever was one."""
        self.until(at)
        if self.holds and self.holds[-1].status == "captured":
            raise HoldNotOpen("it was captured")
        if self.holds and self.holds[-1].status == "open":
            self._resolve(self.holds[-1], "released", at)

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

    def _use_credits(self, at: datetime) -> None:
        self.deeds += 1
        self.until(at)
        self._require_use(at)

    def _require_use(self, at: datetime) -> None:
        require_access(Action.USE, status=self.account.status, access_ends_at=self.access_ends_at(), now=at)

    def _post(
        self,
        state: AccountState,
        at: datetime,
        moved: list[tuple[CreditGrant, int]],
        *,
        key: str,
        kind: TransactionKind = TransactionKind.CONSUME,
        **posting: Any,
    ) -> None:
        for line, (grant, part) in enumerate(moved):
            state = lifecycle._replace_grant(state, grant, replace(grant, remaining=grant.remaining + part))
            state = lifecycle._post(
                state,
                grant_id=grant.id,
                kind=kind,
                amount=part,
                line=line,
                idempotency_key=key,
                effective_at=at,
                **posting,
            )
        self._become(state)

    def _resolve(self, hold: Hold, status: str, at: datetime, **changes: int) -> None:
        self.holds[self.holds.index(hold)] = replace(hold, status=status, resolved_at=at, **changes)
        self._reserve(hold.parts, -1)

    def _reserve(self, parts: tuple[tuple[UUID, int], ...], sign: int) -> None:
        state, held = self.state, dict(parts)
        for one in state.grants:
            if one.id in held:
                state = lifecycle._replace_grant(state, one, replace(one, held=one.held + sign * held[one.id]))
        self._become(state)

    def _opened(self, at: datetime) -> AccountState:
        """The state to act on, as `account_state.open_account` makes it."""
        self.until(at)
        return lifecycle.acted(self.state, at)

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
        self.events += decided.events
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
    reserved = Counter[UUID]()
    for hold in life.holds:
        assert (hold.status == "open") == (hold.resolved_at is None)
        if hold.status == "open":
            assert life.now < hold.expires_at
            reserved.update(dict(hold.parts))
    assert {one.id: one.held for one in life.grants.values() if one.held} == reserved, "held for open holds alone"

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


# --- generated lives ------------------------------------------------------------------------------

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]
BOUGHT = frozenset({Assigner.CHECKOUT, Assigner.ADMIN})
# The most common ones first: generated lives prefer what stands first.
INTERVALS = [Interval.MONTH, Interval.YEAR, Interval.WEEK, Interval.DAY]


def with_newest_invoice(deed: Callable[[Living, datetime, Invoice], object]) -> Callable[[Living, datetime], None]:
    """Do it to the newest open invoice, if there is one."""

    def done(life: Living, at: datetime) -> None:
        life.until(at)
        if found := life.open_invoices:
            deed(life, at, found[-1])

    return done


def with_newest_transfer(deed: Callable[[Living, datetime, Invoice], object]) -> Callable[[Living, datetime], None]:
    """Do it to the newest open invoice with an undecided bank transfer, if there is one."""

    def done(life: Living, at: datetime) -> None:
        life.until(at)
        if found := [one for one in life.open_invoices if one.transfer_pending_since is not None]:
            deed(life, at, found[-1])

    return done


def pay_oldest(life: Living, at: datetime) -> None:
    life.until(at)
    if found := life.open_invoices:
        life.pay(at, found[0])


DEEDS: dict[str, Callable[[Living, datetime], object]] = {
    "nothing": lambda life, at: life.until(at),
    "checkout one": lambda life, at: life.checkout(at, "one"),
    "checkout two": lambda life, at: life.checkout(at, "two"),
    "checkout free": lambda life, at: life.checkout(at, "free"),
    "buy one": lambda life, at: life.buy(at, "one"),
    "buy two": lambda life, at: life.buy(at, "two"),
    "pay the newest": with_newest_invoice(lambda life, at, it: life.pay(at, it, PaymentMethod.SANDBOX)),
    "pay the oldest": pay_oldest,
    "submit": with_newest_invoice(lambda life, at, it: life.submit(at, it)),
    "approve": with_newest_transfer(lambda life, at, it: life.approve(at, it)),
    "reject": with_newest_transfer(lambda life, at, it: life.reject(at, it)),
    "cancel": lambda life, at: life.cancel(at),
    "cancel now": lambda life, at: life.cancel(at, at_period_end=False),
    "assign one": lambda life, at: life.assign(at, "one"),
    "assign two next": lambda life, at: life.assign(at, "two", at_period_end=True),
    "assign free next": lambda life, at: life.assign(at, "free", at_period_end=True),
    "give": lambda life, at: life.adjust(at, 50),
    "give for a while": lambda life, at: life.adjust(at, 50, at + timedelta(days=20)),
    "take": lambda life, at: life.adjust(at, -30),
    "consume little": lambda life, at: life.consume(at, 3),
    "consume much": lambda life, at: life.consume(at, 60),
    "hold": lambda life, at: life.hold(at, 20, timedelta(hours=5)),
    "hold for a day": lambda life, at: life.hold(at, 45, timedelta(days=1)),
    "capture": lambda life, at: life.capture(at),
    "release": lambda life, at: life.release(at),
}
# Weighted towards what leads far; shrinks to nothing.
LIKELY = [*DEEDS, "buy one", "buy two", "pay the newest", "submit", "submit", "reject", "checkout two"]


def do(life: Living, deed: str, at: datetime) -> str | None:
    """Do it, unless it is refused; the code of the refusal."""
    try:
        DEEDS[deed](life, at)
    except BillingError as refusal:
        return refusal.code
    return None


class CountedIds:
    """Ids by the order in which they are asked for: lives of the same decisions are equal in everything."""

    def __init__(self, first: int = 1) -> None:
        self.next = first

    def __call__(self) -> UUID:
        self.next += 1
        return UUID(int=self.next - 1)


@dataclass(frozen=True)
class History:
    """What is done to an account, each deed a while after the one before, and under which terms."""

    plans: list[Plan]
    transfer_grace_days: int
    start: datetime
    time_zone: str
    deeds: list[tuple[timedelta, str]]

    def rules(self, new_id: Callable[[], UUID]) -> Rules:
        return rules(self.plans, transfer_grace_days=self.transfer_grace_days, new_id=new_id)

    def begin(self, first_id: int = 1) -> Life:
        return Life.of(self.rules(CountedIds(first_id)), self.start, time_zone=self.time_zone)


def stages(history: History) -> Iterator[Life]:
    """The life after each deed."""
    life = history.begin()
    yield life
    for gap, deed in history.deeds:
        do(life, deed, life.now + gap)
        yield life


@st.composite
def plans(draw: st.DrawFn, slug: str, *, priced: bool = False, trial: bool = False) -> Plan:
    rollover = draw(st.sampled_from(Rollover))
    return plan(
        slug,
        id=UUID(bytes=slug.encode().ljust(16, b".")),
        price_minor=10_00 if priced else 0,
        interval=draw(st.sampled_from(INTERVALS)),
        interval_count=draw(st.integers(1, 3)),
        trial_days=draw(st.integers(1, 45)) if trial else 0,
        trial_end=draw(st.sampled_from(TrialEnd)),
        credits_per_month=draw(st.sampled_from([100, 7, 0])),
        credit_rollover=rollover,
        credit_rollover_cap=draw(st.integers(1, 150)) if rollover is Rollover.CAP else None,
        grace_days=draw(st.integers(0, 28)),
        assignable_by=BOUGHT if priced else frozenset(Assigner),
    )


catalogues = st.tuples(
    plans("free-trial", trial=True), plans("free"), plans("one", priced=True), plans("two", priced=True)
).map(list)
transfer_graces = st.sampled_from([10, 3, 0])
gaps = st.one_of(
    st.just(timedelta()),
    st.integers(0, 72).map(lambda hours: timedelta(hours=hours)),
    st.integers(0, 60).map(lambda days: timedelta(days=days)),
)
starts = st.one_of(
    st.sampled_from([on("2026-01-31"), on("2028-02-29 00:00"), on("2026-03-28 01:30"), on("2011-12-29 09:00")]),
    st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
)


@st.composite
def histories(draw: st.DrawFn, *, longest: int = 12) -> History:
    return History(
        plans=draw(catalogues),
        transfer_grace_days=draw(transfer_graces),
        start=draw(starts),
        time_zone=draw(st.sampled_from(ZONES)),
        deeds=draw(st.lists(st.tuples(gaps, st.sampled_from(LIKELY)), max_size=longest)),
    )
