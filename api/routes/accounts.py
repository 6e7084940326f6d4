"""Signing up, and the account as it stands."""

from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row

from api import schemas
from api.accept import Accepted, accept
from api.access import PUBLIC, Customer, Permission, customer
from api.routing import ACCEPTED, Routes
from api.schemas import Access, AccountDocument
from api.services import services
from api.throttle import Throttle
from shared import security
from shared.clock import utc_now
from shared.db import accounts, plans, signups
from shared.db.account_state import now_for
from shared.db.engine import Tx
from shared.domain import email
from shared.domain.account import AccountStatus, Action, require_access
from shared.domain.letter import LetterKind
from shared.domain.operation import OperationKind
from shared.domain.requests import SendMail, SignUp
from shared.errors import Forbidden, InvalidInput, NotFound, SignupBlocked, Unauthenticated
from shared.ids import new_id

CONFIRMATION_LASTS: Final = timedelta(hours=24)
CONFIRMATION_SCOPE: Final = "confirm-address"

routes = Routes("accounts", about="Signing up, the account, the plans.")


@routes.handle("POST", "/signup", needs=PUBLIC, answer=ACCEPTED, throttle=Throttle.SIGNUP)
def sign_up(header: schemas.OptionalKey, body: schemas.SignUpBody) -> Accepted:
    """Create an account with its owner. Poll the operation with the token that this answers.

    Where addresses have to be confirmed, the operation writes to the address and says no more, whoever has it; the
    account is created by `/auth/verify-email`.
    """
    settings = services().settings
    if body.test_clock_id is not None and not settings.billing_sandbox:
        raise InvalidInput("test clocks exist in the sandbox only")
    if email.is_below(body.email, settings.signup_blocked_domains):
        raise SignupBlocked("addresses of this domain cannot sign up")
    password_hash = security.hash_password(settings, body.password)
    if settings.sends_mail:
        return _write_to(body, password_hash, key=header.idempotency_key)
    payload = SignUp(
        account_name=body.account_name,
        email=body.email,
        password_hash=password_hash,
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


@routes.handle(
    "POST",
    "/auth/verify-email",
    needs=PUBLIC,
    answer=ACCEPTED,
    refusals=(HTTPStatus.UNAUTHORIZED,),
    throttle=Throttle.VERIFICATION,
)
def confirm_address(body: schemas.ConfirmAddressBody) -> Accepted:
    """Create the account that was signed up for, by the token that was mailed and the password that was chosen then.

    Once for each token: presented again, it answers the same operation.
    """
    settings = services().settings
    signup = _open_signup(body.token)
    if not security.verify_password(settings, signup.password_hash, body.password):
        raise Unauthenticated("this is not the password that was chosen at the signup")
    payload = SignUp(
        account_name=signup.account_name,
        email=signup.email,
        password_hash=signup.password_hash,
        time_zone=signup.time_zone,
        test_clock_id=signup.test_clock_id,
    )
    with services().database.transaction() as tx:
        return accept(
            tx,
            OperationKind.SIGN_UP,
            payload,
            principal=None,
            account_id=None,
            body=None,
            key=str(signup.id),
            scope=CONFIRMATION_SCOPE,
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


def _write_to(body: schemas.SignUpBody, password_hash: str, *, key: str | None) -> Accepted:
    """Keep the signup until its address is confirmed, and write to it, with the same work whoever has the address."""
    now = utc_now()
    signup_id = new_id()
    with services().database.transaction() as tx:
        accepted = accept(
            tx,
            OperationKind.SEND_MAIL,
            SendMail(letter=LetterKind.CONFIRM_ADDRESS, subject_id=signup_id),
            principal=None,
            account_id=None,
            body=body,
            key=key,
        )
        if not accepted.replayed:
            signups.create(
                tx,
                signup_id=signup_id,
                account_name=body.account_name,
                email=body.email,
                password_hash=password_hash,
                time_zone=body.time_zone,
                test_clock_id=body.test_clock_id,
                now=now,
                expires_at=now + CONFIRMATION_LASTS,
            )
    return accepted


def _open_signup(token: str) -> Row[Any]:
    signup_id = security.subject_of_token(services().settings, security.Purpose.CONFIRM_ADDRESS, token)
    with services().database.transaction() as tx:
        signup = None if signup_id is None else signups.to_confirm(tx, signup_id, now=utc_now())
    if signup is None:
        raise NotFound("no signup waits for this token, or not any more")
    return signup


def _access(account: Row[Any], now: Any) -> Access:
    status = AccountStatus(account.status)
    for action, access in ((Action.USE, Access.FULL), (Action.PAY, Access.READ_AND_PAY)):
        try:
            require_access(action, status=status, access_ends_at=account.access_ends_at, now=now)
        except Forbidden:
            continue
        return access
    return Access.READ
