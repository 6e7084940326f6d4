"""The life of an account: what is due next, what becomes of it, and what people may do to it.

Every function takes an `AccountState` and returns the next one; nothing is read or written. A batch
of a million renewals and one customer's payment go through the same functions. An account has one
queue of transitions: `next_transition` names the earliest, `advance` applies them in the order in
which they were due, each stamped with its own instant. An engine that slept for months therefore
ends in the state of one that never did.

Source: docs/rules.md, "Life of an account".
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from enum import StrEnum
from itertools import count
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from shared.domain.account import Account, AccountEvent, AccountState
from shared.domain.account import next_status as next_account_status
from shared.domain.calendar import Interval, boundary, period_containing
from shared.domain.credits import (
    SEED_PRIORITY,
    CreditGrant,
    CreditTransaction,
    GrantSource,
    Source,
    TransactionKind,
    carried_over,
)
from shared.domain.event import Event, EventKind
from shared.domain.invoice import Invoice, InvoiceEvent, InvoicePurpose, InvoiceStatus, PaymentMethod
from shared.domain.invoice import next_status as next_invoice_status
from shared.domain.payment import Charge
from shared.domain.plan import Assigner, Plan, Rollover, Rules, TrialEnd
from shared.domain.subscription import (
    ACTIVE,
    PAST_DUE,
    TRIALING,
    EndReason,
    Subscription,
    SubscriptionEvent,
)
from shared.domain.subscription import next_status as next_subscription_status
from shared.errors import (
    Conflict,
    InvoiceAlreadyOpen,
    InvoiceNotOpen,
    NoLiveSubscription,
    PeriodAlreadyPaid,
    PlanNotAssignable,
    TransferPending,
)
from shared.messages import Job


class Transition(StrEnum):
    """What can be scheduled. Of two that fall on one instant, the one declared first goes first."""

    TRIAL_END = "trial_end"
    CANCELLATION = "cancellation"
    RENEWAL = "renewal"
    GRACE_END = "grace_end"
    GRANT_EXPIRY = "grant_expiry"
    CREDIT_MONTH = "credit_month"

    @property
    def job(self) -> Job:
        """The beat job that takes up accounts whose next transition this is."""
        return _JOBS[self]


_JOBS: Final = {
    Transition.TRIAL_END: Job.EXPIRE_TRIALS,
    Transition.CANCELLATION: Job.CANCEL_DUE,
    Transition.RENEWAL: Job.ROLL_RENEWALS,
    Transition.GRACE_END: Job.SUSPEND_OVERDUE,
    Transition.GRANT_EXPIRY: Job.EXPIRE_CREDITS,
    Transition.CREDIT_MONTH: Job.SEED_CREDITS,
}

# --- what is due ------------------------------------------------------------------------------


def next_transition(state: AccountState) -> tuple[datetime, Transition] | None:
    """The earliest scheduled transition, or None when nothing will happen by itself."""
    due: tuple[datetime, Transition] | None = None
    sub = state.live
    if sub is not None:
        due = _subscription_transition(state, sub)
    for grant in state.grants:
        if grant.remaining and grant.expires_at is not None and (due is None or grant.expires_at < due[0]):
            due = grant.expires_at, Transition.GRANT_EXPIRY
    if sub is not None and sub.status is not PAST_DUE and (due is None or sub.next_credit_at < due[0]):
        due = sub.next_credit_at, Transition.CREDIT_MONTH
    return due


def _subscription_transition(state: AccountState, sub: Subscription) -> tuple[datetime, Transition]:
    if sub.status is PAST_DUE and sub.grace_ends_at is not None:
        return sub.grace_ends_at, Transition.GRACE_END
    if sub.cancel_at_period_end and _paid_ahead(state, sub) is None:
        return sub.current_period_ends_at, Transition.CANCELLATION
    if sub.status is TRIALING:
        return sub.current_period_ends_at, Transition.TRIAL_END
    return sub.current_period_ends_at, Transition.RENEWAL


def access_ends_at(state: AccountState, rules: Rules) -> datetime | None:
    """When full access ends if nobody does anything; None when it does not, or has ended already.

    The gate compares its clock with this instant, so access ends on time whatever the workers do.
    """
    sub = state.live
    if sub is None:
        return None
    pending_since = _transfer_pending_since(state)
    if sub.cancel_at_period_end:
        ahead = _paid_ahead(state, sub)
        return sub.current_period_ends_at if ahead is None else ahead.period_ends_at
    if sub.status is TRIALING or sub.awaits_transfer_after_trial:
        return _trial_lapses_at(sub, rules, pending_since)
    if sub.status is PAST_DUE:
        deadline = sub.grace_ends_at
        if deadline is None or sub.grace_extended or pending_since is None or pending_since >= deadline:
            return deadline
        return min(_add_days(deadline, rules.transfer_grace_days, sub), sub.current_period_ends_at)
    return _unpaid_renewal_lapses_at(state, sub, rules, pending_since)


def _trial_lapses_at(sub: Subscription, rules: Rules, pending_since: datetime | None) -> datetime | None:
    trial_ends_at = sub.current_period_ends_at
    if sub.status is TRIALING and pending_since is not None and pending_since < trial_ends_at:
        trial_ends_at = _add_days(trial_ends_at, rules.transfer_grace_days, sub)
    after = _plan_after_trial(sub, rules)
    if after is None:
        return trial_ends_at
    plan, _ = after
    if plan.price_minor == 0:
        return None
    due_at, ends_at = (boundary(trial_ends_at, plan.interval, plan.interval_count, k, sub.time_zone) for k in (1, 2))
    return _grace_lapses_at(plan, sub, rules, pending_since, due_at=due_at, ends_at=ends_at)


def _unpaid_renewal_lapses_at(
    state: AccountState, sub: Subscription, rules: Rules, pending_since: datetime | None
) -> datetime | None:
    due_at = sub.current_period_ends_at
    ahead = _deciding_invoice(state, sub)
    if ahead is None and sub.next_plan_id is None and sub.price_minor == 0:
        return None
    if ahead is not None and ahead.status is InvoiceStatus.PAID and ahead.period_ends_at is not None:
        due_at = ahead.period_ends_at
        terms = _renewal_terms(sub, rules, ahead)
        if terms.plan.id == sub.plan_id:
            ends_at = boundary(sub.anchor_at, sub.interval, sub.interval_count, sub.period_index + 3, sub.time_zone)
        else:
            ends_at = boundary(
                ahead.period_starts_at or due_at,
                terms.plan.interval,
                terms.plan.interval_count,
                2,
                sub.time_zone,
            )
    else:
        terms = _renewal_terms(sub, rules, ahead)
        ends_at = terms.ends_at
    if terms.price_minor == 0:
        return None
    return _grace_lapses_at(terms.plan, sub, rules, pending_since, due_at=due_at, ends_at=ends_at)


def _grace_lapses_at(
    plan: Plan,
    sub: Subscription,
    rules: Rules,
    pending_since: datetime | None,
    *,
    due_at: datetime,
    ends_at: datetime,
) -> datetime:
    """When the grace of an unpaid period from `due_at` to `ends_at` is over, with what a transfer adds."""
    deadline = min(_add_days(due_at, plan.grace_days, sub), ends_at)
    if pending_since is not None and pending_since < deadline:
        return min(_add_days(deadline, rules.transfer_grace_days, sub), ends_at)
    return deadline


def low_credits(state: AccountState, rules: Rules) -> int:
    """Below so many credits the account runs low: a share of what its plan seeds each credit month."""
    sub = state.live
    return 0 if sub is None else rules.plans[sub.plan_id].credits_per_month * rules.low_credits_percent // 100


# --- time passes ------------------------------------------------------------------------------


def advance(state: AccountState, rules: Rules, *, as_of: datetime, steps: int | None = None) -> AccountState:
    """Apply every transition due at `as_of`, in order, each at the instant at which it was due.

    steps: at most this many; the rest stays due and is taken up by the next call.
    """
    last = None
    for last in _transitions(state, rules, as_of=as_of, steps=steps):  # noqa: B007 (only the last one counts)
        pass
    return state if last is None else acted(last.state, last.at)


def advance_to_charge(state: AccountState, rules: Rules, *, as_of: datetime, steps: int | None = None) -> AccountState:
    """The same as far as to a charge of a saved payment method, which may change what follows."""
    last = None
    for last in _transitions(state, rules, as_of=as_of, steps=steps):
        if last.state.charges:
            break
    return state if last is None else acted(last.state, last.at)


class _Reached(Struct, frozen=True, gc=False):
    """A state, and the instant of the transition that led to it."""

    at: datetime
    state: AccountState


def _transitions(state: AccountState, rules: Rules, *, as_of: datetime, steps: int | None) -> Iterator[_Reached]:
    """What is due, applied one after the other."""
    for _ in count() if steps is None else range(steps):
        due = next_transition(state)
        if due is None or due[0] > as_of:
            return
        at, transition = due
        state = _APPLY[transition](state, rules, at)
        yield _Reached(at, state)


def acted(state: AccountState, at: datetime) -> AccountState:
    """Something happened to the account at `at`; what comes later is stamped no earlier."""
    return replace(state, account=replace(state.account, acted_at=at))


def _trial_end(state: AccountState, rules: Rules, at: datetime) -> AccountState:
    sub = _live(state)
    pending_since = _transfer_pending_since(state)
    if pending_since is not None and pending_since < at and rules.transfer_grace_days:
        # The money may be on its way: the trial's period runs on until the decision.
        until = _add_days(at, rules.transfer_grace_days, sub)
        state = _move_period_end(state, until)
        state = _set_subscription(
            state,
            SubscriptionEvent.DEFER,
            grace_ends_at=until,
            grace_extended=True,
            current_period_ends_at=until,
        )
        return _tell(state, EventKind.SUBSCRIPTION_PAST_DUE, at, grace_ends_at=until)
    return _follow_trial(state, rules, at)


def _follow_trial(state: AccountState, rules: Rules, at: datetime) -> AccountState:
    """The trial, or the time that a transfer added to it, is over: the plan that follows, or the end."""
    after = _plan_after_trial(_live(state), rules)
    if after is None:
        return _end(state, EndReason.TRIAL_EXPIRED, at)
    plan, assigned_by = after
    return _open_phase(state, plan, assigned_by, price_minor=plan.price_minor, at=at)


def _renewal(state: AccountState, rules: Rules, at: datetime) -> AccountState:
    sub = _live(state)
    invoice = _deciding_invoice(state, sub)
    if invoice is None:
        state = _void_invoices(state, {i.id for i in state.invoices if i.period_starts_at == at}, at)
    terms = _renewal_terms(sub, rules, invoice)
    if terms.plan.id == sub.plan_id:
        index = sub.period_index + 1
        state = _open_period(
            state,
            replace(sub, period_index=index, current_period_starts_at=at, current_period_ends_at=terms.ends_at),
        )
    else:
        state = _open_phase(state, terms.plan, terms.assigned_by, price_minor=terms.price_minor, at=at)
        state = _replace_live(state, replace(_live(state), cancel_at_period_end=sub.cancel_at_period_end))
    if terms.price_minor == 0 or (invoice is not None and invoice.status is InvoiceStatus.PAID):
        state = _set_subscription(state, SubscriptionEvent.ACTIVATE, grace_ends_at=None, grace_extended=False)
        return _tell(state, EventKind.SUBSCRIPTION_RENEWED, at, plan=terms.plan.slug, period_ends_at=terms.ends_at)
    if invoice is None:
        invoice = Invoice(
            id=rules.new_id(),
            account_id=sub.account_id,
            purpose=InvoicePurpose.RENEWAL,
            plan_id=terms.plan.id,
            assigned_by=terms.assigned_by,
            status=InvoiceStatus.OPEN,
            amount_minor=terms.price_minor,
            currency=terms.currency,
            opened_at=at,
            due_at=at,
            subscription_id=sub.id,
            period_starts_at=at,
            period_ends_at=terms.ends_at,
        )
        state = replace(state, invoices=(*state.invoices, invoice))
    state = _charge_saved_method(state, sub, invoice, at)
    # An unpaid period is never rolled: grace ends with the period at the latest.
    grace_ends_at = min(_add_days(at, terms.plan.grace_days, sub), terms.ends_at)
    state = _set_subscription(state, SubscriptionEvent.DEFER, grace_ends_at=grace_ends_at, grace_extended=False)
    facts = {"plan": terms.plan.slug, "invoice_id": invoice.id, "grace_ends_at": grace_ends_at}
    return _tell(state, EventKind.SUBSCRIPTION_PAST_DUE, at, **facts)


def _charge_saved_method(state: AccountState, sub: Subscription, invoice: Invoice, at: datetime) -> AccountState:
    """What is owed is charged to the saved payment method, if that is how the customer pays."""
    saved = state.account.saved_payment_method
    if saved is None or sub.payment_method != saved or invoice.payment_method not in {None, saved}:
        return state
    charge = Charge(account_id=sub.account_id, invoice_id=invoice.id, attempt=1, due_at=at)
    return replace(state, charges=(*state.charges, charge))


def _grace_end(state: AccountState, rules: Rules, at: datetime) -> AccountState:
    sub = _live(state)
    pending_since = _transfer_pending_since(state)
    if pending_since is not None and pending_since < at and not sub.grace_extended:
        until = min(_add_days(at, rules.transfer_grace_days, sub), sub.current_period_ends_at)
        if until > at:
            return _set_subscription(state, SubscriptionEvent.DEFER, grace_ends_at=until, grace_extended=True)
    if sub.awaits_transfer_after_trial:
        return _follow_trial(state, rules, at)
    return _end(state, EndReason.PAYMENT_OVERDUE, at)


def _cancellation(state: AccountState, _rules: Rules, at: datetime) -> AccountState:
    return _end(state, EndReason.CANCELLED, at)


def _grant_expiry(state: AccountState, rules: Rules, at: datetime) -> AccountState:
    expiring = [g for g in state.grants if g.remaining and g.expires_at is not None and g.expires_at <= at]
    kept: dict[UUID, int] = {}
    kept_until = None
    sub = state.live
    if sub is not None:
        plan = rules.plans[sub.plan_id]
        if plan.credit_rollover is Rollover.CAP and plan.credit_rollover_cap:
            seeds = [grant for grant in expiring if grant.source is GrantSource.SEED]
            kept = carried_over(seeds, cap=plan.credit_rollover_cap)
            kept_until = period_containing(sub.anchor_at, Interval.MONTH, 1, at, sub.time_zone)[2]
    for grant in expiring:
        carried = kept.get(grant.id, 0) if kept else 0
        left = replace(grant, remaining=carried, expires_at=kept_until if carried else grant.expires_at)
        state = _replace_grant(state, grant, left)
        if grant.remaining > carried:
            state = _post(
                state,
                grant_id=grant.id,
                kind=TransactionKind.EXPIRE,
                amount=carried - grant.remaining,
                idempotency_key=f"expire:{grant.id.hex}:{at.isoformat()}",
                effective_at=at,
                source=Source.GRANT,
                source_id=grant.id,
            )
    return state


def _credit_month(state: AccountState, rules: Rules, at: datetime) -> AccountState:
    sub = _live(state)
    plan = rules.plans[sub.plan_id]
    index = sub.credit_month_index
    ends_at = sub.credit_month_boundary(index + 1)
    # Paid late, a month may be over before it was seeded; the next one is due no earlier than the payment.
    next_credit_at = max(ends_at, at)
    state = _replace_live(state, replace(sub, credit_month_index=index + 1, next_credit_at=next_credit_at))
    expires_at = None if plan.credit_rollover is Rollover.ALL else ends_at
    if sub.status is TRIALING and sub.trial_ends_at is not None:
        expires_at = min(ends_at, sub.trial_ends_at)
    if plan.credits_per_month == 0 or (expires_at is not None and expires_at <= at):
        return state
    grant = CreditGrant(
        id=rules.new_id(),
        account_id=sub.account_id,
        source=GrantSource.SEED,
        amount=plan.credits_per_month,
        remaining=plan.credits_per_month,
        held=0,
        priority=SEED_PRIORITY,
        effective_at=at,
        expires_at=expires_at,
        subscription_id=sub.id,
        phase=sub.phase,
        credit_month_index=index,
    )
    return _post(
        replace(state, grants=(*state.grants, grant)),
        grant_id=grant.id,
        kind=TransactionKind.SEED,
        amount=grant.amount,
        idempotency_key=f"seed:{sub.id.hex}:{sub.phase}:{index}",
        effective_at=at,
        source=Source.SUBSCRIPTION,
        source_id=sub.id,
    )


_APPLY: Final[dict[Transition, Callable[[AccountState, Rules, datetime], AccountState]]] = {
    Transition.TRIAL_END: _trial_end,
    Transition.CANCELLATION: _cancellation,
    Transition.RENEWAL: _renewal,
    Transition.GRACE_END: _grace_end,
    Transition.GRANT_EXPIRY: _grant_expiry,
    Transition.CREDIT_MONTH: _credit_month,
}


# --- people act -------------------------------------------------------------------------------
# Each expects a state that was advanced to `at`, and returns one in which nothing is due at `at`.


def sign_up(account: Account, rules: Rules, plan: Plan, *, at: datetime) -> AccountState:
    """A new account on the plan that `signup_plan` chose: in its trial if it has one, else active."""
    return advance(
        _open_subscription(AccountState(account=account), rules, plan, Assigner.SIGNUP, at=at),
        rules,
        as_of=at,
    )


def choose_plan(
    state: AccountState, rules: Rules, plan: Plan, *, method: PaymentMethod, at: datetime
) -> tuple[AccountState, Invoice | None]:
    """Checkout: the invoice that brings this plan, or None when it has no price and needs none.

    Without a paid subscription it activates on payment; with one it is for the period that comes
    next, and so is the change of plan. Asking again returns the open invoice.
    Raises PlanNotAssignable, InvoiceAlreadyOpen, PeriodAlreadyPaid, TransferPending, Conflict.
    """
    if Assigner.CHECKOUT not in plan.assignable_by:
        raise PlanNotAssignable(f"the plan {plan.slug} cannot be bought", plan=plan.slug)
    sub = state.live
    if plan.price_minor == 0:
        return _choose_free_plan(state, rules, plan, at=at), None
    if sub is None or sub.activated_at is None or sub.price_minor == 0:
        return _open_invoice(state, rules, plan, InvoicePurpose.ACTIVATION, method, at=at)
    if sub.status is PAST_DUE:
        owed = _renewal_invoice(state, sub.current_period_starts_at)
        raise InvoiceAlreadyOpen(
            "the current period is not paid yet; pay its invoice first",
            invoice_id=str(owed.id) if owed else None,
        )
    return _open_invoice(state, rules, plan, InvoicePurpose.RENEWAL, method, at=at)


def settle(
    state: AccountState,
    rules: Rules,
    *,
    invoice_id: UUID,
    method: PaymentMethod,
    external_payment_id: str,
    at: datetime,
) -> AccountState:
    """An invoice is paid: its period, the subscription, the account and the credits follow.

    Raises InvoiceNotOpen.
    """
    invoice = open_invoice(state, invoice_id)
    paid = replace(
        invoice,
        status=next_invoice_status(invoice.status, InvoiceEvent.SETTLE),
        paid_at=at,
        payment_method=method,
        transfer_pending_since=None,
    )
    state = _set_invoice(state, paid)
    paid_with: dict[str, Any] = {"payment_method": method, "external_payment_id": external_payment_id}
    sub = state.live
    if invoice.purpose is InvoicePurpose.ACTIVATION:
        plan = rules.plans[invoice.plan_id]
        if sub is None:
            state = _open_subscription(state, rules, plan, invoice.assigned_by, at=at, price_minor=invoice.amount_minor)
        else:
            state = _void_invoices(state, {i.id for i in state.invoices if i.subscription_id == sub.id}, at)
            state = _open_phase(state, plan, invoice.assigned_by, price_minor=invoice.amount_minor, at=at)
        state = _set_subscription(state, SubscriptionEvent.ACTIVATE, **paid_with)
        state = _tell(state, EventKind.SUBSCRIPTION_ACTIVATED, at, plan=plan.slug, invoice_id=invoice.id)
    elif sub is not None and invoice.period_starts_at == sub.current_period_starts_at:
        state = _set_subscription(
            state,
            SubscriptionEvent.ACTIVATE,
            grace_ends_at=None,
            grace_extended=False,
            next_credit_at=max(sub.next_credit_at, at),
            **paid_with,
        )
        slug = rules.plans[sub.plan_id].slug
        state = _tell(state, EventKind.SUBSCRIPTION_ACTIVATED, at, plan=slug, invoice_id=invoice.id)
    elif sub is not None:  # the period that comes next
        other = invoice.plan_id != sub.plan_id
        state = _replace_live(
            state,
            replace(
                sub,
                cancel_at_period_end=False,
                next_plan_id=invoice.plan_id if other else None,
                next_plan_assigned_by=invoice.assigned_by if other else None,
                **paid_with,
            ),
        )
    state = replace(state, account=replace(state.account, **paid_with))
    return advance(state, rules, as_of=at)


def transfer_submitted(state: AccountState, invoice_id: UUID, *, at: datetime) -> AccountState:
    """A bank transfer for an open invoice waits for a decision. Raises InvoiceNotOpen, TransferPending."""
    invoice = open_invoice(state, invoice_id)
    if invoice.transfer_pending_since is not None:
        raise TransferPending("a bank transfer for this invoice waits for a decision")
    return _set_invoice(state, replace(invoice, transfer_pending_since=at))


def transfer_rejected(state: AccountState, rules: Rules, invoice_id: UUID, *, at: datetime) -> AccountState:
    """A bank transfer was rejected; time that was granted only for its sake is over."""
    for invoice in state.invoices:
        if invoice.id == invoice_id:
            state = _set_invoice(state, replace(invoice, transfer_pending_since=None))
    sub = state.live
    if sub is not None and sub.grace_extended and _transfer_pending_since(state) is None:
        state = _replace_live(state, replace(sub, grace_ends_at=at))
    return advance(state, rules, as_of=at)


def cancel(state: AccountState, *, at: datetime, at_period_end: bool) -> AccountState:
    """End the subscription now, or with the last period that is paid. Raises NoLiveSubscription."""
    sub = state.live
    if sub is None:
        raise NoLiveSubscription("there is no live subscription to cancel")
    if at_period_end and sub.status is not PAST_DUE:
        state = _replace_live(
            state, replace(sub, cancel_at_period_end=True, next_plan_id=None, next_plan_assigned_by=None)
        )
        return _tell(state, EventKind.SUBSCRIPTION_CANCELLATION_SCHEDULED, at)
    return _end(state, EndReason.CANCELLED, at)


def assign_plan(state: AccountState, rules: Rules, plan: Plan, *, at: datetime, at_period_end: bool) -> AccountState:
    """An admin gives a plan, at once or when the period ends; what is owed from then on is void.

    Raises PlanNotAssignable, PeriodAlreadyPaid.
    """
    if Assigner.ADMIN not in plan.assignable_by:
        raise PlanNotAssignable(f"the plan {plan.slug} cannot be assigned", plan=plan.slug)
    sub = state.live
    if sub is not None and at_period_end:
        ahead = _renewal_invoice(state, sub.current_period_ends_at)
        if ahead is not None and ahead.status is InvoiceStatus.PAID:
            raise PeriodAlreadyPaid("the next period is paid; the change can follow it", invoice_id=str(ahead.id))
        if ahead is not None:
            state = _void_invoices(state, {ahead.id}, at)
        goes_on = plan.id == sub.plan_id and sub.activated_at is not None
        return _replace_live(
            state,
            replace(
                sub,
                next_plan_id=None if goes_on else plan.id,
                next_plan_assigned_by=None if goes_on else Assigner.ADMIN,
                cancel_at_period_end=False,
            ),
        )
    state = _void_invoices(state, {invoice.id for invoice in state.invoices}, at)
    if sub is None:
        state = _open_subscription(state, rules, plan, Assigner.ADMIN, at=at)
    else:
        state = _open_phase(state, plan, Assigner.ADMIN, price_minor=plan.price_minor, at=at)
    return advance(state, rules, as_of=at)


def next_charge(state: AccountState, failed: Charge, retry_days: tuple[int, ...]) -> Charge | None:
    """The attempt after one that failed softly: so many days after the invoice was due, as long as grace lasts."""
    sub = state.live
    if failed.attempt > len(retry_days) or sub is None or sub.grace_ends_at is None:
        return None
    invoice = open_invoice(state, failed.invoice_id)
    due_at = _add_days(invoice.due_at, retry_days[failed.attempt - 1], sub)
    if due_at >= sub.grace_ends_at:
        return None
    return replace(failed, attempt=failed.attempt + 1, due_at=max(due_at, failed.due_at))


def open_invoice(state: AccountState, invoice_id: UUID) -> Invoice:
    """The open invoice of that id. Raises InvoiceNotOpen."""
    for invoice in state.invoices:
        if invoice.id == invoice_id and invoice.status is InvoiceStatus.OPEN:
            return invoice
    raise InvoiceNotOpen("the invoice is paid or void", invoice_id=str(invoice_id))


# --- parts ------------------------------------------------------------------------------------


class _RenewalTerms(Struct, frozen=True, gc=False):
    """What the next period costs and how long it lasts."""

    plan: Plan
    assigned_by: Assigner
    price_minor: int
    currency: str
    ends_at: datetime


def _renewal_terms(sub: Subscription, rules: Rules, invoice: Invoice | None) -> _RenewalTerms:
    """Terms of the period that follows the current one.

    invoice: what `_deciding_invoice` says. It goes first; then a scheduled change of plan; else the
    subscription's own copy of its terms goes on.
    """
    starts_at = sub.current_period_ends_at
    plan_id, assigned_by = sub.plan_id, sub.assigned_by
    if invoice is not None:
        plan_id, assigned_by = invoice.plan_id, invoice.assigned_by
    elif sub.next_plan_id is not None and sub.next_plan_assigned_by is not None:
        plan_id, assigned_by = sub.next_plan_id, sub.next_plan_assigned_by
    plan = rules.plans[plan_id]
    if plan_id == sub.plan_id:
        ends_at = boundary(sub.anchor_at, sub.interval, sub.interval_count, sub.period_index + 2, sub.time_zone)
        return _RenewalTerms(plan, assigned_by, sub.price_minor, sub.currency, ends_at)
    ends_at = boundary(starts_at, plan.interval, plan.interval_count, 1, sub.time_zone)
    price_minor = invoice.amount_minor if invoice is not None else plan.price_minor
    return _RenewalTerms(plan, assigned_by, price_minor, plan.currency, ends_at)


def _plan_after_trial(sub: Subscription, rules: Rules) -> tuple[Plan, Assigner] | None:
    if sub.next_plan_id is not None and sub.next_plan_assigned_by is not None:
        return rules.plans[sub.next_plan_id], sub.next_plan_assigned_by
    if rules.plans[sub.plan_id].trial_end is TrialEnd.DOWNGRADE and rules.free_plan is not None:
        return rules.free_plan, Assigner.SIGNUP
    return None


def _choose_free_plan(state: AccountState, rules: Rules, plan: Plan, *, at: datetime) -> AccountState:
    sub = state.live
    if sub is None:
        return advance(_open_subscription(state, rules, plan, Assigner.CHECKOUT, at=at), rules, as_of=at)
    if sub.plan_id == plan.id:
        raise Conflict(f"the account is on the plan {plan.slug} already")
    ahead = _renewal_invoice(state, sub.current_period_ends_at)
    if ahead is not None and ahead.status is InvoiceStatus.PAID:
        raise PeriodAlreadyPaid("the next period is paid; the change can follow it", invoice_id=str(ahead.id))
    if ahead is not None and ahead.transfer_pending_since is not None:
        raise TransferPending("a bank transfer for the next period waits for a decision", invoice_id=str(ahead.id))
    if ahead is not None:
        state = _void_invoices(state, {ahead.id}, at)
    return _replace_live(
        state,
        replace(sub, next_plan_id=plan.id, next_plan_assigned_by=Assigner.CHECKOUT, cancel_at_period_end=False),
    )


def _open_invoice(
    state: AccountState,
    rules: Rules,
    plan: Plan,
    purpose: InvoicePurpose,
    method: PaymentMethod,
    *,
    at: datetime,
) -> tuple[AccountState, Invoice]:
    sub = state.live
    starts_at = sub.current_period_ends_at if sub is not None and purpose is InvoicePurpose.RENEWAL else None
    for other in state.invoices:
        if other.purpose is not purpose or other.period_starts_at != starts_at or other.status is InvoiceStatus.VOID:
            continue
        if other.status is InvoiceStatus.PAID:
            raise PeriodAlreadyPaid("the next period is paid", invoice_id=str(other.id))
        if other.plan_id == plan.id:
            same = replace(other, payment_method=method)
            return _set_invoice(state, same), same
        if other.transfer_pending_since is not None:
            raise TransferPending("a bank transfer for another plan waits for a decision", invoice_id=str(other.id))
        state = _void_invoices(state, {other.id}, at)
    invoice = Invoice(
        id=rules.new_id(),
        account_id=state.account.id,
        purpose=purpose,
        plan_id=plan.id,
        assigned_by=Assigner.CHECKOUT,
        status=InvoiceStatus.OPEN,
        amount_minor=plan.price_minor,
        currency=plan.currency,
        opened_at=at,
        due_at=boundary(at, Interval.DAY, 1, rules.invoice_due_days, state.account.time_zone),
        payment_method=method,
    )
    if sub is not None and starts_at is not None:
        same_plan = plan.id == sub.plan_id
        invoice = replace(
            invoice,
            amount_minor=sub.price_minor if same_plan else plan.price_minor,
            due_at=starts_at,
            subscription_id=sub.id,
            period_starts_at=starts_at,
            period_ends_at=(
                boundary(sub.anchor_at, sub.interval, sub.interval_count, sub.period_index + 2, sub.time_zone)
                if same_plan
                else boundary(starts_at, plan.interval, plan.interval_count, 1, sub.time_zone)
            ),
        )
    return replace(state, invoices=(*state.invoices, invoice)), invoice


def _open_subscription(
    state: AccountState,
    rules: Rules,
    plan: Plan,
    assigned_by: Assigner,
    *,
    at: datetime,
    price_minor: int | None = None,
) -> AccountState:
    """A new subscription that starts at `at`; in its trial if the plan has one and the account is new."""
    account = state.account
    trial = plan.trial_days > 0 and assigned_by is Assigner.SIGNUP
    ends_at = (
        boundary(at, Interval.DAY, plan.trial_days, 1, account.time_zone)
        if trial
        else boundary(at, plan.interval, plan.interval_count, 1, account.time_zone)
    )
    sub = Subscription(
        id=rules.new_id(),
        account_id=account.id,
        plan_id=plan.id,
        assigned_by=assigned_by,
        status=TRIALING if trial else ACTIVE,
        price_minor=plan.price_minor if price_minor is None else price_minor,
        currency=plan.currency,
        interval=plan.interval,
        interval_count=plan.interval_count,
        time_zone=account.time_zone,
        started_at=at,
        phase=0,
        anchor_at=at,
        period_index=0,
        current_period_starts_at=at,
        current_period_ends_at=ends_at,
        credit_month_index=0,
        next_credit_at=at,
        trial_ends_at=ends_at if trial else None,
        activated_at=None if trial else at,
    )
    state = _open_period(replace(state, subscriptions=(*state.subscriptions, sub)), sub)
    state = state if trial else _set_subscription(state, SubscriptionEvent.ACTIVATE)
    return _tell(state, EventKind.SUBSCRIPTION_STARTED, at, plan=plan.slug, trial=trial, period_ends_at=ends_at)


def _open_phase(
    state: AccountState, plan: Plan, assigned_by: Assigner, *, price_minor: int, at: datetime
) -> AccountState:
    """Go on under another plan from `at`, which becomes the anchor; the running period closes there."""
    state = _move_period_end(state, at)
    sub = _live(state)
    state = _open_period(
        state,
        replace(
            sub,
            plan_id=plan.id,
            assigned_by=assigned_by,
            price_minor=price_minor,
            currency=plan.currency,
            interval=plan.interval,
            interval_count=plan.interval_count,
            phase=sub.phase + 1,
            anchor_at=at,
            period_index=0,
            current_period_starts_at=at,
            current_period_ends_at=boundary(at, plan.interval, plan.interval_count, 1, sub.time_zone),
            credit_month_index=0,
            next_credit_at=at,
            activated_at=sub.activated_at or at,
            next_plan_id=None,
            next_plan_assigned_by=None,
            cancel_at_period_end=False,
            grace_ends_at=None,
            grace_extended=False,
        ),
    )
    state = _set_subscription(state, SubscriptionEvent.ACTIVATE)
    return _tell(state, EventKind.SUBSCRIPTION_PLAN_CHANGED, at, plan=plan.slug)


def _end(state: AccountState, reason: EndReason, at: datetime) -> AccountState:
    """The subscription ends at `at`: its period is cut there and what it owed is void."""
    sub = _live(state)
    state = _move_period_end(state, at)
    state = _void_invoices(state, {i.id for i in state.invoices if i.subscription_id == sub.id}, at)
    ended = replace(
        sub,
        status=next_subscription_status(sub.status, SubscriptionEvent.END),
        ended_at=at,
        end_reason=reason,
        current_period_ends_at=min(sub.current_period_ends_at, at),
        grace_ends_at=None,
        next_plan_id=None,
        next_plan_assigned_by=None,
    )
    event = AccountEvent.CANCEL if reason is EndReason.CANCELLED else AccountEvent.SUSPEND
    account = replace(state.account, status=next_account_status(state.account.status, event), status_reason=str(reason))
    state = replace(_replace_live(state, ended), account=account)
    return _tell(state, EventKind.SUBSCRIPTION_ENDED, at, reason=reason)


def _open_period(state: AccountState, sub: Subscription) -> AccountState:
    """Write `sub` with its new current period, which starts where the last one ended."""
    return replace(_replace_live(state, sub), periods=(*state.periods, sub.current_period))


def _move_period_end(state: AccountState, at: datetime) -> AccountState:
    """The current period ends at `at`. One that would have no length was never granted."""
    current = state.periods[-1]
    if current.ends_at == at:
        return state
    kept = (replace(current, ends_at=at),) if current.starts_at < at else ()
    return replace(state, periods=(*state.periods[:-1], *kept))


def _set_subscription(state: AccountState, event: SubscriptionEvent, **changes: Any) -> AccountState:
    """Let `event` happen to the live subscription, and the matching one to its account."""
    sub = _live(state)
    state = _replace_live(state, replace(sub, status=next_subscription_status(sub.status, event), **changes))
    account_event = AccountEvent.ACTIVATE if event is SubscriptionEvent.ACTIVATE else AccountEvent.DEFER
    status = next_account_status(state.account.status, account_event)
    return replace(state, account=replace(state.account, status=status, status_reason=None))


def _tell(state: AccountState, kind: EventKind, at: datetime, **data: Any) -> AccountState:
    """Let others know what has become of the newest subscription."""
    sub = state.subscriptions[-1]
    event = Event(account_id=sub.account_id, kind=kind, subject_id=sub.id, data=data, occurred_at=at)
    return replace(state, events=(*state.events, event))


def _replace_live(state: AccountState, sub: Subscription) -> AccountState:
    return replace(state, subscriptions=(*state.subscriptions[:-1], sub))


def _set_invoice(state: AccountState, invoice: Invoice) -> AccountState:
    return replace(state, invoices=tuple(invoice if i.id == invoice.id else i for i in state.invoices))


def _void_invoices(state: AccountState, ids: set[UUID], at: datetime) -> AccountState:
    if not ids:
        return state
    return replace(
        state,
        invoices=tuple(
            replace(
                i,
                status=next_invoice_status(i.status, InvoiceEvent.VOID),
                voided_at=at,
                transfer_pending_since=None,
            )
            if i.status is InvoiceStatus.OPEN and i.id in ids
            else i
            for i in state.invoices
        ),
    )


def _replace_grant(state: AccountState, grant: CreditGrant, by: CreditGrant) -> AccountState:
    return replace(state, grants=tuple([by if one is grant else one for one in state.grants]))


def _post(
    state: AccountState,
    *,
    grant_id: UUID,
    kind: TransactionKind,
    amount: int,
    idempotency_key: str,
    effective_at: datetime,
    source: Source,
    source_id: UUID,
    line: int = 0,
    reason: str | None = None,
) -> AccountState:
    """Append a row to the ledger and move the balance with it."""
    account = replace(
        state.account,
        balance_credits=state.account.balance_credits + amount,
        ledger_seq=state.account.ledger_seq + 1,
    )
    transaction = CreditTransaction(
        account_id=account.id,
        seq=account.ledger_seq,
        grant_id=grant_id,
        kind=kind,
        amount=amount,
        balance_after=account.balance_credits,
        idempotency_key=idempotency_key,
        line=line,
        effective_at=effective_at,
        source=source,
        source_id=source_id,
        reason=reason,
    )
    return replace(state, account=account, transactions=(*state.transactions, transaction))


def _renewal_invoice(state: AccountState, starts_at: datetime) -> Invoice | None:
    """The invoice, open or paid, for the period of the live subscription that starts then."""
    sub = _live(state)
    for invoice in state.invoices:
        if (
            invoice.purpose is InvoicePurpose.RENEWAL
            and invoice.subscription_id == sub.id
            and invoice.period_starts_at == starts_at
            and invoice.status is not InvoiceStatus.VOID
        ):
            return invoice
    return None


def _paid_ahead(state: AccountState, sub: Subscription) -> Invoice | None:
    """The paid invoice for the period after the current one."""
    invoice = _renewal_invoice(state, sub.current_period_ends_at)
    return invoice if invoice is not None and invoice.status is InvoiceStatus.PAID else None


def _deciding_invoice(state: AccountState, sub: Subscription) -> Invoice | None:
    """The invoice, opened ahead, that decides what the next period is.

    It is paid, or a transfer for it is undecided, or it is for the plan that goes on anyhow. A
    checkout of another plan that nobody paid decides nothing.
    """
    invoice = _renewal_invoice(state, sub.current_period_ends_at)
    if invoice is None or invoice.status is InvoiceStatus.PAID or invoice.transfer_pending_since is not None:
        return invoice
    return invoice if invoice.plan_id == (sub.next_plan_id or sub.plan_id) else None


def _transfer_pending_since(state: AccountState) -> datetime | None:
    return min(
        (i.transfer_pending_since for i in state.invoices if i.transfer_pending_since is not None),
        default=None,
    )


def _add_days(at: datetime, days: int, sub: Subscription) -> datetime:
    """`days` local days later, at the same wall time."""
    return boundary(at, Interval.DAY, 1, days, sub.time_zone)


def _live(state: AccountState) -> Subscription:
    sub = state.live
    if sub is None:
        raise NoLiveSubscription("there is no live subscription")
    return sub
