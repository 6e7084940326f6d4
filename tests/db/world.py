"""A small world: accounts in every situation, made through the use cases as workers would make them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from importlib import import_module
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct

from shared.clock import utc_now
from shared.config import Settings, get_settings
from shared.db import admins, api_keys, bank_statements, credits, operations, payments, plans, sites, test_clocks
from shared.db.engine import Database, Tx
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import Operation, OperationKind, PrincipalKind
from shared.domain.payment import ProviderPayment, ProviderRefund, ProviderStatus
from shared.domain.plan import Rules
from shared.domain.requests import (
    REQUESTS,
    AdjustCredits,
    AdvanceTestClock,
    ApproveBankTransfer,
    AssignPlan,
    CancelSubscription,
    ConfirmPayment,
    ImportBankStatement,
    OpenInvoice,
    RecordPayment,
    RefundPayment,
    RejectBankTransfer,
    ReverseCredits,
    SignUp,
    SubmitBankTransfer,
)
from shared.domain.statement import BankEntry, StatementFormat
from shared.errors import BillingError
from shared.ids import new_id
from shared.statements import parse
from shared.usecases.adjust_credits import adjust_credits
from shared.usecases.advance_test_clock import advance_test_clock
from shared.usecases.apply_payment import apply_payment
from shared.usecases.approve_bank_transfer import approve_bank_transfer
from shared.usecases.assign_plan import assign_plan
from shared.usecases.cancel_subscription import cancel_subscription
from shared.usecases.confirm_payment import record_intent, settle_confirmed
from shared.usecases.import_bank_statement import import_entries, load_file
from shared.usecases.open_invoice import open_invoice
from shared.usecases.record_payment import record_payment
from shared.usecases.refund_payment import complete_refund, record_refund
from shared.usecases.reject_bank_transfer import reject_bank_transfer
from shared.usecases.reverse_credits import reverse_credits
from shared.usecases.sign_up import sign_up
from shared.usecases.submit_bank_transfer import submit_bank_transfer
from tests.statements.samples import csv_table, entry

START: Final = datetime(2026, 1, 31, 9, tzinfo=UTC)


def import_file(
    tx: Tx, operation: Operation, request: ImportBankStatement, rules: Rules, *, now: datetime
) -> dict[str, Any]:
    """The three steps of an import, in one transaction."""
    file = load_file(tx, operation, request, rules)
    return import_entries(tx, operation, request, parse(file.content, file.format), rules, now=now)


HANDLERS: Final[dict[OperationKind, Callable[..., dict[str, Any] | BillingError]]] = {
    OperationKind.SIGN_UP: sign_up,
    OperationKind.OPEN_INVOICE: open_invoice,
    OperationKind.RECORD_PAYMENT: record_payment,
    OperationKind.APPLY_PAYMENT: apply_payment,
    OperationKind.IMPORT_BANK_STATEMENT: import_file,
    OperationKind.SUBMIT_BANK_TRANSFER: submit_bank_transfer,
    OperationKind.APPROVE_BANK_TRANSFER: approve_bank_transfer,
    OperationKind.REJECT_BANK_TRANSFER: reject_bank_transfer,
    OperationKind.CANCEL_SUBSCRIPTION: cancel_subscription,
    OperationKind.ASSIGN_PLAN: assign_plan,
    OperationKind.ADJUST_CREDITS: adjust_credits,
    OperationKind.REVERSE_CREDITS: reverse_credits,
    OperationKind.ADVANCE_TEST_CLOCK: advance_test_clock,
}


class Healthy(Struct, frozen=True):
    """A populated database, and the ids of its accounts by their situation."""

    database: Database
    settings: Settings
    ids: dict[str, UUID]

    @contextmanager
    def undone(self, *, enforced: bool = True) -> Iterator[Tx]:
        """A transaction that is never committed. Unless `enforced`, no trigger and no foreign key fires in it."""
        with self.database.connect() as connection:
            tx = Tx(connection)
            if not enforced:
                tx.execute("SET LOCAL session_replication_role = replica")
            yield tx


class Customer(Struct, frozen=True):
    """An account, its owner, and the test clock it lives on, if any."""

    account_id: UUID
    user_id: UUID
    clock_id: UUID | None


class World:
    """Does to accounts what customers and an admin would, in one transaction; `now` is the wall clock's instant."""

    def __init__(self, tx: Tx, settings: Settings, *, now: datetime | None = None) -> None:
        self.tx = tx
        self.now = now or utc_now()
        self.rules = plans.load_rules(tx, settings)
        self.admin_id = new_id()
        admins.create(tx, admin_id=self.admin_id, email=f"{self.admin_id}@example.com", password_hash="hash")

    def sign_up(self, *, at: datetime | None = START, time_zone: str = "Europe/Berlin") -> Customer:
        """A new customer: on a test clock that stands at `at`, or on the wall clock."""
        clock_id = None
        if at is not None:
            clock_id = new_id()
            test_clocks.create(self.tx, test_clock_id=clock_id, name="test", now_at=at)
        request = SignUp(
            account_name="Ada",
            email=f"{new_id()}@example.com",
            password_hash="hash",
            time_zone=time_zone,
            test_clock_id=clock_id,
        )
        result = self.ask(OperationKind.SIGN_UP, request)
        return Customer(UUID(result["account_id"]), UUID(result["user_id"]), clock_id)

    def open_invoice(self, customer: Customer, plan: str, method: PaymentMethod = PaymentMethod.SANDBOX) -> UUID:
        """Checkout."""
        request = OpenInvoice(plan=plan, payment_method=method)
        return UUID(self.ask(OperationKind.OPEN_INVOICE, request, customer)["invoice_id"])

    def pay(self, customer: Customer, invoice_id: UUID, *, external_payment_id: str | None = None) -> UUID:
        """A card payment for an invoice, confirmed by the provider."""
        invoice = self.tx.one("SELECT amount_minor, currency FROM invoices WHERE id = %(id)s", id=invoice_id)
        answer = ProviderPayment(
            external_payment_id=external_payment_id or f"card-{new_id()}",
            status=ProviderStatus.SUCCEEDED,
            amount_minor=invoice.amount_minor,
            currency=invoice.currency,
            account_id=customer.account_id,
            invoice_id=invoice_id,
        )
        request = ConfirmPayment(
            invoice_id=invoice_id,
            provider=PaymentMethod.SANDBOX,
            external_payment_id=answer.external_payment_id,
        )
        return UUID(self.ask(OperationKind.CONFIRM_PAYMENT, request, customer, answer=answer)["payment_id"])

    def refund(
        self,
        customer: Customer,
        payment_id: UUID,
        amount_minor: int,
        status: ProviderStatus = ProviderStatus.SUCCEEDED,
    ) -> UUID:
        """An admin gives money back, and the provider has come so far with it."""
        answer = ProviderRefund(
            refund_id=f"re-{new_id()}", status=status, amount_minor=amount_minor, currency="USD", reason="closed"
        )
        request = RefundPayment(payment_id=payment_id, amount_minor=amount_minor, reason="unhappy")
        result = self.ask(OperationKind.REFUND_PAYMENT, request, customer, by_admin=True, answer=answer)
        return UUID(result["refund_id"])

    def submit_transfer(self, customer: Customer, plan: str = "starter") -> UUID:
        """A bank transfer for a new invoice, undecided."""
        invoice_id = self.open_invoice(customer, plan, PaymentMethod.BANK_TRANSFER)
        request = SubmitBankTransfer(invoice_id=invoice_id)
        return UUID(self.ask(OperationKind.SUBMIT_BANK_TRANSFER, request, customer)["bank_transfer_id"])

    def approve(self, customer: Customer, bank_transfer_id: UUID, amount_minor: int, override: str | None) -> None:
        """The money came."""
        request = ApproveBankTransfer(
            bank_transfer_id=bank_transfer_id,
            amount_minor=amount_minor,
            currency="USD",
            value_on=START.date(),
            bank_transaction_id=f"bank-{new_id()}",
            override_reason=override,
        )
        self.ask(OperationKind.APPROVE_BANK_TRANSFER, request, customer, by_admin=True)

    def import_statement(self, *entries: BankEntry) -> None:
        """A bank's file is handed in and imported, and the money in it applied where it fits exactly."""
        statement_id, content = new_id(), csv_table(entries)
        request = ImportBankStatement(statement_id=statement_id)
        operation_id = self.accept(OperationKind.IMPORT_BANK_STATEMENT, request, by_admin=True)
        bank_statements.insert(
            self.tx,
            statement_id=statement_id,
            operation_id=operation_id,
            format=StatementFormat.CSV,
            content=content,
            content_hash=sha256(content).digest(),
            uploaded_by=self.admin_id,
        )
        self.execute(operation_id)
        scheduled = "SELECT id FROM operations WHERE kind = 'apply_payment' AND status = 'pending'"
        for row in self.tx.rows(scheduled):
            self.execute(row.id)

    def advance(self, customer: Customer, to: datetime) -> None:
        """Time passes on the customer's clock."""
        assert customer.clock_id is not None
        request = AdvanceTestClock(test_clock_id=customer.clock_id, to=to)
        self.ask(OperationKind.ADVANCE_TEST_CLOCK, request, by_admin=True)

    def owed(self, customer: Customer) -> UUID:
        """The invoice that is open."""
        sql = "SELECT id FROM invoices WHERE account_id = %(id)s AND status = 'open'"
        invoice_id: UUID = self.tx.scalar(sql, id=customer.account_id)
        return invoice_id

    def ask(
        self,
        kind: OperationKind,
        request: Struct,
        customer: Customer | None = None,
        *,
        by_admin: bool = False,
        answer: ProviderPayment | ProviderRefund | None = None,
    ) -> dict[str, Any]:
        """Accept an operation and execute it, as the API and a worker do. Raises its refusal, recorded."""
        return self.execute(self.accept(kind, request, customer, by_admin=by_admin), answer=answer)

    def accept(
        self, kind: OperationKind, request: Struct, customer: Customer | None = None, *, by_admin: bool = False
    ) -> UUID:
        """Write an operation down."""
        operation_id, now = new_id(), self.now
        principal: tuple[PrincipalKind, UUID | None] = (PrincipalKind.ANONYMOUS, None)
        if by_admin:
            principal = (PrincipalKind.ADMIN, self.admin_id)
        elif customer is not None:
            principal = (PrincipalKind.USER, customer.user_id)
        operations.accept(
            self.tx,
            operation_id=operation_id,
            kind=kind,
            payload=msgspec.to_builtins(request),
            payload_version=1,
            account_id=customer.account_id if customer else None,
            principal_kind=principal[0],
            principal_id=principal[1],
            idempotency_scope="test",
            idempotency_key=str(operation_id),
            request_hash=b"hash",
            first_send_after=timedelta(),
            now=now,
        )
        return operation_id

    def execute(self, operation_id: UUID, *, answer: ProviderPayment | ProviderRefund | None = None) -> dict[str, Any]:
        """Do what an operation asks for. Raises its refusal, recorded."""
        now = self.now
        operation = operations.begin_attempt(self.tx.maybe, operation_id)
        assert operation is not None
        request = msgspec.convert(operation.payload, REQUESTS[operation.kind])
        try:
            with self.tx.savepoint():
                result: dict[str, Any] | BillingError
                if isinstance(request, RefundPayment):
                    assert isinstance(answer, ProviderRefund)
                    record_refund(self.tx, operation, request, self.rules)
                    result = complete_refund(self.tx, operation, request, answer, self.rules, now=now)
                elif answer is None:
                    result = HANDLERS[operation.kind](self.tx, operation, request, self.rules, now=now)
                else:
                    assert isinstance(request, ConfirmPayment)
                    assert isinstance(answer, ProviderPayment)
                    record_intent(self.tx, operation, request, self.rules)
                    result = settle_confirmed(self.tx, operation, request, answer, self.rules, now=now)
        except BillingError as refusal:
            payments.fail(self.tx, operation_id, refusal, at=now)
            operations.fail(self.tx, operation_id, refusal, now=now)
            raise
        assert not isinstance(result, BillingError)
        operations.succeed(self.tx, operation_id, result=result, now=now)
        return result


