"""The habit: one Celery task for each due subscription, in which an ORM loads, locks, updates and inserts.

The same rows as the product writes, by way of mapped classes; same broker, same settings of Celery.
"""

from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.ext.declarative import DeferredReflection
from sqlalchemy.orm import DeclarativeBase, Session

from bench.lab import Lab
from bench.meter import Meter, Run, await_until
from bench.product import celery_workers, is_due
from shared.broker import make_celery
from shared.config import Settings, get_settings
from shared.domain.calendar import boundary
from shared.ids import new_id
from shared.messages import Queue

PATIENCE_SECONDS: Final = 600


class Base(DeclarativeBase):
    """Columns are read from the database."""


def mapped(table: str) -> Any:
    """A class whose objects are rows of `table`."""
    return type(table, (DeferredReflection, Base), {"__tablename__": table})


Account = mapped("accounts")
Plan = mapped("plans")
Subscription = mapped("subscriptions")
Period = mapped("subscription_periods")
Grant = mapped("credit_grants")
Transaction = mapped("credit_transactions")
Event = mapped("events")

app = make_celery(get_settings())


@lru_cache(maxsize=1)
def engine() -> Engine:
    """One pool in each process, as any application has it."""
    made = create_engine(get_settings().database_url or "", pool_size=1)
    DeferredReflection.prepare(made)
    return made


@app.task(name="bench.renew_subscription", ignore_result=True)
def renew_subscription(subscription_id: str, as_of: str) -> None:
    """Renew one subscription, unless that was done."""
    with Session(engine()) as session, session.begin():
        sub = session.get_one(Subscription, UUID(subscription_id), with_for_update=True)
        account = session.get_one(Account, sub.account_id, with_for_update=True)
        at = sub.current_period_ends_at
        if at > datetime.fromisoformat(as_of):
            return
        plan = session.get_one(Plan, sub.plan_id)
        sub.period_index += 1
        ends_at = boundary(sub.anchor_at, sub.interval, sub.interval_count, sub.period_index + 1, sub.time_zone)
        sub.current_period_starts_at, sub.current_period_ends_at, sub.renews_at = at, ends_at, ends_at
        session.add(
            Period(
                subscription_id=sub.id,
                account_id=account.id,
                plan_id=plan.id,
                phase=sub.phase,
                period_index=sub.period_index,
                starts_at=at,
                ends_at=ends_at,
                previous_ends_at=at,
            )
        )
        for grant in session.scalars(select(Grant).where(Grant.account_id == account.id, ~Grant.spent)):
            post(
                session, account, grant, "expire", -grant.remaining, f"expire:{grant.id.hex}:{at.isoformat()}", "grant"
            )
            grant.remaining = 0
        seed = Grant(
            id=new_id(),
            account_id=account.id,
            source="seed",
            amount=plan.credits_per_month,
            remaining=plan.credits_per_month,
            held=0,
            priority=10,
            effective_at=at,
            expires_at=ends_at,
            subscription_id=sub.id,
            phase=sub.phase,
            credit_month_index=sub.credit_month_index,
        )
        session.add(seed)
        session.flush()
        key = f"seed:{sub.id.hex}:{sub.phase}:{sub.credit_month_index}"
        post(session, account, seed, "seed", seed.amount, key, "subscription")
        renewed = {"plan": plan.slug, "period_ends_at": ends_at.isoformat()}
        session.add(
            Event(account_id=account.id, kind="subscription.renewed", subject_id=sub.id, data=renewed, occurred_at=at)
        )
        sub.credit_month_index += 1
        sub.next_credit_at = ends_at
        account.acted_at, account.next_transition_at = at, ends_at


def post(session: Session, account: Any, grant: Any, kind: str, amount: int, key: str, source: str) -> None:
    """A row of the ledger, and the balance that follows from it."""
    account.balance_credits += amount
    account.ledger_seq += 1
    session.add(
        Transaction(
            account_id=account.id,
            seq=account.ledger_seq,
            grant_id=grant.id,
            kind=kind,
            amount=amount,
            balance_after=account.balance_credits,
            idempotency_key=key,
            line=0,
            effective_at=account.next_transition_at,
            source=source,
            source_id=grant.id if source == "grant" else grant.subscription_id,
        )
    )


def roll(lab: Lab, settings: Settings, *, accounts: int, processes: int, as_of: datetime) -> Run:
    """Send a task for each due subscription, and wait until all are renewed."""
    with (
        lab.opened(settings) as database,
        celery_workers(settings, "bench.habit", Queue.PERIODIC, processes) as worker,
        Meter(accounts, postmaster=lab.postmaster(), python=[worker.pid]) as meter,
    ):
        with database.transaction() as tx:
            due = tx.rows("SELECT id FROM subscriptions WHERE renews_at <= %(as_of)s", as_of=as_of)
        sender = make_celery(settings)
        with sender.producer_or_acquire() as producer:
            for row in due:
                sender.send_task(
                    renew_subscription.name,
                    args=[str(row.id), as_of.isoformat()],
                    queue=str(Queue.PERIODIC),
                    producer=producer,
                )
        await_until(lambda: not is_due(database, as_of), "the habit's renewals", seconds=PATIENCE_SECONDS)
        sender.close()
    return meter.run
