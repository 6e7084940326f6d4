"""`Books`: what an account has become, as read from anywhere; and what a timeline makes of it, to hold against it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any
from uuid import UUID

from shared.domain.timeline import EntryKind, TimelineEntry
from tests.lives import Life

TICK = timedelta(microseconds=1)

Row = Any  # a value of the domain, a row, or a document: whatever has the columns for attributes
Ledger = tuple[datetime, str, int, int]  # when, of which kind, how much, the balance after it


@dataclass(frozen=True)
class Bill:
    """An invoice. `id` is None of those that were opened after the books were first looked at."""

    id: UUID | None
    plan: str
    opened_at: datetime
    amount_minor: int
    currency: str
    due_at: datetime
    period: tuple[datetime | None, datetime | None]
    status: str = "open"
    voided_at: datetime | None = None


@dataclass
class Books:
    """All that a timeline may tell of."""

    account: tuple[str, str | None]
    subscription: tuple[str, datetime | None, str | None] | None  # status, end of grace, why it ended
    periods: list[tuple[str, datetime, datetime]]
    invoices: list[Bill]
    ledger: list[Ledger]
    left: Counter[datetime | None]  # credits by the expiry of what they are part of

    @classmethod
    def of(
        cls,
        *,
        account: Row,
        subscription: Row | None,
        periods: Iterable[Row],
        invoices: Iterable[Row],
        ledger: Iterable[Row],
        grants: Iterable[Row],
        slugs: Mapping[UUID, str] | None = None,
    ) -> "Books":
        """slugs: of the plans, where rows have a plan's id and not its name."""

        def plan(row: Row) -> str:
            return row.plan if slugs is None else slugs[row.plan_id]

        left: Counter[datetime | None] = Counter()
        for grant in grants:
            left[grant.expires_at] += grant.remaining
        sub = subscription
        return cls(
            account=(account.status, account.status_reason),
            subscription=None if sub is None else (sub.status, sub.grace_ends_at, sub.end_reason),
            periods=sorted((plan(row), row.starts_at, row.ends_at) for row in periods),
            invoices=[
                Bill(
                    id=row.id,
                    plan=plan(row),
                    opened_at=row.opened_at,
                    amount_minor=row.amount_minor,
                    currency=row.currency,
                    due_at=row.due_at,
                    period=(row.period_starts_at, row.period_ends_at),
                    status=row.status,
                    voided_at=row.voided_at,
                )
                for row in invoices
            ],
            ledger=[(row.effective_at, row.kind, row.amount, row.balance_after) for row in ledger],
            left=+left,
        )

    @classmethod
    def of_life(cls, life: Life) -> "Books":
        return cls.of(
            account=life.account,
            subscription=max(life.subscriptions.values(), key=lambda sub: (sub.is_live, sub.started_at, sub.id)),
            periods=life.periods.values(),
            invoices=life.invoices.values(),
            ledger=life.ledger,
            grants=life.grants.values(),
            slugs={plan.id: plan.slug for plan in life.rules.plans.values()},
        )

    def as_seen_from(self, start: "Books") -> "Books":
        """Comparable to other books that began as `start`: in one order, and without ids that were given since."""
        known = {bill.id for bill in start.invoices}
        bills = [bill if bill.id in known else replace(bill, id=None) for bill in self.invoices]
        return replace(self, periods=sorted(self.periods), invoices=sorted(bills, key=str), left=+self.left)

    # --- a timeline, entry by entry

    def become(self, entry: TimelineEntry) -> None:
        """Let what an entry tells happen to these books."""
        match entry.kind:
            case EntryKind.PERIOD_OPENED:
                self.periods.append(period_of(entry))
            case EntryKind.PERIOD_EXTENDED | EntryKind.PERIOD_CUT:
                plan, starts_at, ends_at = period_of(entry)
                (before,) = [period for period in self.periods if period[:2] == (plan, starts_at)]
                assert (ends_at > before[2]) == (entry.kind is EntryKind.PERIOD_EXTENDED)
                self.periods.remove(before)
                if starts_at < ends_at:
                    self.periods.append((plan, starts_at, ends_at))
            case EntryKind.INVOICE_OPENED:
                assert entry.invoice_id is None, "nothing has this id yet"
                self.invoices.append(bill_of(entry, opened_at=entry.at))
            case EntryKind.INVOICE_VOIDED:
                (bill,) = [bill for bill in self.invoices if same_bill(bill, entry)]
                assert bill == bill_of(entry, opened_at=bill.opened_at)
                self.invoices[self.invoices.index(bill)] = replace(bill, status="void", voided_at=entry.at)
            case EntryKind.SUBSCRIPTION_ACTIVATED:
                self.subscription = ("active", None, None)
            case EntryKind.SUBSCRIPTION_PAST_DUE | EntryKind.GRACE_EXTENDED:
                assert self.subscription is not None
                assert (self.subscription[0] == "past_due") == (entry.kind is EntryKind.GRACE_EXTENDED)
                self.subscription = ("past_due", entry.grace_ends_at, None)
            case EntryKind.SUBSCRIPTION_ENDED:
                self.subscription = ("ended", None, entry.reason)
            case EntryKind.ACCOUNT_STATUS_CHANGED:
                assert entry.status is not None
                assert entry.status != self.account[0]
                self.account = (entry.status, entry.reason)
            case EntryKind.CREDITS_SEEDED:
                self.post(entry, "seed")
                self.left[entry.expires_at] += entry.amount or 0
            case EntryKind.CREDITS_EXPIRED:
                self.post(entry, "expire")
                self.left[entry.at] += entry.amount or 0
            case EntryKind.CREDITS_CARRIED_OVER:
                self.left[entry.at] -= entry.amount or 0
                self.left[entry.expires_at] += entry.amount or 0

    def post(self, entry: TimelineEntry, kind: str) -> None:
        assert entry.amount is not None
        assert entry.balance_after is not None
        self.ledger.append((entry.at, kind, entry.amount, entry.balance_after))


