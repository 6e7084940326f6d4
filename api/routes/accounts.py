"""Signing up, and the account as it stands."""

from typing import Any
from uuid import UUID

from sqlalchemy import Row

from api import schemas
from api.accept import Accepted, accept
from api.access import PUBLIC, Customer, Permission, customer
from api.routing import ACCEPTED, Routes
from api.schemas import Access, AccountDocument
from api.services import services
from shared import security
from shared.clock import utc_now
from shared.db import accounts, plans
from shared.db.account_state import now_for
from shared.db.engine import Tx
from shared.domain.account import AccountStatus, Action, require_access
from shared.domain.operation import OperationKind
from shared.domain.requests import SignUp
from shared.errors import Forbidden, InvalidInput

routes = Routes("accounts", about="Signing up, the account, the plans.")


@routes.handle("POST", "/signup", needs=PUBLIC, answer=ACCEPTED)
def sign_up(header: schemas.OptionalKey, body: schemas.SignUpBody) -> Accepted:
    """Create an account with its owner. Poll the operation with the token that this answers."""
    if body.test_clock_id is not None and not services().settings.billing_sandbox:
        raise InvalidInput("test clocks exist in the sandbox only")
    payload = SignUp(
        account_name=body.account_name,
        email=body.email,
        password_hash=security.hash_password(body.password),
        time_zone=body.time_zone,
        test_clock_id=body.test_clock_id,
    )
    with services().database.transaction() as tx:
        return accept(
            tx,
            OperationKind.SIGN_UP,
            payload,
            principal=None,
            account_id=None,
            body=body,
            key=header.idempotency_key,
        )


@routes.handle("GET", "/plans", needs=PUBLIC, answer=schemas.PlansDocument)
def list_plans() -> schemas.PlansDocument:
    """All plans, and who may assign each."""
    with services().database.transaction() as tx:
        catalogue = plans.load_plans(tx).values()
    items = [schemas.PlanDocument.of(plan, assignable_by=sorted(plan.assignable_by)) for plan in catalogue]
    return schemas.PlansDocument(items=items)


@routes.handle("GET", "/account", needs=customer(Permission.BILLING_READ), answer=AccountDocument)
def read_account(tx: Tx, principal: Customer) -> AccountDocument:
    """The account of whoever asks."""
    return AccountDocument.of(**account_facts(tx, principal.account_id))


def account_facts(tx: Tx, account_id: UUID) -> dict[str, Any]:
    """A row of `accounts` with what the gate makes of it, as arguments of `of`."""
    row = accounts.get(tx, account_id)
    now = now_for(tx, account_id, utc_now())
    return {"row": row, "now_at": now, "access": _access(row, now)}


def _access(account: Row[Any], now: Any) -> Access:
    status = AccountStatus(account.status)
    for action, access in ((Action.USE, Access.FULL), (Action.PAY, Access.READ_AND_PAY)):
        try:
            require_access(action, status=status, access_ends_at=account.access_ends_at, now=now)
        except Forbidden:
            continue
        return access
    return Access.READ
