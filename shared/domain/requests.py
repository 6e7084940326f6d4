"""What an operation's payload holds, by kind: the contract between the API that accepts and the worker.

Payloads are stored as JSON with their version. A field is added with a default and never renamed,
so that a worker of the next release can read what the last one accepted.
"""

from datetime import date, datetime
from typing import Final
from uuid import UUID

from msgspec import Struct

from shared.domain.invoice import PaymentMethod
from shared.domain.letter import LetterKind
from shared.domain.operation import OperationKind


class SignUp(Struct, frozen=True, kw_only=True):
    """A new account with its owner. The password arrives hashed and leaves the payload when done."""

    account_name: str
    email: str
    password_hash: str
    time_zone: str = "UTC"
    test_clock_id: UUID | None = None


class OpenInvoice(Struct, frozen=True, kw_only=True):
    """Checkout of a plan."""

    plan: str
    payment_method: PaymentMethod


class ConfirmPayment(Struct, frozen=True, kw_only=True):
    """A customer says that a payment was made; the provider is asked."""

    invoice_id: UUID
    provider: PaymentMethod
    external_payment_id: str


class RecordPayment(Struct, frozen=True, kw_only=True):
    """An admin says that money arrived by some other way."""

    invoice_id: UUID
    external_payment_id: str
    amount_minor: int
    currency: str
    reason: str


class SubmitBankTransfer(Struct, frozen=True, kw_only=True):
    """A customer says that a bank transfer is on its way."""

    invoice_id: UUID
    payer_name: str | None = None
    transferred_on: date | None = None
    note: str | None = None


class ApproveBankTransfer(Struct, frozen=True, kw_only=True):
    """An admin saw the money on the account."""

    bank_transfer_id: UUID
    amount_minor: int
    currency: str
    value_on: date
    bank_transaction_id: str
    override_reason: str | None = None


class RejectBankTransfer(Struct, frozen=True, kw_only=True):
    """An admin says that no such money came."""

    bank_transfer_id: UUID
    reason: str


class CancelSubscription(Struct, frozen=True, kw_only=True):
    """The customer leaves, when the period ends or now."""

    at_period_end: bool = True


class AssignPlan(Struct, frozen=True, kw_only=True):
    """An admin gives a plan."""

    plan: str
    reason: str
    at_period_end: bool = False


class AdjustCredits(Struct, frozen=True, kw_only=True):
    """An admin gives (amount > 0) or takes (amount < 0) credits."""

    amount: int
    reason: str
    expires_at: datetime | None = None


class ReverseCredits(Struct, frozen=True, kw_only=True):
    """An admin undoes what a row of the ledger belongs to."""

    seq: int
    reason: str


class ChargeInvoice(Struct, frozen=True, kw_only=True):
    """A renewal is owed, and the customer has left a card, or the like, to charge."""

    invoice_id: UUID
    attempt: int


class ApplyPayment(Struct, frozen=True, kw_only=True):
    """Money that settles nothing yet is for this invoice; said by an admin, or by the reference that came with it."""

    payment_id: UUID
    invoice_id: UUID
    override_reason: str | None = None


class RefundPayment(Struct, frozen=True, kw_only=True):
    """An admin gives money back, all that is left unless stated. transfer_reference: how, where no provider does it."""

    payment_id: UUID
    reason: str
    amount_minor: int | None = None
    transfer_reference: str | None = None


class FollowRefunds(Struct, frozen=True, kw_only=True):
    """The provider has news of refunds of a payment, ours or those made in its dashboard."""

    provider: PaymentMethod
    external_payment_id: str


class ImportBankStatement(Struct, frozen=True, kw_only=True):
    """An admin handed in a bank's file."""

    statement_id: UUID


class AdvanceTestClock(Struct, frozen=True, kw_only=True):
    """Time passes for the accounts on a test clock."""

    test_clock_id: UUID
    to: datetime


class SendMail(Struct, frozen=True, kw_only=True):
    """A letter about a signup or an invitation. Whatever is secret in it is derived when it is sent."""

    letter: LetterKind
    subject_id: UUID


REQUESTS: Final[dict[OperationKind, type[Struct]]] = {
    OperationKind.SIGN_UP: SignUp,
    OperationKind.OPEN_INVOICE: OpenInvoice,
    OperationKind.CONFIRM_PAYMENT: ConfirmPayment,
    OperationKind.RECORD_PAYMENT: RecordPayment,
    OperationKind.SUBMIT_BANK_TRANSFER: SubmitBankTransfer,
    OperationKind.APPROVE_BANK_TRANSFER: ApproveBankTransfer,
    OperationKind.REJECT_BANK_TRANSFER: RejectBankTransfer,
    OperationKind.CANCEL_SUBSCRIPTION: CancelSubscription,
    OperationKind.ASSIGN_PLAN: AssignPlan,
    OperationKind.ADJUST_CREDITS: AdjustCredits,
    OperationKind.REVERSE_CREDITS: ReverseCredits,
    OperationKind.CHARGE_INVOICE: ChargeInvoice,
    OperationKind.APPLY_PAYMENT: ApplyPayment,
    OperationKind.REFUND_PAYMENT: RefundPayment,
    OperationKind.FOLLOW_REFUNDS: FollowRefunds,
    OperationKind.IMPORT_BANK_STATEMENT: ImportBankStatement,
    OperationKind.ADVANCE_TEST_CLOCK: AdvanceTestClock,
    OperationKind.SEND_MAIL: SendMail,
}
