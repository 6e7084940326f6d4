"""Credits: reading them, and taking them while the caller waits."""

from http import HTTPStatus
from typing import Final
from uuid import UUID

from api import paging, schemas
from api.access import Customer, Permission, customer
from api.auth import transactions_of
from api.routing import PREFIX, Answer, File, Routes, Streamed
from api.schemas import (
    BalanceDocument,
    BatchDocument,
    ConsumptionDocument,
    ExplainedTransactionDocument,
    GrantDocument,
    HoldDocument,
    Page,
    TransactionDocument,
)
from api.services import services
from shared.clock import utc_now
from shared.db import credits, ledger
from shared.db.credits import Asker, Consumption, Item
from shared.db.engine import Tx
from shared.domain.account import Action
from shared.errors import InvalidInput

READS: Final = customer(Permission.CREDITS_READ)
CONSUMES: Final = customer(Permission.CREDITS_CONSUME, Action.USE)
TOO_FEW: Final = (HTTPStatus.PAYMENT_REQUIRED,)
MAX_BATCH_BYTES: Final = 512 * 1024
CSV: Final = File("text/csv")

routes = Routes("credits", about="What is left, where it went, and taking it.")


@routes.handle("GET", "/credits", needs=READS, answer=BalanceDocument)
def read_balance(tx: Tx, principal: Customer) -> BalanceDocument:
    """What the account has now."""
    return BalanceDocument.of(credits.balance(tx, principal.account_id, now=utc_now()))


@routes.handle("GET", "/credits/grants", needs=READS, answer=Page[GrantDocument])
def list_grants(tx: Tx, principal: Customer, query: schemas.PageQuery) -> Page[GrantDocument]:
    """The grants that credits come from, spent ones too."""
    rows = credits.grants_page(tx, principal.account_id, before=paging.id_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[GrantDocument], rows, GrantDocument.of, limit=query.limit)


@routes.handle("GET", "/credits/transactions", needs=READS, answer=Page[TransactionDocument])
def list_transactions(tx: Tx, principal: Customer, query: schemas.PageQuery) -> Page[TransactionDocument]:
    """The ledger."""
    return transactions_page(tx, principal.account_id, query)


@routes.handle("GET", "/credits/transactions/<int:seq>", needs=READS, answer=ExplainedTransactionDocument)
def explain_transaction(tx: Tx, principal: Customer, path: schemas.LedgerPath) -> ExplainedTransactionDocument:
    """A row of the ledger, and why it is there: its grant, rule, period, payment, operation, hold and actor."""
    explanation = ledger.explain(tx, principal.account_id, path.seq)
    return ExplainedTransactionDocument.of_explanation(explanation, for_admins=False)


@routes.handle("GET", "/credits/transactions.csv", needs=READS, answer=CSV)
def export_transactions(tx: Tx, principal: Customer) -> Streamed:
    """The whole ledger as it is now, oldest first. Text that a spreadsheet would take for a formula begins with `'`."""
    upto_seq = ledger.newest_seq(tx, principal.account_id)
    chunks = ledger.as_csv(transactions_of(principal), principal.account_id, upto_seq=upto_seq)
    return Streamed(chunks=chunks, content_type="text/csv; charset=utf-8", file_name="transactions.csv")


@routes.handle("POST", "/credits/consume", needs=CONSUMES, answer=ConsumptionDocument, refusals=TOO_FEW)
def consume(asker: Asker, header: schemas.RequiredKey, body: schemas.ConsumeBody) -> Answer:
    """Take credits, or none: too few are refused with 402. One key takes once."""
    consumption = credits.consume(asker, body.amount, key=header.idempotency_key, reason=body.reason, now=utc_now())
    return _consumed(body.amount, consumption)


@routes.handle(
    "POST",
    "/credits/consume-batch",
    needs=CONSUMES,
    answer=BatchDocument,
    refusals=TOO_FEW,
    max_body_bytes=MAX_BATCH_BYTES,
)
def consume_batch(asker: Asker, body: schemas.ConsumeBatchBody) -> BatchDocument:
    """Take credits for up to 1,000 items in their order, each once per its key.

    An item that is refused takes nothing and says why; with `all_or_nothing`, the first refusal refuses them all.
    """
    items = [Item(key=one.key, amount=one.amount, reason=one.reason) for one in body.items]
    batch = credits.consume_batch(asker, items, all_or_nothing=body.all_or_nothing, now=utc_now())
    if not batch.written:
        number, refusal = next((n, one.refusal) for n, one in enumerate(batch.items) if one.refusal is not None)
        raise type(refusal)(refusal.detail, **refusal.data, item=number, key=batch.items[number].key)
    return BatchDocument.of_batch(batch, (item.amount for item in items))


@routes.handle(
    "POST", "/credits/holds", needs=CONSUMES, answer=HoldDocument, status=HTTPStatus.CREATED, refusals=TOO_FEW
)
def place_hold(asker: Asker, header: schemas.RequiredKey, body: schemas.HoldBody) -> Answer:
    """Reserve credits for a while, to capture or to release."""
    settings = services().settings
    ttl_seconds = body.ttl_seconds or settings.hold_ttl_seconds
    if ttl_seconds > settings.hold_ttl_max_seconds:
        raise InvalidInput(f"a hold lasts at most {settings.hold_ttl_max_seconds} seconds")
    placed = credits.place_hold(asker, body.amount, key=header.idempotency_key, ttl_seconds=ttl_seconds, now=utc_now())
    location = f"{PREFIX}/credits/holds/{placed.hold.id}"
    return Answer(body=HoldDocument.of(placed.hold), location=location, replayed=placed.replayed)


@routes.handle("GET", "/credits/holds/<uuid:hold_id>", needs=READS, answer=HoldDocument)
def read_hold(tx: Tx, principal: Customer, path: schemas.HoldPath) -> HoldDocument:
    """A hold."""
    return HoldDocument.of(credits.hold(tx, principal.account_id, path.hold_id, now=utc_now()))


@routes.handle("POST", "/credits/holds/<uuid:hold_id>/capture", needs=CONSUMES, answer=ConsumptionDocument)
def capture_hold(asker: Asker, path: schemas.HoldPath, body: schemas.CaptureBody) -> Answer:
    """Take credits that are held, up to all of them; the rest is free again."""
    return _consumed(body.amount, credits.capture_hold(asker, path.hold_id, body.amount, now=utc_now()))


@routes.handle("POST", "/credits/holds/<uuid:hold_id>/release", needs=CONSUMES, answer=HoldDocument)
def release_hold(asker: Asker, path: schemas.HoldPath) -> Answer:
    """Take nothing of what is held; all of it is free again."""
    released = credits.release_hold(asker, path.hold_id, now=utc_now())
    return Answer(body=HoldDocument.of(released.hold), replayed=released.replayed)


def _consumed(amount: int, consumption: Consumption) -> Answer:
    body = ConsumptionDocument(consumed_credits=amount, balance_credits=consumption.balance_credits)
    return Answer(body=body, replayed=consumption.replayed)


def transactions_page(tx: Tx, account_id: UUID, query: schemas.PageQuery) -> Page[TransactionDocument]:
    """A page of an account's ledger, newest first."""
    rows = credits.transactions_page(tx, account_id, before=paging.seq_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[TransactionDocument], rows, TransactionDocument.of, limit=query.limit, key="seq")
