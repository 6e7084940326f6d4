"""Refunds: money that goes back, and everything that is written with it.

Whoever writes a refund has locked its payment, and before that the account, if the payment has one. A refund is
answered once the provider has taken it up, or an admin has said how the money went back: then, and once only, credits
are taken back, and the event and the audit log tell of it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from shared.db import account_state, audit, credits, events, operations, payments
from shared.db.engine import Tx
from shared.domain.event import EventKind
from shared.domain.operation import PrincipalKind
from shared.domain.payment import ProviderRefund, ProviderStatus
from shared.domain.plan import Rules
from shared.domain.refund import MADE_AT_THE_PROVIDER, RefundStatus, credits_to_reverse, next_status
from shared.errors import NotFound, ProviderDown, RefundExceedsPayment


def open_payment(tx: Tx, payment_id: UUID, rules: Rules, *, now: datetime) -> Row[Any]:
    """A payment, locked after its account, to which what was due has happened. Raises NotFound."""
    account_id = payments.get(tx, payment_id).account_id
    if account_id is not None:
        account_state.lock(tx, [account_id])
        if account_state.is_due(tx, account_id, now=now):
            account_state.catch_up(tx, account_id, rules, now=now)
    payment = payments.lock(tx, payment_id)
    if payment.account_id is not None and payment.account_id != account_id:
        account_state.lock(tx, [payment.account_id])  # applied in this very moment; a deadlock is tried again
    return payment


def record(
    tx: Tx,
    payment: Row[Any],
    *,
    refund_id: UUID,
    operation_id: UUID,
    amount_minor: int,
    reason: str,
    transfer_reference: str | None = None,
) -> Row[Any]:
    """Note that this much is about to go back: it counts as refunded from now on."""
    refund = tx.one(
        """
        INSERT INTO refunds (id, payment_id, operation_id, status, amount_minor, currency, transfer_reference, reason)
        VALUES (%(id)s, %(payment_id)s, %(operation_id)s, 'pending', %(amount_minor)s, %(currency)s,
                %(transfer_reference)s, %(reason)s)
        RETURNING *
        """,
        id=refund_id,
        payment_id=payment.id,
        operation_id=operation_id,
        amount_minor=amount_minor,
        currency=payment.currency,
        transfer_reference=transfer_reference,
        reason=reason,
    )
    _count(tx, payment.id, amount_minor)
    return refund


def maybe(tx: Tx, refund_id: UUID) -> Row[Any] | None:
    """A refund, if it was recorded."""
    return tx.maybe("SELECT * FROM refunds WHERE id = %(id)s", id=refund_id)


def get(tx: Tx, refund_id: UUID) -> Row[Any]:
    """A refund. Raises NotFound."""
    refund = maybe(tx, refund_id)
    if refund is None:
        raise NotFound("no such refund")
    return refund


def of_payment(tx: Tx, payment_id: UUID) -> Sequence[Row[Any]]:
    """All refunds of a payment, in the order in which they were asked for."""
    return tx.rows("SELECT * FROM refunds WHERE payment_id = %(id)s ORDER BY id", id=payment_id)


def is_answered(refund: Row[Any]) -> bool:
    """Whether anybody has said anything about it yet."""
    return bool(refund.status != RefundStatus.PENDING or refund.external_refund_id is not None)


def learn(
    tx: Tx, payment_id: UUID, said: ProviderRefund, rules: Rules, *, operation_id: UUID, now: datetime
) -> Row[Any] | None:
    """Write down a refund as the provider knows it; the refund, or None where there is nothing to write down.

    One that nobody knows of was made in the provider's dashboard, unless it may be one of ours whose answer is not in:
    then it waits for that, or is that one when nobody will ask for it any more.
    Raises ProviderDown while it waits, RefundExceedsPayment for more than came.
    """
    refund = tx.maybe("SELECT * FROM refunds WHERE external_refund_id = %(id)s", id=said.refund_id)
    if refund is None and said.status is ProviderStatus.FAILED:
        return None
    if refund is None:
        refund = _given_up(tx, payment_id, said) or _made_at_the_provider(
            tx, payment_id, said, refund_id=rules.new_id(), operation_id=operation_id
        )
    return hear(tx, refund, said, rules, operation_id=operation_id, now=now)


def hear(
    tx: Tx, refund: Row[Any], said: ProviderRefund, rules: Rules, *, operation_id: UUID, now: datetime
) -> Row[Any]:
    """Write down what the provider says of a refund; what is no news changes nothing. The refund afterwards.

    operation_id: who asked.
    """
    before = RefundStatus(refund.status)
    after = next_status(before, said.status)
    if after is RefundStatus.FAILED and before is not RefundStatus.FAILED:
        return fail(
            tx,
            refund,
            problem=said.reason or "unknown",
            external_refund_id=said.refund_id,
            operation_id=operation_id,
            now=now,
        )
    if not is_answered(refund):
        return accept(tx, refund, after, rules, external_refund_id=said.refund_id, now=now)
    if after is before:
        return refund
    return tx.one(
        "UPDATE refunds SET status = %(status)s, confirmed_at = %(at)s WHERE id = %(id)s RETURNING *",
        id=refund.id,
        status=str(after),
        at=_instant(tx, payments.get(tx, refund.payment_id).account_id, now),
    )


def accept(
    tx: Tx, refund: Row[Any], status: RefundStatus, rules: Rules, *, external_refund_id: str | None, now: datetime
) -> Row[Any]:
    """The money goes back, or has: take back the credits that went with it. Once, when the refund is answered."""
    payment = payments.get(tx, refund.payment_id)
    owed, reversal = _take_back(tx, payment, refund, rules, now=now)
    reversed_credits = 0 if reversal is None else reversal.reversed_credits
    at = _instant(tx, payment.account_id, now) if reversal is None else reversal.at
    accepted = tx.one(
        """
        UPDATE refunds SET status = %(status)s, external_refund_id = %(external_id)s, confirmed_at = %(confirmed_at)s,
               reversed_credits = %(reversed)s, spent_credits = %(spent)s
        WHERE id = %(id)s RETURNING *
        """,
        id=refund.id,
        status=str(status),
        external_id=external_refund_id,
        confirmed_at=None if status is RefundStatus.PENDING else at,
        reversed=reversed_credits,
        spent=owed - reversed_credits,
    )
    facts = {
        "refund_id": refund.id,
        "amount_minor": refund.amount_minor,
        "currency": refund.currency,
        "status": status,
        "reversed_credits": accepted.reversed_credits,
        "spent_credits": accepted.spent_credits,
    }
    _tell(tx, EventKind.PAYMENT_REFUNDED, payment, at=at, facts=facts)
    asked = operations.get(tx, refund.operation_id)
    balances = (
        ({}, {})
        if reversal is None
        else (
            {"balance_credits": reversal.balance_before},
            {"balance_credits": reversal.balance_credits},
        )
    )
    audit.record(
        tx,
        at=at,
        actor_kind=PrincipalKind(asked.principal_kind),
        actor_id=asked.principal_id,
        action="payment.refunded",
        account_id=payment.account_id,
        subject_kind="payment",
        subject_id=payment.id,
        reason=refund.reason,
        before={"refunded_minor": payment.refunded_minor - refund.amount_minor} | balances[0],
        after={"refunded_minor": payment.refunded_minor} | balances[1] | facts,
        operation_id=refund.operation_id,
    )
    return accepted


def fail(
    tx: Tx, refund: Row[Any], *, problem: str, external_refund_id: str | None, operation_id: UUID, now: datetime
) -> Row[Any]:
    """The money stays, or has come back: it can be given back again. Credits that were taken are not given back.

    problem: the provider's word. operation_id: who asked.
    """
    before = payments.get(tx, refund.payment_id)
    at = _instant(tx, before.account_id, now)
    failed = tx.one(
        """
        UPDATE refunds SET status = 'failed', problem = %(problem)s, confirmed_at = %(at)s,
               external_refund_id = coalesce(external_refund_id, %(external_id)s)
        WHERE id = %(id)s RETURNING *
        """,
        id=refund.id,
        problem=problem,
        at=at,
        external_id=external_refund_id,
    )
    _count(tx, refund.payment_id, -refund.amount_minor)
    facts = {
        "refund_id": refund.id,
        "amount_minor": refund.amount_minor,
        "currency": refund.currency,
        "problem": problem,
        "credits_not_given_back": refund.reversed_credits,
    }
    _tell(tx, EventKind.PAYMENT_REFUND_FAILED, before, at=at, facts=facts)
    audit.record(
        tx,
        at=at,
        actor_kind=PrincipalKind.SYSTEM,
        actor_id=None,
        action="payment.refund_failed",
        account_id=before.account_id,
        subject_kind="payment",
        subject_id=before.id,
        reason=problem,
        before={"refunded_minor": before.refunded_minor, "status": refund.status},
        after={"refunded_minor": before.refunded_minor - refund.amount_minor} | facts,
        operation_id=operation_id,
    )
    return failed


def _given_up(tx: Tx, payment_id: UUID, said: ProviderRefund) -> Row[Any] | None:
    """A refund of ours that this may be: asked for, without an answer, of the same amount, and its operation is dead.

    Raises ProviderDown when there is one whose operation will still learn its answer.
    """
    waiting = [row for row in _unanswered(tx, payment_id) if row.amount_minor == said.amount_minor]
    if any(row.is_pending for row in waiting):
        raise ProviderDown(f"{said.refund_id} may be a refund that waits for its answer")
    return get(tx, waiting[0].id) if waiting else None


def _made_at_the_provider(
    tx: Tx, payment_id: UUID, said: ProviderRefund, *, refund_id: UUID, operation_id: UUID
) -> Row[Any]:
    payment = payments.get(tx, payment_id)
    left_minor = payment.amount_minor - payment.refunded_minor
    if said.amount_minor > left_minor:
        if _unanswered(tx, payment_id):
            raise ProviderDown(f"{said.refund_id} leaves no room for a refund that waits for its answer")
        raise RefundExceedsPayment(
            f"the provider refunded {said.amount_minor}, and {left_minor} is left of this payment",
            left_minor=left_minor,
            paid_minor=payment.amount_minor,
        )
    return record(
        tx,
        payment,
        refund_id=refund_id,
        operation_id=operation_id,
        amount_minor=said.amount_minor,
        reason=MADE_AT_THE_PROVIDER,
    )


def _unanswered(tx: Tx, payment_id: UUID) -> Sequence[Row[Any]]:
    """The payment's refunds of which nobody has said anything, and whether their operations are still at it."""
    return tx.rows(
        """
        SELECT r.id, r.amount_minor, o.status = 'pending' AS is_pending
        FROM refunds r JOIN operations o ON o.id = r.operation_id
        WHERE r.payment_id = %(id)s AND r.status = 'pending' AND r.external_refund_id IS NULL ORDER BY r.id
        """,
        id=payment_id,
    )


