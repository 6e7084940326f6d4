"""Every refusal of the engine, as data; HTTP statuses are assigned in `api/problems.py` alone.

BillingError
├── InvalidInput                the request contradicts a rule of its own
│   ├── InvalidSchedule         no calendar can be computed from these terms
│   └── InvalidStatement        a bank's file that cannot be read whole
├── NotFound                    no such row for this principal
├── Conflict                    the state of the row forbids it
│   ├── IllegalTransition       a status change that no rule declares
│   ├── IdempotencyKeyReused    same key, other body
│   ├── AlreadyDecided          a bank transfer is decided once
│   └── ...                     one class per reason, see below
├── InsufficientCredits         the balance does not cover the request
├── Unauthenticated             nobody presented a valid credential
├── Forbidden                   somebody did, and may not do this
├── TooManyAttempts             somebody may be guessing
├── WebhookInvalid              nobody knows who sent it
└── NotReady                    a part that the system needs cannot be reached or is not set up

Outside of it are ProviderDown, no answer, so nothing to record, and to be asked again; and NewerPayload.

`code` is stable and public; `detail` is one sentence for people; `data` holds the facts, JSON-ready.
A failed operation stores exactly these three, so a client that polls reads what a synchronous
caller would have been answered.
"""

from collections.abc import Mapping
from typing import ClassVar


