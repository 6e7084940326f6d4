"""Who asks: from a header to a principal, checked against the database at every request.

A token is believed for its signature and its session is looked up, so what is revoked, suspended or
deleted is shut out at the next request. Cookies are neither made nor read.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import structlog
from flask import Flask, current_app, request
from flask_jwt_extended import JWTManager, create_access_token, create_refresh_token, decode_token
from flask_jwt_extended.exceptions import JWTExtendedException
from jwt import PyJWTError
from msgspec import Struct

from api import throttle
from api.access import (
    API_KEY_HEADER,
    PERMISSIONS,
    Admin,
    Customer,
    Needs,
    Permission,
    Principal,
    Role,
    forbidden,
)
from api.services import services
from shared import security
from shared.clock import utc_now
from shared.config import Settings
from shared.db import account_state, api_keys, audit, credits, sessions
from shared.db.credits import KeyConsumption
from shared.db.engine import Tx
from shared.db.plans import load_rules
from shared.db.sessions import Audience, Rotation
from shared.domain.account import AccountStatus, require_access
from shared.domain.credits import Source
from shared.domain.operation import PrincipalKind
from shared.errors import Forbidden, Unauthenticated, WrongAudience
from shared.ids import new_id

ALGORITHM: Final = "HS256"
CLOCK_SKEW_SECONDS: Final = 10
KNOWN_TOKENS: Final = 2_000  # of each process, some kilobytes each
EXTENSION: Final = "billing-tokens"
NOT_VALID: Final = "the token is not valid, or not any more"
MAX_CREDENTIAL_LENGTH: Final = 2_048
NO_WAY_FOR_KEYS: Final = "an API key does not reach this; sign in"
PRINCIPAL_KINDS: Final = {Audience.CUSTOMER: PrincipalKind.USER, Audience.ADMIN: PrincipalKind.ADMIN}


class Token(Struct, frozen=True, kw_only=True):
    """The claims of a token whose signature is ours and whose time has not run out."""

    id: UUID
    audience: Audience
    principal_id: UUID
    session_id: UUID


class Verified(Struct, frozen=True, kw_only=True):
    """A token whose signature is ours, of this kind. expires_at: in seconds of Unix time."""

    kind: str
    token: Token
    expires_at: float


class Tokens(Struct, frozen=True, kw_only=True):
    """What a sign-in or a refresh hands out."""

    access_token: str
    refresh_token: str
    expires_in_seconds: int


def install(app: Flask, settings: Settings) -> None:
    """Configure tokens: one algorithm, headers only, keys that their ids name; one key signs, all are recognised.

    A signature that was found to be ours stays ours, so it is looked at once; whether the token's time has run out, and
    whether its session lives, is asked at every request.
    """
    key, *earlier = security.signing_keys(settings, "tokens")
    app.config.update(
        JWT_SECRET_KEY=key,
        JWT_ALGORITHM=ALGORITHM,
        JWT_DECODE_ALGORITHMS=[ALGORITHM],
        JWT_DECODE_AUDIENCE=[str(audience) for audience in Audience],
        JWT_DECODE_LEEWAY=CLOCK_SKEW_SECONDS,
        JWT_TOKEN_LOCATION=["headers"],
        JWT_ACCESS_TOKEN_EXPIRES=timedelta(minutes=settings.access_token_minutes),
    )
    keys = {security.key_id(known): known for known in (key, *earlier)}
    manager = JWTManager(app)

    @manager.decode_key_loader
    def key_of(header: dict[str, Any], _claims: dict[str, Any]) -> bytes:
        try:
            return keys[header["kid"]]
        except (KeyError, TypeError):
            raise Unauthenticated("the token is not valid") from None

    app.extensions[EXTENSION] = lru_cache(KNOWN_TOKENS)(_verify)


# --- signing in -------------------------------------------------------------------------------


def open_session(tx: Tx, audience: Audience, principal_id: UUID, *, now: datetime) -> Tokens:
    """Sign somebody in whose password was right."""
    session_id = new_id()
    expires_at = now + timedelta(days=services().settings.refresh_token_days)
    sessions.create(
        tx, session_id=session_id, audience=audience, principal_id=principal_id, now=now, expires_at=expires_at
    )
    return _issue(tx, audience, principal_id, session_id, now=now, expires_at=expires_at)


def refresh_session(audience: Audience) -> Tokens:
    """Exchange the refresh token of this request for a new pair; it is used up by that.

    A token that was used before has been stolen from somebody, so its session ends.
    Raises Unauthenticated, WrongAudience.
    """
    token = _bearer_token("refresh")
    _require_audience(token, frozenset({audience}))
    now = utc_now()
    with services().database.transaction() as tx:
        outcome, expires_at = sessions.use_refresh_token(
            tx, refresh_token_id=token.id, session_id=token.session_id, now=now
        )
        if outcome is Rotation.REUSED:
            _end_misused_session(tx, token, reason="refresh_token_reused", now=now)
        elif expires_at is not None and _live(tx, token, now=now) is not None:
            return _issue(tx, audience, token.principal_id, token.session_id, now=now, expires_at=expires_at)
    raise Unauthenticated("the refresh token is not valid any more; sign in again")


def _issue(
    tx: Tx, audience: Audience, principal_id: UUID, session_id: UUID, *, now: datetime, expires_at: datetime
) -> Tokens:
    refresh_token_id = new_id()
    sessions.add_refresh_token(tx, refresh_token_id=refresh_token_id, session_id=session_id, expires_at=expires_at)
    claims = {"aud": str(audience), "sid": str(session_id)}
    header = {"kid": security.key_id(current_app.config["JWT_SECRET_KEY"])}
    access_life: timedelta = current_app.config["JWT_ACCESS_TOKEN_EXPIRES"]
    return Tokens(
        access_token=create_access_token(
            str(principal_id), additional_claims={**claims, "jti": str(new_id())}, additional_headers=header
        ),
        refresh_token=create_refresh_token(
            str(principal_id),
            expires_delta=expires_at - now,
            additional_claims={**claims, "jti": str(refresh_token_id)},
            additional_headers=header,
        ),
        expires_in_seconds=int(access_life.total_seconds()),
    )


def end_all_sessions(tx: Tx, audience: Audience, principal_id: UUID, *, account_id: UUID | None) -> None:
    """Sign somebody out everywhere, this session included; the audit log says so."""
    now = utc_now()
    ended = sessions.revoke_all(tx, audience, principal_id, reason="logout_all", now=now)
    audit.record(
        tx,
        at=now,
        actor_kind=PRINCIPAL_KINDS[audience],
        actor_id=principal_id,
        action="session.all_revoked",
        account_id=account_id,
        subject_kind=str(PRINCIPAL_KINDS[audience]),
        subject_id=principal_id,
        reason="logout_all",
        after={"sessions": ended},
    )


# --- letting in -------------------------------------------------------------------------------


@contextmanager
def admitted(needs: Needs) -> Iterator[tuple[Tx, Principal | None]]:
    """The transaction of this request, and who it is for. It commits when the request has succeeded.

    Raises Unauthenticated, Forbidden, WrongAudience, AccountSuspended, AccountCancelled.
    """
    credential = _credential(needs)
    if isinstance(credential, Token):
        _require_audience(credential, needs.audiences)
    now = utc_now()
    with services().database.transaction() as tx:
        principal: Principal | None = None
        if isinstance(credential, Token):
            principal = _live(tx, credential, now=now, needs=needs)
        elif credential is not None:
            principal = _live_api_key(tx, credential, needs, now=now)
        if principal is None and credential is not None:
            raise Unauthenticated("the credential is not valid, or not any more")
        _name_in_logs(principal)
        yield tx, principal


def transactions_of(principal: Customer) -> Callable[[], AbstractContextManager[Tx]]:
    """Opens further transactions of whoever this request has let in, also when the application's context has ended.

    Each raises Unauthenticated if the credential has ended meanwhile.
    """
    database = services().database

    @contextmanager
    def transaction() -> Iterator[Tx]:
        with database.transaction() as tx:
            admit_again(tx, principal)
            yield tx

    return transaction


def admit_again(tx: Tx, principal: Customer) -> None:
    """Let another transaction in to the account. Raises Unauthenticated if the credential has ended meanwhile."""
    now = utc_now()
    if principal.key_hash is not None:
        found = api_keys.live(tx, principal.key_hash, now=now)
    elif principal.session_id is not None:
        found = sessions.live_user(tx, principal.session_id, principal.id, now=now)
    else:
        found = None
    if found is None:
        raise Unauthenticated("the credential is not valid any more")


class PrincipalAsker:
    """Lets a customer in and asks about the account's credits, all in one statement: `shared.db.credits.Asker`.

    Every `ask` raises Unauthenticated and Forbidden. The gate is for the functions that are asked.
    """

    def __init__(self, credential: Token | str, permission: Permission) -> None:
        self._permission = permission
        self._credential = credential
        self._presented = _presented(credential, permission)
        self.source = Source.API_KEY if isinstance(credential, str) else Source.USER

    def ask(self, call: str, /, **params: Any) -> Any:
        """As `Asker` says."""
        row = self._ask_together(call, params) or services().database.ask(
            _ASK.format(call=call), **self._presented, **params
        )
        if row is None:
            raise Unauthenticated("the credential is not valid, or not any more")
        structlog.contextvars.bind_contextvars(
            principal_kind=str(self.source), principal_id=str(row.asker_id), account_id=str(row.account_id)
        )
        throttle.charge_account(
            row.account_id,
            row.requests_per_minute,
            api_key_id=row.asker_id if self.source is Source.API_KEY else None,
            served=True,
        )
        if not row.permitted:
            raise forbidden(self._permission)
        return row

    def _ask_together(self, call: str, params: dict[str, Any]) -> Any:
        """What keys consume is asked together with what others do. None: it has to be asked by itself."""
        if call is not credits.CONSUME or self.source is not Source.API_KEY or params["due_applied"]:
            return None
        return services().consuming.ask(
            KeyConsumption(
                hash=self._presented["key_hash"].hex(),
                amount=params["amount"],
                key=params["key"],
                reason=params["reason"],
                at=params["now"],
            )
        )

    def catch_up(self, account_id: UUID, *, now: datetime) -> None:
        """As `Asker` says, in a transaction of its own, on the connections that may do this alone."""
        with services().due_database.transaction() as tx:
            self._admit(tx, now=now)
            account_state.catch_up(tx, account_id, load_rules(tx, services().settings), now=now)

    def _admit(self, tx: Tx, *, now: datetime) -> None:
        """Let a transaction in to the account; to none, if the credential has ended meanwhile."""
        if isinstance(self._credential, str):
            api_keys.live(tx, security.hash_api_key(self._credential), now=now)
        else:
            sessions.live_user(tx, self._credential.session_id, self._credential.principal_id, now=now)


# The functions look the credential up that stands in the place of an account, and who asks follows from it.
_ASK: Final = """
    SELECT answer.* FROM (
        SELECT ROW(%(session_id)s, %(user_id)s, %(key_hash)s, %(allowed)s)::credential AS account_id, NULL::uuid AS id
    ) AS asker CROSS JOIN LATERAL {call} AS answer
    """


def _presented(credential: Token | str, permission: Permission) -> dict[str, Any]:
    """What stands for the credential in `_ASK`, with the roles or the scope that suffice for what is asked."""
    if isinstance(credential, str):
        key_hash = security.hash_api_key(credential)
        return {"session_id": None, "user_id": None, "key_hash": key_hash, "allowed": [str(permission)]}
    roles = [str(role) for role, permissions in PERMISSIONS.items() if permission in permissions]
    return {
        "session_id": credential.session_id,
        "user_id": credential.principal_id,
        "key_hash": None,
        "allowed": roles,
    }


def asker(needs: Needs) -> PrincipalAsker:
    """Whoever presents the credential of this request. Raises Unauthenticated, WrongAudience."""
    credential = _credential(needs)
    if credential is None or needs.permission is None:
        raise Unauthenticated("present a token or an API key")
    if isinstance(credential, Token):
        _require_audience(credential, needs.audiences)
    elif not needs.api_keys:
        raise Forbidden(NO_WAY_FOR_KEYS)
    return PrincipalAsker(credential, needs.permission)


def _name_in_logs(principal: Principal | None) -> None:
    if principal is not None:
        structlog.contextvars.bind_contextvars(principal_kind=str(principal.kind), principal_id=str(principal.id))
    if isinstance(principal, Customer):
        structlog.contextvars.bind_contextvars(account_id=str(principal.account_id))


def _credential(needs: Needs) -> Token | str | None:
    """A token, an API key, or nothing where nothing is needed."""
    api_key = request.headers.get(API_KEY_HEADER)
    if api_key is not None and "Authorization" in request.headers:
        raise Unauthenticated(f"present either a token or an {API_KEY_HEADER}")
    if api_key is not None:
        return api_key[:MAX_CREDENTIAL_LENGTH]
    if needs.anonymous and "Authorization" not in request.headers:
        return None
    return _bearer_token("access")


def _bearer_token(kind: str) -> Token:
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not 0 < len(encoded) <= MAX_CREDENTIAL_LENGTH:
        raise Unauthenticated("present a token: `Authorization: Bearer ...`")
    verify: Callable[[str], Verified] = current_app.extensions[EXTENSION]
    verified = verify(encoded.strip())
    if verified.expires_at + CLOCK_SKEW_SECONDS <= utc_now().timestamp():
        raise Unauthenticated(NOT_VALID)
    if verified.kind != kind:
        raise Unauthenticated(f"this is no {kind} token")
    return verified.token


def _verify(encoded: str) -> Verified:
    """What a token says. Raises Unauthenticated."""
    try:
        claims = decode_token(encoded)
        return Verified(
            kind=str(claims["type"]),
            token=Token(
                id=UUID(claims["jti"]),
                audience=Audience(claims["aud"]),
                principal_id=UUID(claims["sub"]),
                session_id=UUID(claims["sid"]),
            ),
            expires_at=float(claims["exp"]),
        )
    except (PyJWTError, JWTExtendedException, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unauthenticated(NOT_VALID) from error


def _require_audience(token: Token, audiences: frozenset[Audience]) -> None:
    """A token on the other side's routes is refused, and its session ends."""
    if token.audience in audiences:
        return
    with services().database.transaction() as tx:
        _end_misused_session(tx, token, reason="wrong_audience", now=utc_now())
    raise WrongAudience(f"a token for {token.audience} routes opens no other; it has been revoked")


