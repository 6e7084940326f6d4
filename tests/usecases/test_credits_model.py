"""The database's consume, hold, capture and release against the pure model, step by step.

The model keeps grants as values and decides with `take`; the database decides in SQL. Whatever is done,
in whatever order, and whether or not the jobs have swept, both have the same credits in the same grants.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
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
from shared.errors import BillingError, HoldNotOpen, InsufficientCredits, InvalidInput
from tests.office import Office

gifts = st.integers(40, 200)
amounts = st.integers(1, 90)
minutes = st.integers(1, 60).map(lambda number: timedelta(minutes=number))
lifetimes = st.none() | st.integers(1, 120).map(lambda number: timedelta(minutes=number))


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


class Model:
    """Grants and holds as values; `take` decides."""

    def __init__(self) -> None:
        self.grants: dict[UUID, CreditGrant] = {}
        self.holds: dict[UUID, Hold] = {}

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

    def consume(self, amount: int, now: datetime) -> None:
        for grant, part in take(self.grants.values(), amount, at=now):
            self.move(grant.id, remaining=-part)

    def hold(self, amount: int, ttl: timedelta, now: datetime) -> Hold:
        taken = take(self.grants.values(), amount, at=now)
        for grant, part in taken:
            self.move(grant.id, held=part)
        expiries = [grant.expires_at for grant, _ in taken if grant.expires_at is not None]
        return Hold([(grant.id, part) for grant, part in taken], min([now + ttl, *expiries]))

    def capture(self, hold: Hold, amount: int, now: datetime) -> None:
        if hold.captured == amount:
            return
        if not hold.is_open or hold.expires_at <= now:
            raise HoldNotOpen("model")
        if amount > hold.amount:
            raise InvalidInput("model")
        self.free(hold)
        hold.captured = amount
        for grant_id, part in sorted(hold.parts, key=lambda one: burn_down_order(self.grants[one[0]])):
            taken = min(part, amount)
            self.move(grant_id, remaining=-taken)
            amount -= taken

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
        spent: Bundle[tuple[str, int]] = Bundle("spent")

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
                    return function(tx, self.who.account_id, *arguments, now=office.now, **named)

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
            office.adjust(self.who, amount, expires_at)
            given = office.row(
                "SELECT id FROM credit_grants WHERE account_id = %(id)s ORDER BY id DESC LIMIT 1",
                id=self.who.account_id,
            )
            self.model.grants[given.id] = CreditGrant(
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

        @rule(amount=amounts)
        def take_back(self, amount: int) -> None:
            row = office.adjust(self.who, -amount)
            _, refused = outcome(lambda: self.model.consume(amount, office.now))
            assert (row.problem or {}).get("code") == (refused and refused.code)

        @rule(target=spent, amount=amounts)
        def consume(self, amount: int) -> tuple[str, int]:
            self.count += 1
            key = f"call {self.count}"
            assert self.spend(amount, key) == outcome(lambda: self.model.consume(amount, office.now))[1]
            return key, amount

        @rule(before=spent)
        def consume_again(self, before: tuple[str, int]) -> None:
            """A key that took credits takes none again; one that was refused may be used anew."""
            key, amount = before
            posted = office.row(
                """
                SELECT count(*) AS lines FROM credit_transactions
                WHERE account_id = %(id)s AND idempotency_key = %(key)s
                """,
                id=self.who.account_id,
                key=f"consume:{key}",
            )
            if posted.lines:
                assert self.spend(amount, key) is None
                again, refused = self.db(
                    credits.consume, amount + 1, key=key, source="user", source_id=self.who.user_id, reason=None
                )
                assert (again, refused and refused.code) == (None, "idempotency_key_reused")
            else:
                assert self.spend(amount, key) == outcome(lambda: self.model.consume(amount, office.now))[1]

        def spend(self, amount: int, key: str) -> type[BillingError] | None:
            _, refused = self.db(
                credits.consume, amount, key=key, source="user", source_id=self.who.user_id, reason=None
            )
            return refused

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
            hold_id, replayed = placed
            assert not replayed
            self.model.holds[hold_id] = hold
            again, _ = self.db(credits.place_hold, amount, key=key, ttl_seconds=60)
            assert again == (hold_id, True)
            return hold_id if isinstance(hold_id, UUID) else UUID(int=0)

        @rule(hold_id=holds, amount=amounts)
        def capture(self, hold_id: UUID, amount: int) -> None:
            if hold_id in self.model.holds:
                _, refused = self.db(credits.capture_hold, hold_id, amount)
                assert refused == outcome(lambda: self.model.capture(self.model.holds[hold_id], amount, office.now))[1]

        @rule(hold_id=consumes(holds))
        def capture_all(self, hold_id: UUID) -> None:
            if hold_id in self.model.holds:
                hold = self.model.holds[hold_id]
                _, refused = self.db(credits.capture_hold, hold_id, hold.amount)
                assert refused == outcome(lambda: self.model.capture(hold, hold.amount, office.now))[1]

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
        machine(office), settings=settings(max_examples=20, stateful_step_count=25, derandomize=True, deadline=None)
    )
