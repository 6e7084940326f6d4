"""The database's consume, batch, hold, capture, release, adjust and reverse against the pure model, step by step.

The model keeps grants as values and decides with `take`; the database decides in SQL. Whatever is done,
in whatever order, and whether or not the jobs have swept, both have the same credits in the same grants.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from shared.db import credits
from shared.db.credits import release_due_holds
from shared.domain.credits import LASTING_PRIORITY, CreditGrant, GrantSource, burn_down_order, spendable, take
from shared.errors import (
    AlreadyReversed,
    BillingError,
    HoldNotOpen,
    IdempotencyKeyReused,
    InsufficientCredits,
    InvalidInput,
    NotReversible,
)
from tests.office import Office

gifts = st.integers(40, 200)
amounts = st.integers(1, 90)
numbers = st.integers(0, 30)
minutes = st.integers(1, 60).map(lambda number: timedelta(minutes=number))
lifetimes = st.none() | st.integers(1, 60).map(lambda number: timedelta(minutes=number))


@dataclass
class Hold:
    """A hold of the model: what it reserves from which grants, and how it ended."""

    parts: list[tuple[UUID, int]]
    expires_at: datetime
    captured: int | None = None
    is_open: bool = True

    @property
    def amount(self) -> int:
        return sum(part for _, part in self.parts)


@dataclass
class Posting:
    """What one key moved: of each grant so much, and the balance after it."""

    parts: list[tuple[UUID, int]]
    balance: int
    reversed: bool = False

    @property
    def amount(self) -> int:
        return sum(part for _, part in self.parts)


class Model:
    """Grants, holds and postings as values; `take` decides."""

    def __init__(self) -> None:
        self.grants: dict[UUID, CreditGrant] = {}
        self.holds: dict[UUID, Hold] = {}
        self.postings: dict[str, Posting] = {}

    def available(self, now: datetime) -> int:
        return sum(spendable(grant, at=now) for grant in self.grants.values())

    def pass_time(self, now: datetime) -> None:
        for hold in self.holds.values():
            if hold.is_open and hold.expires_at <= now:
                self.free(hold)

    def free(self, hold: Hold) -> None:
        hold.is_open = False
        for grant_id, part in hold.parts:
            self.move(grant_id, held=-part)

    def move(self, grant_id: UUID, *, remaining: int = 0, held: int = 0) -> None:
        grant = self.grants[grant_id]
        self.grants[grant_id] = replace(grant, remaining=grant.remaining + remaining, held=grant.held + held)

    def balance(self, now: datetime) -> int:
        """What no expiry has taken or will take when what is due is applied."""
        return self.available(now) + sum(grant.held for grant in self.grants.values())

    def post(self, key: str, parts: list[tuple[UUID, int]], now: datetime) -> None:
        for grant_id, part in parts:
            self.move(grant_id, remaining=part)
        self.postings[key] = Posting(parts, self.balance(now))

    def take(self, key: str, amount: int, now: datetime) -> None:
        self.post(key, [(grant.id, -part) for grant, part in take(self.grants.values(), amount, at=now)], now)

    def give(self, key: str, grant: CreditGrant, now: datetime) -> None:
        self.grants[grant.id] = replace(grant, remaining=0)
        self.post(key, [(grant.id, grant.amount)], now)

    def consume(self, key: str, amount: int, now: datetime) -> int:
        """The balance after it, which is what it was when the key took credits before."""
        if key not in self.postings:
            self.take(key, amount, now)
        if self.postings[key].amount != -amount:
            raise IdempotencyKeyReused("model")
        return self.postings[key].balance

    def batch(self, items: list[tuple[str, int]], now: datetime, *, whole: bool) -> list[Any]:
        """Of each item the balance after it, or why it is refused."""
        before = self.grants.copy(), self.postings.copy()
        outcomes = [outcome(partial(self.consume, key, amount, now)) for key, amount in items]
        if whole and any(refused for _, refused in outcomes):
            self.grants, self.postings = before
        return [refused or balance for balance, refused in outcomes]

    def reverse(self, key: str, now: datetime) -> tuple[int, int]:
        """How much was moved, and how much of it expired at once."""
        if key not in self.postings:
            raise NotReversible("model")
        posting = self.postings[key]
        if posting.reversed:
            raise AlreadyReversed("model")
        moved = expired = 0
        for grant_id, part in posting.parts:
            grant = self.grants[grant_id]
            back = -min(part, spendable(grant, at=now))
            if back == 0:
                raise NotReversible("model")
            moved += back
            if back > 0 and grant.expires_at is not None and grant.expires_at <= now:
                expired += back
            else:
                self.move(grant_id, remaining=back)
        posting.reversed = True
        return moved, expired

    def hold(self, amount: int, ttl: timedelta, now: datetime) -> Hold:
        taken = take(self.grants.values(), amount, at=now)
        for grant, part in taken:
            self.move(grant.id, held=part)
        expiries = [grant.expires_at for grant, _ in taken if grant.expires_at is not None]
        return Hold([(grant.id, part) for grant, part in taken], min([now + ttl, *expiries]))

    def capture(self, key: str, hold: Hold, amount: int, now: datetime) -> None:
        if hold.captured == amount:
            return
        if not hold.is_open or hold.expires_at <= now:
            raise HoldNotOpen("model")
        if amount > hold.amount:
            raise InvalidInput("model")
        self.free(hold)
        hold.captured = amount
        parts = []
        for grant_id, part in sorted(hold.parts, key=lambda one: burn_down_order(self.grants[one[0]])):
            if taken := min(part, amount):
                parts.append((grant_id, -taken))
                amount -= taken
        self.post(key, parts, now)

    def release(self, hold: Hold) -> None:
        if hold.captured is not None:
            raise HoldNotOpen("model")
        if hold.is_open:
            self.free(hold)


def outcome(work: Any) -> tuple[Any, type[BillingError] | None]:
    try:
        return work(), None
    except BillingError as refusal:
        return None, type(refusal)


def machine(office: Office) -> type[RuleBasedStateMachine]:
    class Credits(RuleBasedStateMachine):
        holds: Bundle[UUID] = Bundle("holds")

        def __init__(self) -> None:
            super().__init__()
            self.who = office.sign_up()
            office.assign(self.who, "free")
            office.change("UPDATE accounts SET parked_at = now(), parked_reason = 'ended' WHERE kind = 'customer'")
            office.change(
                "UPDATE accounts SET parked_at = NULL, parked_reason = NULL WHERE id = %(id)s", id=self.who.account_id
            )
            self.model = Model()
            self.count = 0

        def db(self, function: Any, *arguments: Any, **named: Any) -> tuple[Any, type[BillingError] | None]:
            def work() -> Any:
                with office.database.transaction() as tx:
                    return function(office.asker(tx, self.who), *arguments, now=office.now, **named)

            return outcome(work)

        @initialize(them=st.lists(st.tuples(gifts, lifetimes), min_size=1, max_size=4))
        def begin(self, them: list[tuple[int, timedelta | None]]) -> None:
            for amount, lifetime in them:
                self.give(amount, lifetime)

        @rule(amount=gifts, lifetime=lifetimes)
        def add(self, amount: int, lifetime: timedelta | None) -> None:
            self.give(amount, lifetime)

        def give(self, amount: int, lifetime: timedelta | None) -> None:
            expires_at = None if lifetime is None else office.now + lifetime
            row = office.adjust(self.who, amount, expires_at)
            given = office.row(
                "SELECT id FROM credit_grants WHERE account_id = %(id)s ORDER BY id DESC LIMIT 1",
                id=self.who.account_id,
            )
            grant = CreditGrant(
                id=given.id,
                account_id=self.who.account_id,
                source=GrantSource.ADJUST,
                amount=amount,
                remaining=amount,
                held=0,
                priority=LASTING_PRIORITY,
                effective_at=office.now,
                expires_at=expires_at,
            )
            self.model.give(f"adjust:{row.id.hex}", grant, office.now)

        @rule(amount=amounts)
        def take_back(self, amount: int) -> None:
            row = office.adjust(self.who, -amount)
            _, refused = outcome(lambda: self.model.take(f"adjust:{row.id.hex}", amount, office.now))
            assert (row.problem or {}).get("code") == (refused and refused.code)

        @rule(amount=amounts)
        def consume(self, amount: int) -> None:
            self.count += 1
            self.spend(f"call {self.count}", amount)

        @rule(number=numbers, more=st.integers(0, 1))
        def consume_again(self, number: int, more: int) -> None:
            """A key that took credits takes none again; one that was refused may be used anew."""
            self.spend(*self.used(number, more))

        def used(self, number: int, more: int) -> tuple[str, int]:
            """A key that was used, mostly, and what it took, or more."""
            key = f"call {number % (self.count + 1)}"
            posting = self.model.postings.get(f"consume:{key}")
            return key, more - posting.amount if posting else 30

        def spend(self, key: str, amount: int) -> None:
            fresh = f"consume:{key}" not in self.model.postings
            done, refused = self.db(credits.consume, amount, key=key, reason=None)
            balance, expected = outcome(lambda: self.model.consume(f"consume:{key}", amount, office.now))
            assert refused == expected
            assert refused or (done.balance_credits, done.replayed) == (balance, not fresh)

        @rule(
            wanted=st.lists(amounts, max_size=5),
            again=st.lists(st.tuples(numbers, st.sampled_from([0, 0, 0, 1])), max_size=2),
            whole=st.booleans(),
        )
        def consume_many(self, wanted: list[int], again: list[tuple[int, int]], whole: bool) -> None:
            items = dict(self.used(*one) for one in again)
            for amount in wanted:
                self.count += 1
                items[f"call {self.count}"] = amount
            if items:
                asked = [credits.Item(key=key, amount=amount) for key, amount in sorted(items.items())]
                done, _ = self.db(credits.consume_batch, asked, all_or_nothing=whole)
                posted = [(f"consume:{one.key}", one.amount) for one in asked]
                fresh = [key not in self.model.postings for key, _ in posted]
                expected = self.model.batch(posted, office.now, whole=whole)
                assert [type(one.refusal) if one.refusal else one.balance_credits for one in done.items] == expected
                assert [one.refusal is None and not one.replayed for one in done.items] == [
                    new and isinstance(balance, int) for new, balance in zip(fresh, expected, strict=True)
                ]
                assert done.written == (not whole or all(isinstance(balance, int) for balance in expected))
                assert (done.available_credits, done.balance_credits) == (
                    self.model.available(office.now),
                    self.model.balance(office.now),
                )

        @rule(number=numbers, but=st.sampled_from([["expire", "reverse"], ["expire", "reverse"], []]))
        def reverse(self, number: int, but: list[str]) -> None:
            """One of the newest rows of the ledger, mostly one that can be reversed."""
            rows = office.rows(
                """
                SELECT seq, idempotency_key FROM credit_transactions
                WHERE account_id = %(id)s AND kind <> ALL (%(but)s) ORDER BY seq DESC
                """,
                id=self.who.account_id,
                but=but,
            )
            row = rows[number % len(rows)]
            answer = office.reverse(self.who, row.seq)
            expected, refused = outcome(lambda: self.model.reverse(row.idempotency_key, office.now))
            assert (answer.problem or {}).get("code") == (refused and refused.code)
            assert refused or (answer.result["reversed_credits"], answer.result["expired_credits"]) == expected

        @rule(target=holds, amount=amounts, ttl=minutes)
        def hold(self, amount: int, ttl: timedelta) -> UUID:
            self.count += 1
            key = f"hold {self.count}"
            placed, refused = self.db(credits.place_hold, amount, key=key, ttl_seconds=int(ttl.total_seconds()))
            hold, expected = outcome(lambda: self.model.hold(amount, ttl, office.now))
            assert refused == expected
            if refused is not None:
                assert refused is InsufficientCredits
                return UUID(int=0)
            assert (placed.replayed, placed.hold.expires_at) == (False, hold.expires_at)
            hold_id: UUID = placed.hold.id
            self.model.holds[hold_id] = hold
            again, _ = self.db(credits.place_hold, amount, key=key, ttl_seconds=60)
            assert again == credits.PlacedHold(placed.hold, replayed=True)
            return hold_id

        @rule(hold_id=holds, amount=amounts)
        def capture(self, hold_id: UUID, amount: int) -> None:
            if hold_id in self.model.holds:
                _, refused = self.db(credits.capture_hold, hold_id, amount)
                hold = self.model.holds[hold_id]
                assert refused == outcome(lambda: self.model.capture(f"capture:{hold_id}", hold, amount, office.now))[1]

        @rule(hold_id=consumes(holds))
        def capture_all(self, hold_id: UUID) -> None:
            if hold_id in self.model.holds:
                hold = self.model.holds[hold_id]
                _, refused = self.db(credits.capture_hold, hold_id, hold.amount)
                assert (
                    refused
                    == outcome(lambda: self.model.capture(f"capture:{hold_id}", hold, hold.amount, office.now))[1]
                )

        @rule(hold_id=holds)
        def release(self, hold_id: UUID) -> None:
            if hold_id in self.model.holds:
                _, refused = self.db(credits.release_hold, hold_id)
                assert refused == outcome(lambda: self.model.release(self.model.holds[hold_id]))[1]

        @rule(span=minutes, swept=st.sampled_from(["nothing", "nothing", "holds", "grants"]))
        def wait(self, span: timedelta, swept: str) -> None:
            office.now += span
            self.model.pass_time(office.now)
            if swept == "grants":
                office.tick(office.now)
            if swept == "holds":
                with office.database.transaction() as tx:
                    release_due_holds(tx, as_of=office.now, limit=100)

        @invariant()
        def both_have_the_same(self) -> None:
            balance = office.balance(self.who)
            assert balance.available_credits == self.model.available(office.now)
            held = sum(grant.held for grant in self.model.grants.values())
            assert (balance.held_credits, balance.balance_credits) == (
                held,
                balance.available_credits + held + balance.expired_credits,
            )
            stored = {
                row.id: row.remaining
                for row in office.rows(
                    """
                    SELECT id, remaining FROM credit_grants
                    WHERE account_id = %(id)s AND (expires_at IS NULL OR expires_at > %(now)s)
                    """,
                    id=self.who.account_id,
                    now=office.now,
                )
            }
            assert stored == {
                grant.id: grant.remaining
                for grant in self.model.grants.values()
                if grant.expires_at is None or grant.expires_at > office.now
            }

    return Credits


def test_the_database_spends_as_the_model_does(office: Office) -> None:
    office.change("UPDATE plans SET credits_per_month = 0 WHERE slug IN ('free', 'free-trial')")
    run_state_machine_as_test(
        machine(office), settings=settings(max_examples=60, stateful_step_count=30, derandomize=True, deadline=None)
    )
