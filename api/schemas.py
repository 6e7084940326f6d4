"""What goes over the wire: bodies that are read strictly, and documents that are written.

A body refuses unknown fields, numbers in quotes, floats, booleans for numbers, and control characters in
text. Amounts are bounded here, so that nothing absurd gets any further.
"""

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar
from uuid import UUID
from zoneinfo import available_timezones

from flask_openapi3.models import RawModel
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from sqlalchemy import Row

from api.access import Role, Scope
from shared.db.credits import BatchConsumption
from shared.domain import email
from shared.domain.account import AccountStatus
from shared.domain.bank_transfer import BankTransferStatus
from shared.domain.calendar import Interval
from shared.domain.credits import MAX_BATCH, MAX_CREDITS, GrantSource, HoldStatus, Source, TransactionKind
from shared.domain.event import EventKind
from shared.domain.explanation import Explanation, RuleName
from shared.domain.invoice import InvoicePurpose, InvoiceStatus, PaymentMethod
from shared.domain.lifecycle import Transition
from shared.domain.matching import Reason as MatchReason
from shared.domain.operation import OperationKind, OperationStatus, PrincipalKind
from shared.domain.password import MAX_LENGTH, MIN_LENGTH, weakness
from shared.domain.payment import PaymentStatus
from shared.domain.plan import Assigner, Rollover, TrialEnd
from shared.domain.refund import RefundStatus
from shared.domain.statement import StatementFormat
from shared.domain.subscription import EndReason, SubscriptionStatus
from shared.domain.timeline import EntryKind
from shared.errors import InvalidInput

MAX_SEQ: Final = 2**63 - 1
MAX_WEBHOOK_BYTES: Final = 512 * 1024
MAX_STATEMENT_BYTES: Final = 10 * 1024 * 1024
MAX_AMOUNT_MINOR: Final = 100_000_000_000
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)
LINE: Final = r"^[^\x00-\x1f\x7f]+$"
INSTANT: Final = r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)"
LINES: Final = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]+$"
HOST_NAME: Final = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)+$"


Item = TypeVar("Item", bound=BaseModel)


@lru_cache(maxsize=1)
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _known_time_zone(name: str) -> str:
    if name not in _time_zones():
        raise ValueError("not a time zone of the IANA database")
    return name


def _normalised_email(address: str) -> str:
    try:
        return email.normalised(address)
    except InvalidInput as error:
        raise ValueError(error.detail) from None


def _hard_to_guess(password: str) -> str:
    if (why := weakness(password)) is not None:
        raise ValueError(f"the password {why}")
    return password


def _sensible_instant(at: datetime) -> datetime:
    if not EARLIEST <= at < LATEST:
        raise ValueError("must lie between the years 2000 and 2200")
    return at.astimezone(UTC)


def _written_out(text: object) -> object:
    """A query is all text: a day or a number is no instant, and an offset's `+` is easily lost."""
    if not isinstance(text, str) or re.fullmatch(INSTANT, text) is None:
        raise ValueError("must be an instant with its offset, such as 2027-01-31T09:00:00Z; a + is sent as %2B")
    return text


def _sensible_date(on: date) -> date:
    if not EARLIEST.date() <= on < LATEST.date():
        raise ValueError("must lie between the years 2000 and 2200")
    return on


def _not_zero(amount: int) -> int:
    if amount == 0:
        raise ValueError("must not be zero")
    return amount


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=LINE)]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1_000, pattern=LINES)]
ShortReason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=LINE)]
ExternalId = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]
Email = Annotated[
    str, Field(max_length=email.MAX_LENGTH, json_schema_extra={"format": "email"}), AfterValidator(_normalised_email)
]
Password = Annotated[
    str,
    Field(
        min_length=MIN_LENGTH,
        max_length=MAX_LENGTH,
        repr=False,
        json_schema_extra={"format": "password"},
        description="long rather than odd: refused when it is easy to guess",
    ),
    AfterValidator(_hard_to_guess),
]
GivenPassword = Annotated[
    str, Field(min_length=1, max_length=MAX_LENGTH, repr=False, json_schema_extra={"format": "password"})
]
SentToken = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_-]+$", repr=False)]
TimeZone = Annotated[str, StringConstraints(max_length=64), AfterValidator(_known_time_zone)]
Instant = Annotated[AwareDatetime, AfterValidator(_sensible_instant)]
InstantInQuery = Annotated[Instant, BeforeValidator(_written_out)]
Day = Annotated[date, AfterValidator(_sensible_date)]
Slug = Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
HostName = Annotated[str, StringConstraints(to_lower=True, max_length=253, pattern=HOST_NAME)]
Credits = Annotated[int, Field(ge=1, le=MAX_CREDITS)]
CreditAdjustment = Annotated[int, Field(ge=-MAX_CREDITS, le=MAX_CREDITS), AfterValidator(_not_zero)]
AmountMinor = Annotated[int, Field(ge=1, le=MAX_AMOUNT_MINOR)]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
Key = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]


