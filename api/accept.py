"""Accepted means durable: a request that starts work becomes one row, committed before anything else happens."""

from datetime import timedelta
from typing import Final
from uuid import UUID

import msgspec
from flask import request
from msgspec import Struct
from pydantic import BaseModel

from api import schemas
from api.access import Admin, Customer
from api.services import services
from shared import security
from shared.db import operations
from shared.db.engine import Tx
from shared.domain.operation import PAYLOAD_VERSION, OperationKind, OperationStatus, PrincipalKind
from shared.ids import new_id

SIGNUP_SCOPE: Final = "signup"


class Accepted(Struct, frozen=True, kw_only=True):
    """An operation that is, or was before, written down. Its task is sent once the transaction has committed."""

    operation_id: UUID
    kind: OperationKind
    status: OperationStatus
    replayed: bool
    poll_token: str | None = None

    def document(self) -> schemas.AcceptedOperation:
        """As the API answers it."""
        return schemas.AcceptedOperation(
            operation_id=self.operation_id, kind=self.kind, status=self.status, poll_token=self.poll_token
        )


def accept(
    tx: Tx,
    kind: OperationKind,
    payload: Struct,
    *,
    principal: Customer | Admin | None,
    account_id: UUID | None,
    body: BaseModel | None,
    key: str | None,
    scope: str | None = None,
) -> Accepted:
    """Write down what was asked, or find what this Idempotency-Key stands for.

    payload: of the type that `requests.REQUESTS` names for this kind. scope: within which the key is unique, unless
    that follows from who asks.
    Raises IdempotencyKeyReused when the key came with another request, BacklogFull when a customer's account has too
    much that waits.
    """
    settings = services().settings
    request_hash, *earlier_hashes = security.request_hashes(settings, _canonical_request(body))
    operation_id, replayed = operations.accept(
        tx,
        operation_id=new_id(),
        kind=kind,
        payload=msgspec.to_builtins(payload),
        payload_version=PAYLOAD_VERSION,
        account_id=account_id,
        principal_kind=principal.kind if principal is not None else PrincipalKind.ANONYMOUS,
        principal_id=principal.id if principal is not None else None,
        idempotency_scope=scope or _scope(principal),
        idempotency_key=key,
        request_hash=request_hash,
        earlier_hashes=earlier_hashes,
        first_send_after=timedelta(seconds=settings.relay_first_after_seconds),
        backlog_limit=settings.account_backlog_limit if isinstance(principal, Customer) else None,
    )
    return Accepted(
        operation_id=operation_id,
        kind=kind,
        status=OperationStatus(operations.get(tx, operation_id).status) if replayed else OperationStatus.PENDING,
        replayed=replayed,
        poll_token=security.poll_token(settings, operation_id) if principal is None else None,
    )


def _scope(principal: Customer | Admin | None) -> str:
    """Within which a key is unique: an account, an admin, or all who sign up."""
    match principal:
        case Customer():
            return str(principal.account_id)
        case Admin():
            return str(principal.id)
        case None:
            return SIGNUP_SCOPE


def _canonical_request(body: BaseModel | None) -> bytes:
    """The same bytes for the same request, whatever the order and spacing of its JSON."""
    content = None if body is None else body.model_dump(mode="json")
    return msgspec.json.encode([request.method, request.path, content], order="sorted")