class BillingError(Exception):
    """An expected refusal: an answer to record and return, never a reason to retry."""

    code: ClassVar[str] = "billing_error"

    def __init__(self, detail: str, **data: str | int | None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.data: Mapping[str, str | int | None] = data

    def document(self) -> dict[str, str | int | None]:
        """Its three parts in one, as it is stored."""
        return {"code": self.code, "detail": self.detail, **self.data}


class InvalidInput(BillingError):
    """The request contradicts a rule that needs no database to be seen."""

    code = "invalid_input"


class SignupBlocked(InvalidInput):
    """Addresses of this domain cannot sign up here."""

    code = "signup_blocked"


class InvalidSchedule(InvalidInput):
    """No calendar can be computed: unknown zone, naive instant, count of zero, result out of range."""

    code = "invalid_schedule"


class FutureInstant(InvalidInput):
    """A job was asked to act as of an instant that has not come."""

    code = "future_instant"


class InvalidStatement(InvalidInput):
    """A bank statement that cannot be read whole, so nothing of it was taken; `detail` says where and what to do."""

    code = "invalid_statement"


class NotFound(BillingError):
    """No such row, or not one that this principal may know of."""

    code = "not_found"


class Conflict(BillingError):
    """The present state forbids it."""

    code = "conflict"


class IllegalTransition(Conflict):
    """The state machine declares no such step."""

    code = "illegal_transition"


class IdempotencyKeyReused(Conflict):
    """The key was used before with another body."""

    code = "idempotency_key_reused"


class EmailTaken(Conflict):
    """Another user signs in with this address."""

    code = "email_taken"


class NoSignupPlan(Conflict):
    """Neither `free-trial` nor `free` may be given to a signup; nothing was created."""

    code = "no_signup_plan"


class PlanNotAssignable(Conflict):
    """This plan may not be taken this way (enterprise is an admin's to give)."""

    code = "plan_not_assignable"


class NoLiveSubscription(Conflict):
    """The account has no live subscription."""

    code = "no_live_subscription"


class InvoiceNotOpen(Conflict):
    """Only an open invoice can be paid or receive a bank transfer."""

    code = "invoice_not_open"


class InvoiceNotPaid(Conflict):
    """Only a paid invoice has a receipt."""

    code = "invoice_not_paid"


class InvoiceAlreadyOpen(Conflict):
    """An open invoice for the same thing exists; pay that one."""

    code = "invoice_already_open"


class PeriodAlreadyPaid(Conflict):
    """The next period has been paid in advance already."""

    code = "period_already_paid"


class PaymentAlreadyUsed(Conflict):
    """One payment settles one invoice once."""

    code = "payment_already_used"


class PaymentNotSucceeded(Conflict):
    """The provider says that no money has arrived."""

    code = "payment_not_succeeded"


class PaymentDeclined(Conflict):
    """The saved card, or the like, was not charged; `decline_code` is the provider's word."""

    code = "payment_declined"


class PaymentUnapplied(Conflict):
    """The money is here and settles nothing yet; an admin applies it or gives it back."""

    code = "payment_unapplied"


class PaymentNotUnapplied(Conflict):
    """Only money that settles nothing can be applied to an invoice."""

    code = "payment_not_unapplied"


class RefundExceedsPayment(Conflict):
    """More would go back than is left of what came."""

    code = "refund_exceeds_payment"


class PaymentMismatch(Conflict):
    """Amount, currency or account differ from the invoice."""

    code = "payment_mismatch"


class ProviderUnavailable(Conflict):
    """This system confirms no payments of that kind."""

    code = "provider_unavailable"


class ProviderRefused(Conflict):
    """The payment provider refuses the request, and would refuse it again; `reason` is the provider's word."""

    code = "provider_refused"


class TransferPending(Conflict):
    """The invoice has a bank transfer that waits for a decision."""

    code = "transfer_pending"


class AlreadyDecided(Conflict):
    """A bank transfer is decided once; `code` says how."""

    code = "already_decided"


class AlreadyApproved(AlreadyDecided):
    """The transfer was approved before."""

    code = "already_approved"


class AlreadyRejected(AlreadyDecided):
    """The transfer was rejected before."""

    code = "already_rejected"


class HoldNotOpen(Conflict):
    """The hold was captured, released or has expired."""

    code = "hold_not_open"


class AlreadyReversed(Conflict):
    """A row of the ledger is reversed once."""

    code = "already_reversed"


class NotReversible(Conflict):
    """Reversals and expiries stay; and what was given can be taken back only as far as it is free."""

    code = "not_reversible"


class ClockMovesForward(Conflict):
    """A test clock cannot be set back."""

    code = "clock_moves_forward"


class RetryRefused(Conflict):
    """Only a dead operation can be retried."""

    code = "operation_not_dead"


class MailRefused(Conflict):
    """The mail server does not take letters to this address, and would not later."""

    code = "mail_refused"


class LastOwner(Conflict):
    """An account keeps an owner: the last one is neither removed nor given another role."""

    code = "last_owner"


class ApiKeyNotLive(Conflict):
    """Only a key that works and was not replaced can be rotated."""

    code = "api_key_not_live"


class InsufficientCredits(BillingError):
    """The available credits do not cover the request; nothing was taken."""

    code = "insufficient_credits"


class Unauthenticated(BillingError):
    """No credential, or one that is not valid (any more)."""

    code = "unauthenticated"


class Forbidden(BillingError):
    """The credential is valid and does not reach this far."""

    code = "forbidden"


class RoleAboveOwn(Forbidden):
    """Nobody gives or takes a role that is above their own."""

    code = "role_above_own"


class AccountSuspended(Forbidden):
    """The account may read and pay, nothing else."""

    code = "account_suspended"


class AccountCancelled(Forbidden):
    """The account may read, nothing else."""

    code = "account_cancelled"


class WrongAudience(Forbidden):
    """A customer's token on an admin's route or the reverse; the token has been revoked."""

    code = "wrong_audience"


class TooManyAttempts(BillingError):
    """Too many sign-ins have failed; try again after `retry_after_seconds`."""

    code = "too_many_attempts"


class BacklogFull(BillingError):
    """Too much that the account has asked for is not done yet; ask again after `retry_after_seconds`."""

    code = "backlog_full"


class WebhookInvalid(BillingError):
    """No event that the provider signed with our secret within the last five minutes."""

    code = "webhook_invalid"


class NotReady(BillingError):
    """A server or a setting that the engine needs is missing."""

    code = "not_ready"


class ProviderDown(Exception):
    """A payment provider could not be asked, or its answer got lost: what was asked may have happened or not.

    Never an answer to an operation, hence no BillingError: whoever asked asks again later, with the same idempotency
    key. Raised for networks that fail, time-outs, errors and rate limits of the provider, answers that cannot be read,
    and keys of ours that it does not accept, which only an operator can repair. A mail server counts as one.
    """


class NewerPayload(Exception):
    """A newer release accepted this operation, and wrote down what this one cannot read: to be left to its workers."""