def _take_back(
    tx: Tx, payment: Row[Any], refund: Row[Any], rules: Rules, *, now: datetime
) -> tuple[int, credits.CreditsTakenBack | None]:
    """How many credits there were to take back, and what was taken."""
    seeds = _seeds_paid_for(tx, payment)
    earlier = tx.one(
        """
        SELECT coalesce(sum(reversed_credits), 0)::bigint AS reversed,
               coalesce(sum(amount_minor) FILTER (
                   WHERE status <> 'failed' AND (status <> 'pending' OR external_refund_id IS NOT NULL)
               ), 0)::bigint AS refunded_minor
        FROM refunds WHERE payment_id = %(payment_id)s AND id <> %(id)s
        """,
        payment_id=payment.id,
        id=refund.id,
    )
    owed = credits_to_reverse(
        seeded=sum(seed.amount for seed in seeds),
        paid_minor=payment.amount_minor,
        refunded_minor=earlier.refunded_minor + refund.amount_minor,
        reversed_before=earlier.reversed,
    )
    if owed == 0:
        return 0, None
    asker = credits.of_account(tx, payment.account_id, lambda _tx: rules)
    return owed, credits.take_back(
        asker,
        owed,
        grant_ids=[seed.id for seed in seeds],
        refund_id=refund.id,
        payment_id=payment.id,
        reason=refund.reason,
        now=now,
    )