class Body(BaseModel):
    """A request's body, or its query: nothing in it that we do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Document(BaseModel):
    """Something that we answer."""

    model_config = ConfigDict(from_attributes=True, frozen=True)

    @classmethod
    def of(cls, row: Row[Any] | object, **more: Any) -> Self:
        """From a row, or whatever has attributes of these names, and what the row does not have."""
        names = [name for name in cls.model_fields if name not in more and hasattr(row, name)]
        return cls.model_validate({name: getattr(row, name) for name in names} | more)


class Page(Document, Generic[Item]):
    """Newest first; `next_cursor` leads to what is older, null at the end."""

    items: list[Item]
    next_cursor: str | None


class Problem(BaseModel):
    """RFC 9457: decide by `code`; further members hold the facts."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str


class SandboxOutcome(StrEnum):
    """How a pretend payment went."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Access(StrEnum):
    """What an account may do now."""

    FULL = "full"
    READ_AND_PAY = "read_and_pay"
    READ = "read"


class UnappliedOrder(StrEnum):
    """Which unapplied payments come first."""

    OLDEST = "oldest"
    NEWEST = "newest"


class DocumentFormat(StrEnum):
    """How an invoice or a receipt is laid out."""

    PDF = "pdf"
    HTML = "html"


# --- headers, queries, paths ------------------------------------------------------------------


class OptionalKey(BaseModel):
    """The same key with the same body stands for the same request, for at least 30 days."""

    idempotency_key: Key | None = Field(None, alias="Idempotency-Key")


class RequiredKey(BaseModel):
    """What is done once must be named: the same key with the same body changes nothing."""

    idempotency_key: Key = Field(alias="Idempotency-Key")


class PollToken(BaseModel):
    """Reads the operation of an anonymous signup."""

    poll_token: str | None = Field(None, alias="X-Poll-Token", max_length=200)


class PollQuery(Body):
    """The same, where headers are hard to set."""

    poll_token: str | None = Field(None, max_length=200)


class PageQuery(Body):
    """Newest first. `cursor` is the `next_cursor` of the page before."""

    cursor: str | None = Field(None, min_length=1, max_length=200)
    limit: int = Field(20, ge=1, le=100)


class BankTransferQuery(PageQuery):
    """Transfers of one status."""

    status: BankTransferStatus = BankTransferStatus.PENDING


class AuditQuery(PageQuery):
    """Decisions that all of this is true of; `since` counts, `until` does not."""

    action: Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z_]+\.[a-z_]+$")] | None = None
    account_id: UUID | None = None
    actor_id: UUID | None = None
    subject_id: UUID | None = None
    operation_id: UUID | None = None
    since: InstantInQuery | None = None
    until: InstantInQuery | None = None


class BankStatementQuery(Body):
    """What the file is."""

    format: StatementFormat


class UnappliedQuery(PageQuery):
    """`cursor` is the `next_cursor` of the page before, which had the same `order`."""

    order: UnappliedOrder = UnappliedOrder.OLDEST


class OperationQuery(PageQuery):
    """Operations of one status, one kind, both, or all."""

    status: OperationStatus | None = None
    kind: OperationKind | None = None


class TimelineQuery(PageQuery):
    """How far to look ahead. `cursor` is the `next_cursor` of the page before, which had the same `until`."""

    until: InstantInQuery | None = Field(
        None, description="a year from the account's now, unless stated, and five years at most"
    )
    limit: int = Field(100, ge=1, le=500)


class DocumentQuery(Body):
    """A PDF, unless stated. Both say the same."""

    format: DocumentFormat = DocumentFormat.PDF


class AccountPath(BaseModel):
    """Names an account."""

    account_id: UUID


class LedgerPath(BaseModel):
    """Names a row of the account's ledger."""

    seq: int = Field(ge=1, le=MAX_SEQ)