def _live(tx: Tx, token: Token, *, now: datetime, needs: Needs | None = None) -> Principal | None:
    if token.audience is Audience.ADMIN:
        admin = sessions.live_admin(tx, token.session_id, token.principal_id, now=now)
        if admin is None:
            return None
        throttle.charge_admin(admin.id)
        return Admin(id=admin.id, session_id=token.session_id)
    user = sessions.live_user(tx, token.session_id, token.principal_id, now=now)
    if user is None:
        return None
    throttle.charge_account(user.account_id, user.requests_per_minute)
    principal = Customer(
        kind=PrincipalKind.USER,
        id=user.id,
        account_id=user.account_id,
        permissions=PERMISSIONS[Role(user.role)],
        account_at=user.account_at,
        session_id=token.session_id,
    )
    if needs is not None:
        _pass_gate(principal, needs, user)
    return principal


def _live_api_key(tx: Tx, key: str, needs: Needs, *, now: datetime) -> Customer | None:
    key_hash = security.hash_api_key(key)
    row = api_keys.live(tx, key_hash, now=now)
    if row is None:
        return None
    throttle.charge_account(row.account_id, row.requests_per_minute, api_key_id=row.id)
    if not needs.api_keys:
        raise Forbidden(NO_WAY_FOR_KEYS)
    api_keys.note_use(tx, row.id, row.last_used_at, now=now)
    principal = Customer(
        kind=PrincipalKind.API_KEY,
        id=row.id,
        account_id=row.account_id,
        permissions=frozenset(Permission(scope) for scope in row.scopes),
        account_at=row.account_at,
        key_hash=key_hash,
    )
    _pass_gate(principal, needs, row)
    return principal


def _pass_gate(principal: Customer, needs: Needs, account: Any) -> None:
    needs.require(principal.permissions)
    require_access(
        needs.action,
        status=AccountStatus(account.status),
        access_ends_at=account.access_ends_at,
        now=principal.account_at,
    )


def _end_misused_session(tx: Tx, token: Token, *, reason: str, now: datetime) -> None:
    sessions.end_misused(
        tx,
        token.session_id,
        token.principal_id,
        reason=reason,
        request={"method": request.method, "path": request.path[:200]},
        now=now,
    )
