"""Credits: reading them, and taking them while the caller waits."""

from http import HTTPStatus
from typing import Final

from api import paging, schemas
from api.access import Customer, Permission, customer
from api.routing import PREFIX, Answer, Routes
from api.schemas import (
    BalanceDocument,
    ConsumptionDocument,
    GrantDocument,
    HoldDocument,
    Page,
    TransactionDocument,
)
from api.services import services
from shared.clock import utc_now
from shared.db import credits
from shared.db.credits import Consumption
from shared.db.engine import Tx
from shared.domain.account import Action
from shared.domain.credits import Source
from shared.domain.operation import PrincipalKind
from shared.errors import InvalidInput

READS: Final = customer(Permission.CREDITS_READ)
CONSUMES: Final = customer(Permission.CREDITS_CONSUME, Action.USE)
TOO_FEW: Final = (HTTPStatus.PAYMENT_REQUIRED,)
SOURCES: Final = {PrincipalKind.USER: Source.USER, PrincipalKind.API_KEY: Source.API_KEY}

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
    rows = credits.transactions_page(
        tx, principal.account_id, before=paging.seq_before(query.cursor), limit=query.limit + 1
    )
    return paging.page(Page[TransactionDocument], rows, TransactionDocument.of, limit=query.limit, key="seq")


@routes.handle("POST", "/credits/consume", needs=CONSUMES, answer=ConsumptionDocument, refusals=TOO_FEW)
def consume(tx: Tx, principal: Customer, header: schemas.RequiredKey, body: schemas.ConsumeBody) -> Answer:
    """Take credits, or none: too few are refused with 402. One key takes once."""
    consumption = credits.consume(
        tx,
        principal.account_id,
        body.amount,
        key=header.idempotency_key,
        source=SOURCES[principal.kind],
        source_id=principal.id,
        reason=body.reason,
        now=utc_now(),
        settings=services().settings,
    )
    return _consumed(body.amount, consumption)


@routes.handle(
    "POST", "/credits/holds", needs=CONSUMES, answer=HoldDocument, status=HTTPStatus.CREATED, refusals=TOO_FEW
)
def place_hold(tx: Tx, principal: Customer, header: schemas.RequiredKey, body: schemas.HoldBody) -> Answer:
    """Reserve credits for a while, to capture or to release."""
    settings = services().settings
    ttl_seconds = body.ttl_seconds or settings.hold_ttl_seconds
    if ttl_seconds > settings.hold_ttl_max_seconds:
        raise InvalidInput(f"a hold lasts at most {settings.hold_ttl_max_seconds} seconds")
    now = utc_now()
    hold_id, replayed = credits.place_hold(
        tx,
        principal.account_id,
        body.amount,
        key=header.idempotency_key,
        ttl_seconds=ttl_seconds,
        now=now,
        settings=settings,
    )
    hold = HoldDocument.of(credits.hold(tx, principal.account_id, hold_id, now=now))
    return Answer(body=hold, location=f"{PREFIX}/credits/holds/{hold_id}", replayed=replayed)


@routes.handle("GET", "/credits/holds/<uuid:hold_id>", needs=READS, answer=HoldDocument)
def read_hold(tx: Tx, principal: Customer, path: schemas.HoldPath) -> HoldDocument:
    """A hold."""
    return HoldDocument.of(credits.hold(tx, principal.account_id, path.hold_id, now=utc_now()))


@routes.handle("POST", "/credits/holds/<uuid:hold_id>/capture", needs=CONSUMES, answer=ConsumptionDocument)
def capture_hold(tx: Tx, principal: Customer, path: schemas.HoldPath, body: schemas.CaptureBody) -> Answer:
    """Take credits that are held, up to all of them; the rest is free again."""
    captured = credits.capture_hold(
        tx, principal.account_id, path.hold_id, body.amount, now=utc_now(), settings=services().settings
    )
    return _consumed(body.amount, captured)


@routes.handle("POST", "/credits/holds/<uuid:hold_id>/release", needs=CONSUMES, answer=HoldDocument)
def release_hold(tx: Tx, principal: Customer, path: schemas.HoldPath) -> Answer:
    """Take nothing of what is held; all of it is free again."""
    now = utc_now()
    replayed = credits.release_hold(tx, principal.account_id, path.hold_id, now=now)
    hold = HoldDocument.of(credits.hold(tx, principal.account_id, path.hold_id, now=now))
    return Answer(body=hold, replayed=replayed)


def _consumed(amount: int, consumption: Consumption) -> Answer:
    document = ConsumptionDocument(consumed_credits=amount, balance_credits=consumption.balance_credits)
    return Answer(body=document, replayed=consumption.replayed)