class AccountLedgerPath(LedgerPath):
    """Names a row of an account's ledger."""

    account_id: UUID


class InvoicePath(BaseModel):
    """Names an invoice."""

    invoice_id: UUID


class PaymentPath(BaseModel):
    """Names a payment."""

    payment_id: UUID


class BankTransferPath(BaseModel):
    """Names a bank transfer."""

    bank_transfer_id: UUID


class BankStatementPath(BaseModel):
    """Names a bank statement."""

    statement_id: UUID


class HoldPath(BaseModel):
    """Names a hold."""

    hold_id: UUID


class SitePath(BaseModel):
    """Names a site."""

    site_id: UUID


class ApiKeyPath(BaseModel):
    """Names an API key."""

    api_key_id: UUID


class MemberPath(BaseModel):
    """Names a member."""

    member_id: UUID


class InvitationPath(BaseModel):
    """Names an invitation."""

    invitation_id: UUID


class OperationPath(BaseModel):
    """Names an operation."""

    operation_id: UUID


class TestClockPath(BaseModel):
    """Names a test clock."""

    test_clock_id: UUID


# --- bodies -----------------------------------------------------------------------------------


class SignUpBody(Body):
    """A new account and its owner."""

    account_name: Name
    email: Email
    password: Password
    time_zone: TimeZone = "UTC"
    test_clock_id: UUID | None = Field(None, description="sandbox only: the clock that the account lives on")

    @field_validator("password")
    @classmethod
    def _says_nothing_of_its_owner(cls, password: str, info: ValidationInfo) -> str:
        about = [info.data[name] for name in ("email", "account_name") if name in info.data]
        if (why := weakness(password, about=about)) is not None:
            raise ValueError(f"the password {why}")
        return password


class LoginBody(Body):
    """Who, and the password."""

    email: Email
    password: GivenPassword


class ConfirmAddressBody(Body):
    """The token that was mailed, and the password of the signup: whoever has one of them alone gets no account."""

    token: SentToken
    password: GivenPassword


class InvitationBody(Body):
    """Whom to invite, and as what."""

    email: Email
    role: Role


class AcceptInvitationBody(Body):
    """The token of the invitation, and the password to sign in with from now on."""

    token: SentToken
    password: Password


class MemberChangeBody(Body):
    """What the member is to be."""

    role: Role


class CancelBody(Body):
    """When to leave."""

    at_period_end: bool = True


class InvoiceBody(Body):
    """The plan to be had, and how it will be paid."""

    plan: Slug
    payment_method: PaymentMethod


class PaymentBody(Body):
    """A payment that was made at a provider; the provider will be asked."""

    invoice_id: UUID
    provider: PaymentMethod
    external_payment_id: ExternalId


class BankTransferBody(Body):
    """A transfer that is on its way."""

    invoice_id: UUID
    payer_name: Name | None = None
    transferred_on: Day | None = None
    note: Reason | None = None


class ApproveBody(Body):
    """What arrived. `override_reason` accepts another amount or currency than the invoice's."""

    amount_minor: AmountMinor
    currency: Currency
    value_on: Day
    bank_transaction_id: ExternalId
    override_reason: Reason | None = None


class HandedInStatement(Body):
    """What an Idempotency-Key of an upload stands for; `sha256` is that of the file, in hexadecimal."""

    format: StatementFormat
    sha256: str


class ApplyBody(Body):
    """The invoice that the money is for. `override_reason` accepts another amount or currency than the invoice's."""

    invoice_id: UUID
    override_reason: Reason | None = None


class RejectBody(Body):
    """Why."""

    reason: Reason


class ConsumeBody(Body):
    """How many credits, and for what."""

    amount: Credits
    reason: ShortReason | None = None


class ConsumeItem(ConsumeBody):
    """One consumption of a batch, under a key of its own."""

    key: Key


class ConsumeBatchBody(Body):
    """Consumptions of one account, taken in their order; `all_or_nothing` takes all of them or none."""

    items: list[ConsumeItem] = Field(min_length=1, max_length=MAX_BATCH)
    all_or_nothing: bool = False

    @model_validator(mode="after")
    def _each_key_once(self) -> Self:
        if len({item.key for item in self.items}) < len(self.items):
            raise ValueError("each item needs a key of its own")
        return self