def populate(tx: Tx, settings: Settings, *, with_statements: bool = True) -> dict[str, UUID]:
    """Accounts in every situation that an account can be in, by the name of their situation."""
    world = World(tx, settings)

    def paying(plan: str = "starter") -> Customer:
        customer = world.sign_up()
        world.pay(customer, world.open_invoice(customer, plan))
        return customer

    trial = world.sign_up(at=None, time_zone="UTC")
    _use_credits(tx, trial)
    _make_keys(tx, trial)

    card = paying()
    _use_credits(tx, card)
    world.ask(OperationKind.ADJUST_CREDITS, AdjustCredits(amount=500, reason="sorry"), card, by_admin=True)
    world.ask(OperationKind.ADJUST_CREDITS, AdjustCredits(amount=-70, reason="oops"), card, by_admin=True)
    spent_seq = tx.scalar(
        "SELECT seq FROM credit_transactions WHERE account_id = %(id)s AND idempotency_key = 'consume:spent'",
        id=card.account_id,
    )
    world.ask(OperationKind.REVERSE_CREDITS, ReverseCredits(seq=spent_seq, reason="it failed"), card, by_admin=True)

    spent = paying()
    credits.consume(_asker(tx, spent), 2_000, key="most", reason=None, now=START)
    credits.consume(_asker(tx, spent), 1_000, key="all", reason=None, now=START)

    renewed = paying("growth")
    world.advance(renewed, START + timedelta(days=29))
    world.pay(renewed, world.owed(renewed))
    world.pay(renewed, world.open_invoice(renewed, "growth"))
    world.advance(renewed, START + timedelta(days=70))

    past_due = paying()
    world.advance(past_due, START + timedelta(days=30))
    overdue = paying()
    world.advance(overdue, START + timedelta(days=60))

    transfer = world.sign_up()
    world.approve(transfer, world.submit_transfer(transfer), 89_00, None)
    overridden = world.sign_up()
    world.approve(overridden, world.submit_transfer(overridden), 88_00, "the bank kept a fee")
    awaiting = world.sign_up()
    world.submit_transfer(awaiting)
    world.advance(awaiting, START + timedelta(days=16))
    rejected = world.sign_up()
    request = RejectBankTransfer(bank_transfer_id=world.submit_transfer(rejected), reason="nothing came")
    world.ask(OperationKind.REJECT_BANK_TRANSFER, request, rejected, by_admin=True)

    expired = world.sign_up()
    world.advance(expired, START + timedelta(days=20))
    returned = world.sign_up()
    world.advance(returned, START + timedelta(days=20))
    invoice_id = world.open_invoice(returned, "scale")
    manual = RecordPayment(
        invoice_id=invoice_id, external_payment_id="cash-1", amount_minor=229_00, currency="USD", reason="cash"
    )
    world.ask(OperationKind.RECORD_PAYMENT, manual, returned, by_admin=True)

    cancelled = paying()
    world.ask(OperationKind.CANCEL_SUBSCRIPTION, CancelSubscription(at_period_end=False), cancelled)
    leaving = paying()
    world.ask(OperationKind.CANCEL_SUBSCRIPTION, CancelSubscription(), leaving)

    enterprise = world.sign_up()
    gift = AssignPlan(plan="enterprise", reason="a big customer")
    world.ask(OperationKind.ASSIGN_PLAN, gift, enterprise, by_admin=True)
    world.advance(enterprise, START + timedelta(days=40))

    refunded = world.sign_up()
    payment_id = world.pay(refunded, world.open_invoice(refunded, "starter"))
    credits.consume(_asker(tx, refunded), 2_100, key="most", reason=None, now=START)
    world.refund(refunded, payment_id, 8_90)
    world.refund(refunded, payment_id, 44_50)
    world.refund(refunded, payment_id, 10_00, ProviderStatus.PENDING)

    customers = {
        "trial": trial,
        "card": card,
        "spent": spent,
        "renewed": renewed,
        "past_due": past_due,
        "overdue": overdue,
        "transfer": transfer,
        "overridden": overridden,
        "awaiting": awaiting,
        "rejected": rejected,
        "expired": expired,
        "returned": returned,
        "cancelled": cancelled,
        "leaving": leaving,
        "enterprise": enterprise,
        "refunded": refunded,
    }
    if with_statements:
        customers["imported"] = _import_statement(world)
    return {name: customer.account_id for name, customer in customers.items()}


