"""`Office`: asks for things as customers and admins do, in committed transactions, at the instant a test says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import Row

from shared.clock import utc_now
from shared.config import Settings
from shared.db import account_state, admins, bank_statements, checks, credits, operations, payments, test_clocks
from shared.db.engine import Database, Tx
from shared.db.plans import load_rules
from shared.domain.account import AccountState
from shared.domain.invoice import PaymentMethod
from shared.domain.letter import Letter
from shared.domain.lifecycle import Transition
from shared.domain.operation import Operation, OperationKind, PrincipalKind
from shared.domain.plan import Rules
from shared.domain.requests import (
    REQUESTS,
    AdjustCredits,
    AdvanceTestClock,
    ApplyPayment,
    ApproveBankTransfer,
    AssignPlan,
    CancelSubscription,
    ChargeInvoice,
    ConfirmPayment,
    FollowRefunds,
    ImportBankStatement,
    OpenInvoice,
    RecordPayment,
    RefundPayment,
    RejectBankTransfer,
    ReverseCredits,
    SendMail,
    SignUp,
    SubmitBankTransfer,
)
from shared.domain.statement import StatementFormat
from shared.errors import BillingError, ProviderDown
from shared.ids import new_id
from shared.providers import Provider
from shared.providers.sandbox import SandboxProvider
from shared.statements import parse
from shared.usecases.adjust_credits import adjust_credits
from shared.usecases.advance_due_accounts import advance_due_accounts
from shared.usecases.advance_test_clock import advance_test_clock
from shared.usecases.apply_payment import apply_payment
from shared.usecases.approve_bank_transfer import approve_bank_transfer
from shared.usecases.assign_plan import assign_plan
from shared.usecases.cancel_subscription import cancel_subscription
from shared.usecases.charge_invoice import Answer, record_attempt, settle_charged
from shared.usecases.confirm_payment import record_intent, settle_confirmed
from shared.usecases.follow_refunds import follow_refunds
from shared.usecases.import_bank_statement import import_entries, load_file
from shared.usecases.open_invoice import open_invoice
from shared.usecases.record_payment import record_payment
from shared.usecases.refund_payment import complete_refund, give_back, record_refund
from shared.usecases.reject_bank_transfer import reject_bank_transfer
from shared.usecases.reverse_credits import reverse_credits
from shared.usecases.send_mail import compose, sent
from shared.usecases.sign_up import sign_up
from shared.usecases.submit_bank_transfer import submit_bank_transfer
from tests.factories import on

UseCase = Callable[..., dict[str, Any] | BillingError]

USE_CASES: dict[OperationKind, UseCase] = {
    OperationKind.SIGN_UP: sign_up,
    OperationKind.OPEN_INVOICE: open_invoice,
    OperationKind.RECORD_PAYMENT: record_payment,
    OperationKind.APPLY_PAYMENT: apply_payment,
    OperationKind.SUBMIT_BANK_TRANSFER: submit_bank_transfer,
    OperationKind.APPROVE_BANK_TRANSFER: approve_bank_transfer,
    OperationKind.REJECT_BANK_TRANSFER: reject_bank_transfer,
    OperationKind.CANCEL_SUBSCRIPTION: cancel_subscription,
    OperationKind.ASSIGN_PLAN: assign_plan,
    OperationKind.ADJUST_CREDITS: adjust_credits,
    OperationKind.REVERSE_CREDITS: reverse_credits,
    OperationKind.ADVANCE_TEST_CLOCK: advance_test_clock,
}

Dump = dict[str, list[str]]


@dataclass(frozen=True)
class Customer:
    account_id: UUID
    user_id: UUID


@dataclass
class Office:
    """Requests are accepted as the API does it and executed as a worker does it; `now` is theirs, unless stated."""

    database: Database
    settings: Settings
    now: datetime = field(default_factory=lambda: on("2026-01-10"))
    admin_id: UUID = field(default_factory=new_id)
    provider: Provider | None = None  # that gives money back; the sandbox, unless a test has another one
    letters: list[Letter] = field(default_factory=list)

    def __post_init__(self) -> None:
        with self.database.transaction() as tx:
            admins.create(tx, admin_id=self.admin_id, email=f"{self.admin_id}@example.com", password_hash="hash")

    # --- accept and execute

    def accept(
        self,
        kind: OperationKind,
        request: Struct,
        *,
        account_id: UUID | None = None,
        by: UUID | None = None,
        at: datetime | None = None,
    ) -> UUID:
        """Write the operation; by: a user or the admin, anonymous without."""
        operation_id, at = new_id(), at or self.now
        principal = PrincipalKind.ANONYMOUS if by is None else PrincipalKind.USER
        with self.database.transaction() as tx:
            operations.accept(
                tx,
                operation_id=operation_id,
                kind=kind,
                payload=msgspec.to_builtins(request),
                payload_version=1,
                account_id=account_id,
                principal_kind=PrincipalKind.ADMIN if by == self.admin_id else principal,
                principal_id=by,
                idempotency_scope=None,
                idempotency_key=None,
                request_hash=b"hash",
                first_send_after=timedelta(),
                now=at,
            )
        return operation_id

    def execute(self, operation_id: UUID) -> Row[Any]:
        """Do it once, and record the answer; the row afterwards. An operation that has an answer is left alone.

        One that could not ask its provider waits.
        """
        with self.database.transaction() as tx:
            operation = operations.begin_attempt(tx.maybe, operation_id)
        if operation is not None:
            request = msgspec.convert(operation.payload, REQUESTS[operation.kind])
            now = operation.created_at
            try:
                decide = self._asked(operation, request)
                with self.database.transaction() as tx:
                    if operations.lock_pending(tx, operation_id):
                        result = decide(tx, operation, request, load_rules(tx, self.settings), now=now)
                        if isinstance(result, BillingError):
                            operations.fail(tx, operation_id, result, now=now)
                        else:
                            operations.succeed(tx, operation_id, result=result, now=now)
            except BillingError as refusal:
                with self.database.transaction() as tx:
                    if operations.fail(tx, operation_id, refusal, now=now):
                        payments.fail(tx, operation_id, refusal, at=now)
            except ProviderDown as down:
                with self.database.transaction() as tx:
                    operations.wait(
                        tx, operation_id, reason=f"ProviderDown: {down}", base=timedelta(seconds=30), now=now
                    )
        return self.operation(operation_id)

    def _asked(self, operation: Operation, request: Any) -> UseCase:
        """The use case; for those that ask a provider, or read a file, first, with the answer."""
        sandbox = SandboxProvider(self.database)
        if isinstance(request, ConfirmPayment):
            with self.database.transaction() as tx:
                record_intent(tx, operation, request, self.rules())
            payment = sandbox.retrieve(request.external_payment_id)
            return lambda tx, operation, request, rules, *, now: settle_confirmed(
                tx, operation, request, payment, rules, now=now
            )
        if isinstance(request, ChargeInvoice):
            with self.database.transaction() as tx:
                attempt = record_attempt(tx, operation, request, self.rules())
            answer = (
                None if attempt is None else Answer(provider=attempt.provider, payment=sandbox.charge(attempt.request))
            )
            return lambda tx, operation, request, rules, *, now: settle_charged(
                tx, operation, request, answer, rules, now=now
            )
        if isinstance(request, RefundPayment):
            with self.database.transaction() as tx:
                intent = record_refund(tx, operation, request, self.rules())
            asked = intent.request
            back = None if asked is None else give_back(self.provider or sandbox, asked, intent, now=utc_now())
            return lambda tx, operation, request, rules, *, now: complete_refund(
                tx, operation, request, back, rules, now=now
            )
        if isinstance(request, FollowRefunds):
            made = (self.provider or sandbox).refunds_of(request.external_payment_id)
            return lambda tx, operation, request, rules, *, now: follow_refunds(
                tx, operation, request, made, rules, now=now
            )
        if isinstance(request, ImportBankStatement):
            with self.database.transaction() as tx:
                file = load_file(tx, operation, request, self.rules())
            entries = parse(file.content, file.format)
            return lambda tx, operation, request, rules, *, now: import_entries(
                tx, operation, request, entries, rules, now=now
            )
        if isinstance(request, SendMail):
            with self.database.transaction() as tx:
                letter = compose(tx, operation, request, settings=self.settings, now=operation.created_at)
            if letter is not None:
                self.letters.append(letter)
            return lambda tx, operation, request, rules, *, now: sent(tx, operation, request, None, rules)
        return USE_CASES[operation.kind]

    def ask(
        self, kind: OperationKind, request: Struct, *, account_id: UUID | None = None, by: UUID | None = None
    ) -> Row[Any]:
        return self.execute(self.accept(kind, request, account_id=account_id, by=by))

    def done(
        self, kind: OperationKind, request: Struct, *, account_id: UUID | None = None, by: UUID | None = None
    ) -> dict[str, Any]:
        """The result of a request that is not refused."""
        row = self.ask(kind, request, account_id=account_id, by=by)
        assert row.status == "succeeded", row.problem
        result: dict[str, Any] = row.result
        return result

    def asker(self, tx: Tx, who: Customer) -> credits.AccountAsker:
        """Asks about this customer's credits."""
        return credits.of_account(tx, who.account_id, lambda tx: load_rules(tx, self.settings), asker_id=who.user_id)

    # --- what customers ask for

    def sign_up(self, email: str = "", *, time_zone: str = "UTC", clock_id: UUID | None = None) -> Customer:
        request = SignUp(
            account_name="Ada",
            email=email or f"{new_id()}@example.com",
            password_hash="hash",
            time_zone=time_zone,
            test_clock_id=clock_id,
        )
        result = self.done(OperationKind.SIGN_UP, request)
        return Customer(UUID(result["account_id"]), UUID(result["user_id"]))

    def open_invoice(
        self, who: Customer, plan: str = "starter", method: PaymentMethod = PaymentMethod.BANK_TRANSFER
    ) -> UUID:
        request = OpenInvoice(plan=plan, payment_method=method)
        result = self.done(OperationKind.OPEN_INVOICE, request, account_id=who.account_id, by=who.user_id)
        return UUID(result["invoice_id"])

    def card_payment(self, who: Customer, invoice_id: UUID, name: str = "", **terms: Any) -> str:
        """What the sandbox's customer did at the provider: pay this invoice in full, except for `terms`."""
        facts = {"succeeded": True, "amount_minor": 89_00, "currency": "USD", "saves_card": None} | terms
        name = name or f"card-{new_id()}"
        with self.database.transaction() as tx:
            tx.execute(
                """
                INSERT INTO sandbox_payments (external_payment_id, account_id, invoice_id, succeeded, amount_minor,
                                              currency, saves_card)
                VALUES (%(name)s, %(account_id)s, %(invoice_id)s, %(succeeded)s, %(amount_minor)s, %(currency)s,
                        %(saves_card)s)
                """,
                name=name,
                account_id=who.account_id,
                invoice_id=invoice_id,
                **facts,
            )
        return name

    def confirmation(self, who: Customer, invoice_id: UUID, payment: str) -> UUID:
        """The customer says that the payment was made; accepted, not yet executed."""
        request = ConfirmPayment(invoice_id=invoice_id, provider=PaymentMethod.SANDBOX, external_payment_id=payment)
        return self.accept(OperationKind.CONFIRM_PAYMENT, request, account_id=who.account_id, by=who.user_id)

    def buy(
        self, who: Customer, plan: str = "starter", amount_minor: int = 89_00, *, saves_card: str | None = None
    ) -> UUID:
        """Checkout, card payment, confirmation; the invoice."""
        invoice_id = self.open_invoice(who, plan, PaymentMethod.SANDBOX)
        self.pay(who, invoice_id, amount_minor, saves_card=saves_card)
        return invoice_id

    def pay(self, who: Customer, invoice_id: UUID, amount_minor: int = 89_00, *, saves_card: str | None = None) -> None:
        payment = self.card_payment(who, invoice_id, amount_minor=amount_minor, saves_card=saves_card)
        row = self.execute(self.confirmation(who, invoice_id, payment))
        assert row.status == "succeeded", row.problem

    def submit(self, who: Customer, invoice_id: UUID) -> UUID:
        request = SubmitBankTransfer(invoice_id=invoice_id)
        result = self.done(OperationKind.SUBMIT_BANK_TRANSFER, request, account_id=who.account_id, by=who.user_id)
        return UUID(result["bank_transfer_id"])

    def cancel(self, who: Customer, *, at_period_end: bool = True) -> None:
        request = CancelSubscription(at_period_end=at_period_end)
        self.done(OperationKind.CANCEL_SUBSCRIPTION, request, account_id=who.account_id, by=who.user_id)

    def consume(self, who: Customer, amount: int, key: str) -> credits.Consumption:
        with self.database.transaction() as tx:
            return credits.consume(self.asker(tx, who), amount, key=key, reason=None, now=self.now)

    def hold(self, who: Customer, amount: int, key: str, ttl_seconds: int = 900) -> UUID:
        with self.database.transaction() as tx:
            placed = credits.place_hold(self.asker(tx, who), amount, key=key, ttl_seconds=ttl_seconds, now=self.now)
        return placed.hold.id

    def capture(self, who: Customer, hold_id: UUID, amount: int) -> credits.Consumption:
        with self.database.transaction() as tx:
            return credits.capture_hold(self.asker(tx, who), hold_id, amount, now=self.now)

    def release(self, who: Customer, hold_id: UUID) -> None:
        with self.database.transaction() as tx:
            credits.release_hold(self.asker(tx, who), hold_id, now=self.now)

    # --- what an admin asks for

    def approval(self, who: Customer, bank_transfer_id: UUID, **terms: Any) -> UUID:
        """The money came, 89 dollars except for `terms`; accepted, not yet executed."""
        facts: dict[str, Any] = {
            "amount_minor": 89_00,
            "currency": "USD",
            "value_on": self.now.date(),
            "bank_transaction_id": f"bank-{new_id()}",
        }
        request = ApproveBankTransfer(bank_transfer_id=bank_transfer_id, **(facts | terms))
        return self.accept(OperationKind.APPROVE_BANK_TRANSFER, request, account_id=who.account_id, by=self.admin_id)

    def rejection(self, who: Customer, bank_transfer_id: UUID) -> UUID:
        """No such money came; accepted, not yet executed."""
        request = RejectBankTransfer(bank_transfer_id=bank_transfer_id, reason="nothing came")
        return self.accept(OperationKind.REJECT_BANK_TRANSFER, request, account_id=who.account_id, by=self.admin_id)

    def record_payment(self, who: Customer, invoice_id: UUID, **terms: Any) -> Row[Any]:
        facts: dict[str, Any] = {
            "external_payment_id": "cash-1",
            "amount_minor": 89_00,
            "currency": "USD",
            "reason": "paid in cash",
        }
        request = RecordPayment(invoice_id=invoice_id, **(facts | terms))
        return self.ask(OperationKind.RECORD_PAYMENT, request, account_id=who.account_id, by=self.admin_id)

    def statement(self, content: bytes, kind: StatementFormat = StatementFormat.CAMT053) -> UUID:
        """A bank's file was handed in; the import is accepted, not yet executed."""
        statement_id = new_id()
        request = ImportBankStatement(statement_id=statement_id)
        operation_id = self.accept(OperationKind.IMPORT_BANK_STATEMENT, request, by=self.admin_id)
        with self.database.transaction() as tx:
            bank_statements.insert(
                tx,
                statement_id=statement_id,
                operation_id=operation_id,
                format=kind,
                content=content,
                content_hash=sha256(content).digest(),
                uploaded_by=self.admin_id,
            )
        return operation_id

    def application(self, who: Customer, payment_id: UUID, invoice_id: UUID, reason: str | None = None) -> UUID:
        """Money that is here is for this invoice; accepted, not yet executed. reason: though it is another amount."""
        request = ApplyPayment(payment_id=payment_id, invoice_id=invoice_id, override_reason=reason)
        return self.accept(OperationKind.APPLY_PAYMENT, request, account_id=who.account_id, by=self.admin_id)

    def do_what_was_scheduled(self) -> list[Row[Any]]:
        """Execute what the system has asked for and is due, as the relay and a worker would."""
        due = self.rows(
            """
            SELECT id FROM operations WHERE principal_kind = 'system' AND status = 'pending' AND next_send_at <= %(now)s
            ORDER BY id
            """,
            now=self.now,
        )
        return [self.execute(row.id) for row in due]

    def assign(self, who: Customer, plan: str, *, at_period_end: bool = False) -> Row[Any]:
        request = AssignPlan(plan=plan, reason="a good customer", at_period_end=at_period_end)
        return self.ask(OperationKind.ASSIGN_PLAN, request, account_id=who.account_id, by=self.admin_id)

    def adjust(self, who: Customer, amount: int, expires_at: datetime | None = None) -> Row[Any]:
        request = AdjustCredits(amount=amount, reason="goodwill", expires_at=expires_at)
        return self.ask(OperationKind.ADJUST_CREDITS, request, account_id=who.account_id, by=self.admin_id)

    def reverse(self, who: Customer, seq: int) -> Row[Any]:
        request = ReverseCredits(seq=seq, reason="it failed")
        return self.ask(OperationKind.REVERSE_CREDITS, request, account_id=who.account_id, by=self.admin_id)

    def refund(self, payment_id: UUID, amount_minor: int | None = None, **terms: Any) -> Row[Any]:
        """Give all that is left back, or a part."""
        return self.execute(self.refunding(payment_id, amount_minor, **terms))

    def refunding(self, payment_id: UUID, amount_minor: int | None = None, **terms: Any) -> UUID:
        """The same, accepted and not yet executed."""
        facts: dict[str, Any] = {"reason": "unhappy"}
        request = RefundPayment(payment_id=payment_id, amount_minor=amount_minor, **(facts | terms))
        with self.database.transaction() as tx:
            account_id = payments.get(tx, payment_id).account_id
        return self.accept(OperationKind.REFUND_PAYMENT, request, account_id=account_id, by=self.admin_id)

    def follow(self, external_payment_id: str, provider: PaymentMethod = PaymentMethod.SANDBOX) -> Row[Any]:
        """The provider has news of this payment's refunds."""
        return self.execute(self.following(external_payment_id, provider))

    def following(self, external_payment_id: str, provider: PaymentMethod = PaymentMethod.SANDBOX) -> UUID:
        """The same, noted and not yet executed."""
        request = FollowRefunds(provider=provider, external_payment_id=external_payment_id)
        operation_id = new_id()
        with self.database.transaction() as tx:
            paid = payments.succeeded_with(tx, provider, external_payment_id)
            account_id = None if paid is None else paid.account_id
            news = (operation_id, account_id, request, str(operation_id), self.now)
            operations.schedule(tx, OperationKind.FOLLOW_REFUNDS, [news])
        return operation_id

    def make_clock(self, now_at: datetime) -> UUID:
        clock_id = new_id()
        with self.database.transaction() as tx:
            test_clocks.create(tx, test_clock_id=clock_id, name="test", now_at=now_at)
        return clock_id

    def advance_clock(self, clock_id: UUID, to: datetime) -> Row[Any]:
        request = AdvanceTestClock(test_clock_id=clock_id, to=to)
        return self.ask(OperationKind.ADVANCE_TEST_CLOCK, request, by=self.admin_id)

    # --- time

    def run_job(self, transition: Transition, as_of: datetime, *, limit: int = 100) -> int:
        """One beat job to its end; how many accounts it took up."""
        taken = 0
        while True:
            with self.database.transaction() as tx:
                rules = load_rules(tx, self.settings)
                passed = advance_due_accounts(tx, rules, transition, as_of=as_of, limit=limit)
            if not passed:
                return taken
            taken += passed

    def tick(self, as_of: datetime) -> int:
        """Every beat job that moves accounts, until none finds anything; how many accounts were taken up."""
        taken = 0
        while passed := sum(self.run_job(transition, as_of) for transition in Transition):
            taken += passed
        self.now = max(self.now, as_of)
        return taken

    # --- what became of it

    def rules(self) -> Rules:
        with self.database.transaction() as tx:
            return load_rules(tx, self.settings)

    def operation(self, operation_id: UUID) -> Row[Any]:
        with self.database.transaction() as tx:
            return operations.get(tx, operation_id)

    def state(self, who: Customer) -> AccountState:
        with self.database.transaction() as tx:
            (state,) = account_state.read(tx, [who.account_id])
            return state

    def rows(self, sql: str, **params: Any) -> list[Row[Any]]:
        with self.database.transaction() as tx:
            return list(tx.rows(sql, **params))

    def row(self, sql: str, **params: Any) -> Row[Any]:
        (row,) = self.rows(sql, **params)
        return row

    def change(self, sql: str, **params: Any) -> None:
        with self.database.transaction() as tx:
            tx.execute(sql, **params)

    def balance(self, who: Customer) -> credits.Balance:
        with self.database.transaction() as tx:
            return credits.balance(tx, who.account_id, now=self.now)

    def dump(self, *but: str) -> Dump:
        """Every row of every table but these."""
        with self.database.transaction() as tx:
            names = [row.tablename for row in tx.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
            return {
                name: [row.text for row in tx.rows(f"SELECT to_jsonb(t)::text AS text FROM {name} t ORDER BY 1")]
                for name in names
                if name not in but
            }

    def findings(self) -> list[checks.Finding]:
        """Every broken invariant."""
        with self.database.transaction() as tx:
            return checks.run_checks(tx, self.settings)