class HoldBody(Body):
    """How many credits to reserve, and for how long."""

    amount: Credits
    ttl_seconds: int | None = Field(None, ge=1, le=86_400)


class CaptureBody(Body):
    """How many of the held credits to take; the rest is free again."""

    amount: Credits


class SiteBody(Body):
    """A new site."""

    name: Name
    domain: HostName


class SiteChangeBody(Body):
    """What to change of a site."""

    name: Name | None = None
    domain: HostName | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.name is None and self.domain is None:
            raise ValueError("state a name or a domain")
        return self


class ApiKeyBody(Body):
    """A new API key."""

    name: Name
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope))
    site_id: UUID | None = None
    expires_at: Instant | None = None


class RotateApiKeyBody(Body):
    """For how long the old secret goes on working beside the new one."""

    overlap_hours: int = Field(0, ge=0, le=168)


class AssignPlanBody(Body):
    """The plan, why, and when."""

    plan: Slug
    reason: Reason
    at_period_end: bool = False


class AdjustCreditsBody(Body):
    """Credits to give (positive) or to take (negative)."""

    amount: CreditAdjustment
    reason: ShortReason
    expires_at: Instant | None = None


class ReverseBody(Body):
    """Why."""

    reason: ShortReason


class RecordPaymentBody(Body):
    """Money that arrived by some other way."""

    external_payment_id: ExternalId
    amount_minor: AmountMinor
    currency: Currency
    reason: Reason


class RefundBody(Body):
    """Money to give back: all that is left, unless stated.

    `transfer_reference` says how it went back, where no provider does it: for bank transfers and recorded payments.
    """

    amount_minor: AmountMinor | None = None
    reason: ShortReason
    transfer_reference: Name | None = None


class SandboxOutcomeBody(Body):
    """A card payment for an invoice, as the pretend provider shall remember it."""

    invoice_id: UUID
    outcome: SandboxOutcome
    saves_card: Annotated[str, Field(pattern="^[a-z_]{1,64}$")] | None = Field(
        None, description="left to be charged for renewals: `good`, or the code that it is declined with"
    )


class TestClockBody(Body):
    """A clock that stands still."""

    name: Name
    now_at: Instant


class AdvanceBody(Body):
    """Where to set the clock; forward only."""

    to: Instant


# --- documents --------------------------------------------------------------------------------


class AcceptedOperation(Document):
    """What was accepted; read it at `Location` until it is done."""

    operation_id: UUID
    kind: OperationKind
    status: OperationStatus
    poll_token: str | None


class OperationDocument(Document):
    """`succeeded` has a result, `failed` and `dead` have a problem."""

    operation_id: UUID
    kind: OperationKind | str = Field(description="any other word is a kind that only a newer release accepts")
    status: OperationStatus
    created_at: datetime
    finished_at: datetime | None
    result: dict[str, Any] | None
    problem: dict[str, Any] | None


class AdminOperationDocument(OperationDocument):
    """With what only an operator needs."""

    account_id: UUID | None
    principal_kind: PrincipalKind
    principal_id: UUID | None
    attempts: int
    sends: int
    next_send_at: datetime | None
    last_error: str | None


class TokensDocument(Document):
    """Send `access_token` as `Authorization: Bearer`; exchange `refresh_token` at `/auth/refresh`, once."""

    access_token: str
    refresh_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 (a scheme, no secret)
    expires_in_seconds: int


class PlanDocument(Document):
    """A plan of the catalogue."""

    slug: str
    name: str
    price_minor: int
    currency: str
    interval: Interval
    interval_count: int
    trial_days: int
    credits_per_month: int
    credit_rollover: Rollover
    credit_rollover_cap: int | None
    trial_end: TrialEnd
    grace_days: int
    requests_per_minute: int
    assignable_by: list[Assigner]


class PlansDocument(Document):
    """The whole catalogue."""

    items: list[PlanDocument]


class BalanceDocument(Document):
    """`available = balance - held - expired`."""

    balance_credits: int
    held_credits: int
    expired_credits: int
    available_credits: int


class AccountDocument(Document):
    """An account. `access` is what the gate says now."""

    id: UUID
    name: str
    time_zone: str
    status: AccountStatus
    status_reason: str | None
    access: Access
    access_ends_at: datetime | None
    payment_method: PaymentMethod | None
    test_clock_id: UUID | None
    now_at: datetime
    created_at: datetime