def period_of(entry: TimelineEntry) -> tuple[str, datetime, datetime]:
    assert entry.plan is not None
    assert entry.period_starts_at is not None
    assert entry.period_ends_at is not None
    return entry.plan, entry.period_starts_at, entry.period_ends_at


def bill_of(entry: TimelineEntry, *, opened_at: datetime) -> Bill:
    assert entry.plan is not None
    assert entry.amount_minor is not None
    assert entry.currency is not None
    assert entry.due_at is not None
    return Bill(
        id=entry.invoice_id,
        plan=entry.plan,
        opened_at=opened_at,
        amount_minor=entry.amount_minor,
        currency=entry.currency,
        due_at=entry.due_at,
        period=(entry.period_starts_at, entry.period_ends_at),
    )


def same_bill(bill: Bill, entry: TimelineEntry) -> bool:
    return bill.id == entry.invoice_id and (bill.id is not None or bill.period[0] == entry.period_starts_at)


def assert_foretold(
    entries: Sequence[TimelineEntry],
    *,
    observed: Callable[[], Books],
    live_until: Callable[[datetime], object],
    until: datetime,
) -> None:
    """Time passes, nobody does anything, and everything happens as foretold: not a moment earlier, and no more."""
    start = observed()
    expected = deepcopy(start)
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries), "in order"
    for at, together in groupby(entries, key=attrgetter("at")):
        live_until(at - TICK)
        assert observed().as_seen_from(start) == expected.as_seen_from(start), f"a moment before {at}"
        for entry in together:
            expected.become(entry)
        live_until(at)
        assert observed().as_seen_from(start) == expected.as_seen_from(start), f"at {at}"
    live_until(until)
    assert observed().as_seen_from(start) == expected.as_seen_from(start), f"until {until}"