def _import_statement(world: World) -> Customer:
    """A statement with an exact payment of a customer, a payment of nobody knows whom, and a fee; the customer."""
    customer = world.sign_up()
    invoice_id = world.open_invoice(customer, "starter", PaymentMethod.BANK_TRANSFER)
    reference = world.tx.scalar("SELECT reference FROM invoices WHERE id = %(id)s", id=invoice_id)
    world.import_statement(
        entry(currency="USD", transaction_id="exact", remittance=reference),
        entry(currency="USD", transaction_id="unknown", remittance="thank you"),
        entry(currency="USD", transaction_id="fee", amount_minor=-4_50, remittance="account fee"),
    )
    return customer


def _use_credits(tx: Tx, customer: Customer) -> None:
    """Credits consumed, held, captured and released."""
    now = utc_now()
    asker = _asker(tx, customer)
    credits.consume(asker, 30, key="spent", reason=None, now=now)
    for key in ("open", "captured", "released"):
        placed = credits.place_hold(asker, 100, key=key, ttl_seconds=900, now=now)
        if key == "captured":
            credits.capture_hold(asker, placed.hold.id, 60, now=now)
        if key == "released":
            credits.release_hold(asker, placed.hold.id, now=now)


def _asker(tx: Tx, customer: Customer) -> credits.AccountAsker:
    rules = partial(plans.load_rules, settings=get_settings())
    return credits.of_account(tx, customer.account_id, rules, asker_id=customer.user_id)