class AccountSummary(Document):
    """An account in a list."""

    id: UUID
    name: str
    status: AccountStatus
    balance_credits: int
    test_clock_id: UUID | None
    next_transition: str | None
    next_transition_at: datetime | None
    parked_at: datetime | None
    created_at: datetime


class PeriodDocument(Document):
    """Access granted for `[starts_at, ends_at)`."""

    plan: str
    phase: int
    period_index: int
    starts_at: datetime
    ends_at: datetime


class SubscriptionDocument(Document):
    """The live subscription, or the last that ended, with its newest periods."""

    id: UUID
    plan: str
    status: SubscriptionStatus
    price_minor: int
    currency: str
    interval: Interval
    interval_count: int
    time_zone: str
    started_at: datetime
    anchor_at: datetime
    current_period_starts_at: datetime
    current_period_ends_at: datetime
    renews_at: datetime | None
    next_credit_at: datetime | None
    trial_ends_at: datetime | None
    activated_at: datetime | None
    grace_ends_at: datetime | None
    cancel_at_period_end: bool
    next_plan: str | None
    payment_method: PaymentMethod | None
    external_payment_id: str | None
    ended_at: datetime | None
    end_reason: EndReason | None
    periods: list[PeriodDocument]


class TimelineEntryDocument(Document):
    """One thing that will happen. `transition` says what brings it about; what its `kind` does not need is null.

    `period_*` and `invoice_*` have the dates of the period, those of a cut one as they will be; `invoice_*` the money
    asked for, and the id of an invoice that exists by now; `account_status_changed` and `subscription_ended` the
    reason; `credits_*` credits, signed as in the ledger.
    """

    at: datetime
    transition: Transition
    kind: EntryKind
    plan: str | None
    period_starts_at: datetime | None
    period_ends_at: datetime | None
    invoice_id: UUID | None
    amount_minor: int | None
    currency: str | None
    due_at: datetime | None
    status: AccountStatus | None
    reason: str | None
    grace_ends_at: datetime | None
    amount: int | None
    balance_after: int | None
    expires_at: datetime | None


class TimelineDocument(Page[TimelineEntryDocument]):
    """In the order in which it will happen; `next_cursor` leads to what comes later, null when `until` is reached.

    An entry that lies before `now_at` is due, and will be written with the instant that is shown here.
    """

    now_at: datetime
    until: datetime


class AdminAccountDocument(AccountDocument):
    """With what only an operator needs."""

    owner_email: str | None
    credits: BalanceDocument
    subscription: SubscriptionDocument | None
    next_transition: str | None
    next_transition_at: datetime | None
    parked_at: datetime | None
    parked_reason: str | None


class PaymentInstructions(Document):
    """How to pay by bank transfer. The QR code (EPC, as SVG) exists for euros alone."""

    beneficiary: str
    iban: str
    bic: str
    amount_minor: int
    currency: str
    reference: str
    epc_qr_svg: str | None


class InvoiceDocument(Document):
    """An invoice."""

    id: UUID
    number: str
    reference: str
    purpose: InvoicePurpose
    plan: str
    status: InvoiceStatus
    amount_minor: int
    currency: str
    payment_method: PaymentMethod | None
    period_starts_at: datetime | None
    period_ends_at: datetime | None
    opened_at: datetime
    due_at: datetime
    paid_at: datetime | None
    voided_at: datetime | None
    refunded_minor: int = Field(description="what of its payment has gone back, or is on its way")


class PayableInvoiceDocument(InvoiceDocument):
    """An invoice, with payment instructions while it is open."""

    payment_instructions: PaymentInstructions | None


class CheckoutBody(Body):
    """How an open invoice is to be paid now."""

    payment_method: PaymentMethod | None = Field(None, description="unset: as the invoice was opened for")
    save_payment_method: bool = Field(
        default=False, description="the customer agrees that what is used now is charged for renewals"
    )


class CheckoutDocument(Document):
    """What a browser needs to pay a card invoice, or the instructions for a bank transfer."""

    invoice_id: UUID
    payment_method: PaymentMethod
    amount_minor: int
    currency: str
    due_at: datetime
    external_payment_id: str | None = None
    client_secret: str | None = None
    publishable_key: str | None = None
    payment_instructions: PaymentInstructions | None = None