def _seeds_paid_for(tx: Tx, payment: Row[Any]) -> Sequence[Row[Any]]:
    """What was seeded so far for the period that this payment paid for; nothing for money that settles nothing.

    A renewal names its period, an activation began one when it was paid.
    """
    if payment.applied_at is None:
        return []
    return tx.rows(
        """
        SELECT g.id, g.amount
        FROM invoices i
        JOIN subscription_periods p ON p.account_id = i.account_id AND CASE i.purpose
            WHEN 'renewal' THEN (p.subscription_id, p.starts_at) = (i.subscription_id, i.period_starts_at)
            ELSE p.starts_at = i.paid_at
        END
        JOIN credit_grants g ON g.source = 'seed' AND (g.subscription_id, g.phase) = (p.subscription_id, p.phase)
         AND g.effective_at >= p.starts_at AND g.effective_at < p.ends_at
        WHERE i.id = %(invoice_id)s
        """,
        invoice_id=payment.invoice_id,
    )


def _count(tx: Tx, payment_id: UUID, amount_minor: int) -> None:
    tx.execute(
        "UPDATE payments SET refunded_minor = refunded_minor + %(amount_minor)s WHERE id = %(id)s",
        id=payment_id,
        amount_minor=amount_minor,
    )


def _instant(tx: Tx, account_id: UUID | None, now: datetime) -> datetime:
    """The account's, and no earlier than the newest thing that happened to it; nobody's is the clock's."""
    if account_id is None:
        return now
    at: datetime = tx.scalar(
        "SELECT greatest(account_now(id, %(now)s), acted_at) FROM accounts WHERE id = %(id)s", id=account_id, now=now
    )
    return at


def _tell(tx: Tx, kind: EventKind, payment: Row[Any], *, at: datetime, facts: dict[str, Any]) -> None:
    if payment.account_id is not None:
        data = {"invoice_id": payment.invoice_id} | facts
        events.record(tx, kind, account_id=payment.account_id, subject_id=payment.id, at=at, data=data)
