"""What admins do to accounts and invoices."""

from uuid import UUID

from api import paging, schemas
from api.accept import Accepted, accept
from api.access import ADMIN, Admin
from api.routes.accounts import account_facts
from api.routes.credits import transactions_page
from api.routes.subscriptions import subscription_document
from api.routing import ACCEPTED, Routes
from api.schemas import (
    AccountSummary,
    AdminAccountDocument,
    BalanceDocument,
    ExplainedTransactionDocument,
    Page,
    SubscriptionDocument,
    TransactionDocument,
)
from shared.clock import utc_now
from shared.db import accounts, credits, invoices, ledger, users
from shared.db.engine import Tx
from shared.domain.operation import OperationKind
from shared.domain.requests import AdjustCredits, AssignPlan, RecordPayment, ReverseCredits
from shared.errors import NotFound

routes = Routes("admin accounts", about="Accounts, plans and credits by an admin's decision.")


@routes.handle("GET", "/admin/accounts", needs=ADMIN, answer=Page[AccountSummary])
def list_accounts(tx: Tx, query: schemas.PageQuery) -> Page[AccountSummary]:
    """All customers' accounts."""
    rows = accounts.page(tx, before=paging.id_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[AccountSummary], rows, AccountSummary.of, limit=query.limit)


@routes.handle("GET", "/admin/accounts/<uuid:account_id>", needs=ADMIN, answer=AdminAccountDocument)
def read_any_account(tx: Tx, path: schemas.AccountPath) -> AdminAccountDocument:
    """An account with its credits and its subscription."""
    return AdminAccountDocument.of(
        **account_facts(tx, path.account_id),
        owner_email=users.owner_email(tx, path.account_id),
        credits=BalanceDocument.of(credits.balance(tx, path.account_id, now=utc_now())),
        subscription=_subscription(tx, path.account_id),
    )


@routes.handle("POST", "/admin/accounts/<uuid:account_id>/plan", needs=ADMIN, answer=ACCEPTED)
def assign_plan(
    tx: Tx,
    principal: Admin,
    path: schemas.AccountPath,
    header: schemas.OptionalKey,
    body: schemas.AssignPlanBody,
) -> Accepted:
    """Give a plan, now or when the period ends; the only way to enterprise."""
    return accept(
        tx,
        OperationKind.ASSIGN_PLAN,
        AssignPlan(plan=body.plan, reason=body.reason, at_period_end=body.at_period_end),
        principal=principal,
        account_id=accounts.get(tx, path.account_id).id,
        body=body,
        key=header.idempotency_key,
    )


@routes.handle("POST", "/admin/accounts/<uuid:account_id>/credits", needs=ADMIN, answer=ACCEPTED)
def adjust_credits(
    tx: Tx,
    principal: Admin,
    path: schemas.AccountPath,
    header: schemas.OptionalKey,
    body: schemas.AdjustCreditsBody,
) -> Accepted:
    """Give credits or take some."""
    return accept(
        tx,
        OperationKind.ADJUST_CREDITS,
        AdjustCredits(amount=body.amount, reason=body.reason, expires_at=body.expires_at),
        principal=principal,
        account_id=accounts.get(tx, path.account_id).id,
        body=body,
        key=header.idempotency_key,
    )


@routes.handle(
    "GET",
    "/admin/accounts/<uuid:account_id>/credits/transactions",
    needs=ADMIN,
    answer=Page[TransactionDocument],
)
def list_any_transactions(tx: Tx, path: schemas.AccountPath, query: schemas.PageQuery) -> Page[TransactionDocument]:
    """An account's ledger."""
    return transactions_page(tx, accounts.get(tx, path.account_id).id, query)


@routes.handle(
    "GET",
    "/admin/accounts/<uuid:account_id>/credits/transactions/<int:seq>",
    needs=ADMIN,
    answer=ExplainedTransactionDocument,
)
def explain_any_transaction(tx: Tx, path: schemas.AccountLedgerPath) -> ExplainedTransactionDocument:
    """A row of an account's ledger, and why it is there."""
    explanation = ledger.explain(tx, path.account_id, path.seq)
    return ExplainedTransactionDocument.of_explanation(explanation, for_admins=True)


@routes.handle(
    "POST", "/admin/accounts/<uuid:account_id>/credits/transactions/<int:seq>/reverse", needs=ADMIN, answer=ACCEPTED
)
def reverse_credits(
    tx: Tx,
    principal: Admin,
    path: schemas.AccountLedgerPath,
    header: schemas.OptionalKey,
    body: schemas.ReverseBody,
) -> Accepted:
    """Undo the consumption, adjustment or seed that a row of the ledger belongs to, once, by rows that point to it."""
    return accept(
        tx,
        OperationKind.REVERSE_CREDITS,
        ReverseCredits(seq=path.seq, reason=body.reason),
        principal=principal,
        account_id=accounts.get(tx, path.account_id).id,
        body=body,
        key=header.idempotency_key,
    )


@routes.handle("POST", "/admin/invoices/<uuid:invoice_id>/payments", needs=ADMIN, answer=ACCEPTED)
def record_payment(
    tx: Tx,
    principal: Admin,
    path: schemas.InvoicePath,
    header: schemas.OptionalKey,
    body: schemas.RecordPaymentBody,
) -> Accepted:
    """Record money that arrived by some other way than a provider or a bank transfer."""
    return accept(
        tx,
        OperationKind.RECORD_PAYMENT,
        RecordPayment(invoice_id=path.invoice_id, **dict(body)),
        principal=principal,
        account_id=invoices.account_of(tx, path.invoice_id),
        body=body,
        key=header.idempotency_key,
    )


def _subscription(tx: Tx, account_id: UUID) -> SubscriptionDocument | None:
    try:
        return subscription_document(tx, account_id)
    except NotFound:
        return None