class StripeEvent(RawModel):
    """An event as Stripe sends it, byte by byte."""

    mimetypes = ["application/json"]  # noqa: RUF012 (flask-openapi3 wants a list)


class BankStatementFile(RawModel):
    """A bank's file, byte by byte; banks and browsers call it various things."""

    mimetypes = [  # noqa: RUF012 (flask-openapi3 wants a list)
        "application/xml",
        "text/xml",
        "text/csv",
        "text/plain",
        "application/octet-stream",
    ]


class PaymentDocument(Document):
    """Money that came, or what a provider was asked about some, and its answer.

    `refunded_minor` has gone back since, or is on its way.
    """

    id: UUID
    invoice_id: UUID | None
    operation_id: UUID
    provider: PaymentMethod
    external_payment_id: str | None
    status: PaymentStatus
    attempt: int | None
    amount_minor: int | None
    currency: str | None
    refunded_minor: int
    problem: str | None
    decline_code: str | None
    unapplied_reason: str | None
    created_at: datetime
    confirmed_at: datetime | None
    applied_at: datetime | None


class AuditDocument(Document):
    """A decision."""

    id: UUID
    at: datetime
    actor_kind: PrincipalKind
    actor_id: UUID | None
    action: str
    account_id: UUID | None
    subject_kind: str
    subject_id: UUID | None
    reason: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    operation_id: UUID | None


class RefundDocument(Document):
    """Money that goes back, and the credits that went with it.

    `spent_credits` could not be taken back: what was spent, held or expired of all that this refund and those before
    it had to take. `problem` is the provider's word for why it failed. `transfer_reference` says how the money went
    back where no provider does it.
    """

    id: UUID
    operation_id: UUID
    status: RefundStatus
    amount_minor: int
    currency: str
    external_refund_id: str | None
    transfer_reference: str | None
    reason: str
    reversed_credits: int
    spent_credits: int
    problem: str | None
    created_at: datetime
    confirmed_at: datetime | None


class AdminPaymentDocument(PaymentDocument):
    """With its refunds, oldest first, and where the money is: it settles the invoice, or nothing, or has gone back.

    What is left of the amount is in `applied_minor` or `unapplied_minor`. `reversed_credits` and `spent_credits` sum
    up what its refunds took back, and what they could not.
    """

    account_id: UUID | None
    override_reason: str | None
    applied_minor: int
    unapplied_minor: int
    reversed_credits: int
    spent_credits: int
    refunds: list[RefundDocument]


class BankTransferDocument(Document):
    """A bank transfer as the customer sees it."""

    id: UUID
    invoice_id: UUID
    status: BankTransferStatus
    payer_name: str | None
    transferred_on: date | None
    note: str | None
    submitted_at: datetime
    decided_at: datetime | None
    received_amount_minor: int | None
    received_currency: str | None
    value_on: date | None
    rejection_reason: str | None


class AdminBankTransferDocument(BankTransferDocument):
    """With what its invoice expects, and who decided."""

    account_id: UUID
    age_days: int
    amount_minor: int
    currency: str
    reference: str
    due_at: datetime
    invoice_status: InvoiceStatus
    submitted_by: UUID
    decided_by: UUID | None
    bank_transaction_id: str | None
    override_reason: str | None
    payment_id: UUID | None


class BankStatementDocument(Document):
    """A bank's file and what became of it. The counts are null until it is imported; `new_entries` no other file had.

    `status` is that of the operation, which says why a file was refused.
    """

    id: UUID
    operation_id: UUID
    format: StatementFormat
    size_bytes: int
    sha256: str
    uploaded_by: UUID
    created_at: datetime
    status: OperationStatus
    entries: int | None
    new_entries: int | None
    money_in: int | None
    money_out: int | None

    @classmethod
    def of_row(cls, row: Row[Any]) -> Self:
        """From a row of statements with their operations."""
        counts = row.result or {}
        return cls.of(
            row,
            entries=counts.get("entries"),
            new_entries=counts.get("new"),
            money_in=counts.get("money_in"),
            money_out=counts.get("money_out"),
        )


class BankEntryFacts(Document):
    """What the bank has booked. Money in is positive, money out negative; `returned` undoes an earlier booking."""

    statement_id: UUID
    transaction_id: str | None
    booked_on: date
    value_on: date
    payer_name: str | None
    payer_iban: str | None
    reference: str | None
    remittance: str
    returned: bool