def _make_keys(tx: Tx, customer: Customer) -> None:
    """A site, and an API key for it."""
    site_id = new_id()
    sites.create(tx, site_id=site_id, account_id=customer.account_id, name="Site", domain="example.com")
    api_keys.create(
        tx,
        api_key_id=new_id(),
        account_id=customer.account_id,
        site_id=site_id,
        name="Key",
        prefix="bk_00000000",
        key_hash=b"hash",
        scopes=["credits:consume"],
        created_by=customer.user_id,
        expires_at=None,
    )


# --- SQL for cases ------------------------------------------------------------------------------


def drop(table: str, *constraints: str) -> str:
    """Drop constraints of a table, and of the types of its columns."""
    statements = [
        f"ALTER DOMAIN {DOMAINS[name]} DROP CONSTRAINT {name}"
        if name in DOMAINS
        else f"ALTER TABLE {table} DROP CONSTRAINT {name}"
        for name in constraints
    ]
    return f"DO $$ BEGIN {'; '.join(statements)}; END $$"


TYPES = import_module("shared.db.migrations.versions.0006_types")
DOMAINS: Final[dict[str, str]] = {rule.name: rule.domain for rule in TYPES.RULES}


def copy(table: str, where: str, changes: str, returning: str = "1") -> str:
    """Insert a row again, with other values for some columns."""
    columns = WRITTEN.get(table, "*")
    return f"""
        INSERT INTO {table} {f"({columns})" if table in WRITTEN else ""}
        SELECT {columns} FROM (
            SELECT (jsonb_populate_record(t, jsonb_build_object({changes}))).* FROM {table} t WHERE {where}
        ) AS changed
        RETURNING {returning}
        """


# Of tables that make some of their columns themselves, the others.
WRITTEN: Final = {
    "credit_grants": """
        id, account_id, source, amount, remaining, held, priority, effective_at, expires_at, subscription_id, phase,
        credit_month_index
        """,
    "events": "account_id, kind, key, subject_id, data, occurred_at",
}


def newest(table: str, where: str, order: str = "id") -> str:
    """A condition that one row meets: the last of those that meet `where`."""
    return f"{order} = (SELECT {order} FROM {table} WHERE {where} ORDER BY {order} DESC LIMIT 1)"