class BankEntryDocument(BankEntryFacts):
    """An entry, and its payment if it brought money: applied from `applied_at` on, or unapplied, and why."""

    id: UUID
    external_id: str
    amount_minor: int
    currency: str
    payment_id: UUID | None
    account_id: UUID | None
    invoice_id: UUID | None
    applied_at: datetime | None
    unapplied_reason: str | None


class SuggestionDocument(Document):
    """An invoice that money may be for, with what speaks for it and against it; `score` is between 1 and 100."""

    invoice_id: UUID
    invoice_number: str
    reference: str
    account_id: UUID
    account_name: str
    status: InvoiceStatus
    amount_minor: int
    currency: str
    score: int
    reasons: list[MatchReason]


class UnappliedPaymentDocument(Document):
    """Money that is here and settles nothing. `account_id` and `invoice_id` are those that it was meant for, if known.

    `age_days` counts from the value date, or from the recording of money that stands on no statement. `suggestions`
    are computed for this answer, best first.
    """

    id: UUID
    account_id: UUID | None
    invoice_id: UUID | None
    provider: PaymentMethod
    external_payment_id: str
    amount_minor: int
    currency: str
    refunded_minor: int
    unapplied_reason: str
    confirmed_at: datetime
    age_days: int
    entry: BankEntryFacts | None
    suggestions: list[SuggestionDocument]


class UnappliedPage(Page[UnappliedPaymentDocument]):
    """In the order that was asked for; `next_cursor` leads on, null at the end."""


class GrantDocument(Document):
    """Credits that share an origin and an expiry."""

    id: UUID
    source: GrantSource
    amount: int
    remaining: int
    held: int
    priority: int
    effective_at: datetime
    expires_at: datetime | None


class TransactionDocument(Document):
    """A row of the ledger."""

    seq: int
    grant_id: UUID
    kind: TransactionKind
    amount: int
    balance_after: int
    effective_at: datetime
    created_at: datetime
    source: Source
    source_id: UUID
    reason: str | None
    reverses_seq: int | None


class RuleDocument(Document):
    """The rule that a row follows: decide by `name`, show the sentence; `section` is where the rules state it."""

    name: RuleName
    sentence: str
    section: str


class ExplainedGrantDocument(Document):
    """Where the credits of a row came from, and what is left of them by now.

    `opened_by_seq` is the row that brought them. What only a seed has is null for others; phases and credit months
    are counted from 0.
    """

    id: UUID
    source: GrantSource
    amount: int
    remaining: int
    effective_at: datetime
    expires_at: datetime | None
    opened_by_seq: int | None
    subscription_id: UUID | None
    phase: int | None
    credit_month_index: int | None


class ExplainedPeriodDocument(Document):
    """The subscription period, `[starts_at, ends_at)`, in which a row is effective."""

    subscription_id: UUID
    plan: str
    starts_at: datetime
    ends_at: datetime


class ExplainedPaymentDocument(Document):
    """What paid for that period."""

    payment_id: UUID
    invoice_id: UUID
    invoice_reference: str
    provider: PaymentMethod
    amount_minor: int
    currency: str


class ExplainedOperationDocument(Document):
    """The operation that wrote a row."""

    id: UUID
    kind: OperationKind


class ExplainedHoldDocument(Document):
    """The hold that a row captures."""

    id: UUID
    amount: int
    captured_amount: int
    idempotency_key: str


class ExplainedRefundDocument(Document):
    """The money that went back, for which the row takes credits back.

    `external_refund_id` is the provider's; `transfer_reference` says how it went back where no provider did it.
    """

    id: UUID
    payment_id: UUID
    amount_minor: int
    currency: str
    status: RefundStatus
    external_refund_id: str | None
    transfer_reference: str | None


class ActorDocument(Document):
    """Who did it. `name` is a user's address, or the prefix of an API key; an admin's is for admins."""

    kind: PrincipalKind
    id: UUID | None
    name: str | None


class ExplainedTransactionDocument(Document):
    """A row of the ledger, and why it is there.

    `posting_seqs` are the other rows of the same posting; `reverses_seq` and `reversed_by_seqs` lead to the row that
    this one undoes, and to those that undo it: several where refunds did so in parts. `idempotency_key` is the
    caller's own, null for what the engine names. `actor` is null for a capture: see its hold.
    """

    seq: int
    kind: TransactionKind
    amount: int
    balance_before: int
    balance_after: int
    effective_at: datetime
    recorded_at: datetime
    reason: str | None
    idempotency_key: str | None
    rule: RuleDocument
    grant: ExplainedGrantDocument
    period: ExplainedPeriodDocument | None
    payment: ExplainedPaymentDocument | None
    operation: ExplainedOperationDocument | None
    hold: ExplainedHoldDocument | None
    refund: ExplainedRefundDocument | None
    actor: ActorDocument | None
    posting_seqs: list[int]
    reverses_seq: int | None
    reversed_by_seqs: list[int]

    @classmethod
    def of_explanation(cls, explanation: Explanation, *, for_admins: bool) -> Self:
        """for_admins: whether admins are named."""
        return cls.of(explanation, actor=explanation.actor(for_admins=for_admins))


class EventDocument(Document):
    """Something that happened to the account; the first part of `kind` names what `subject_id` is.

    `occurred_at` is when it was due, `recorded_at` when it was written.
    """

    id: int
    kind: EventKind
    subject_id: UUID
    data: dict[str, Any]
    occurred_at: datetime
    recorded_at: datetime

    @classmethod
    def of_row(cls, row: Row[Any]) -> Self:
        """From a row of `events`."""
        return cls.of(row, recorded_at=row.created_at)


class ConsumptionDocument(Document):
    """Credits that were taken, and what the ledger says after it."""

    consumed_credits: int
    balance_credits: int


class ItemDocument(Document):
    """What became of one item: taken, now or under its key before, or refused with a problem's code and facts."""

    key: str
    consumed_credits: int
    balance_credits: int | None
    replayed: bool
    problem: dict[str, Any] | None


class BatchDocument(Document):
    """What became of each item, in the order in which they were sent, and what is left."""

    items: list[ItemDocument]
    balance_credits: int
    available_credits: int

    @classmethod
    def of_batch(cls, batch: BatchConsumption, amounts: Iterable[int]) -> Self:
        """amounts: of the items, in their order."""
        return cls(
            items=[
                ItemDocument(
                    key=item.key,
                    consumed_credits=amount if item.refusal is None else 0,
                    balance_credits=item.balance_credits,
                    replayed=item.replayed,
                    problem=None if item.refusal is None else item.refusal.document(),
                )
                for item, amount in zip(batch.items, amounts, strict=True)
            ],
            balance_credits=batch.balance_credits,
            available_credits=batch.available_credits,
        )


class HoldDocument(Document):
    """Credits that are reserved."""

    id: UUID
    status: HoldStatus
    amount: int
    captured_amount: int
    held_at: datetime
    expires_at: datetime
    resolved_at: datetime | None


class SiteDocument(Document):
    """A site."""

    id: UUID
    name: str
    domain: str
    created_at: datetime


class ApiKeyDocument(Document):
    """An API key as it may be shown at any time."""

    id: UUID
    name: str
    prefix: str
    scopes: list[Scope]
    site_id: UUID | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    replaced_by: UUID | None


class NewApiKeyDocument(ApiKeyDocument):
    """With the key itself, which is shown this once."""

    key: str


class SessionDocument(Document):
    """A sign-in. `last_used_at` is exact to the life of an access token; `current` is the one that asks."""

    id: UUID
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    revoked_reason: str | None
    current: bool


class MemberDocument(Document):
    """A user of the account."""

    id: UUID
    email: str
    role: Role
    created_at: datetime


class InvitationDocument(Document):
    """An invitation: open until it is accepted or revoked, or expires."""

    id: UUID
    email: str
    role: Role
    invited_by: UUID
    created_at: datetime
    expires_at: datetime
    accepted_at: datetime | None
    revoked_at: datetime | None


class NewInvitationDocument(InvitationDocument):
    """With its token, which is shown this once: hand it to the invited. Null when it is mailed to the address."""

    token: str | None


class SandboxPaymentDocument(Document):
    """Hand `external_payment_id` to `/payments` with the provider `sandbox`."""

    external_payment_id: str
    outcome: SandboxOutcome


class TestClockDocument(Document):
    """A test clock."""

    id: UUID
    name: str
    now_at: datetime
    accounts: int
    created_at: datetime
