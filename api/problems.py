"""Refusals as RFC 9457 problem documents; the only place that knows HTTP statuses of errors.

Every problem has a stable `code`, which clients decide by; `type` leads to its explanation.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from flask import Flask, Response
from pydantic import ValidationError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

from shared import errors
from shared.db.engine import is_transient
from shared.errors import BillingError, ProviderDown

log = structlog.get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
MAX_FIELD_ERRORS: Final = 20

# A class stands for those below it that are not named themselves.
STATUS: Final[Mapping[type[BillingError], HTTPStatus]] = {
    errors.InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ProviderUnavailable: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.InsufficientCredits: HTTPStatus.PAYMENT_REQUIRED,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.TooManyAttempts: HTTPStatus.TOO_MANY_REQUESTS,
    errors.BacklogFull: HTTPStatus.TOO_MANY_REQUESTS,
    errors.WebhookInvalid: HTTPStatus.BAD_REQUEST,
    errors.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
}

# What HTTP itself refuses, before any rule of ours is asked.
HTTP_PROBLEMS: Final[Mapping[HTTPStatus, tuple[str, str]]] = {
    HTTPStatus.BAD_REQUEST: ("bad_request", "the request cannot be understood"),
    HTTPStatus.NOT_FOUND: ("not_found", "there is nothing at this address"),
    HTTPStatus.METHOD_NOT_ALLOWED: ("method_not_allowed", "this address does not answer that method"),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("body_too_large", "the body is larger than is accepted"),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: ("unsupported_media_type", "the body must be application/json"),
    HTTPStatus.TOO_MANY_REQUESTS: ("too_many_requests", "more requests than are allowed; wait as Retry-After says"),
}
UNAVAILABLE: Final = ("unavailable", "a part of the system cannot be reached; try again in a moment")
INTERNAL_ERROR: Final = ("internal_error", "something failed that should not; it has been recorded")
MALFORMED_JSON: Final = ("malformed_json", "the body is not a JSON document")
OPERATION_DEAD: Final = ("operation_dead", "the operation kept failing for an unexpected reason; an admin can retry it")
OTHER_PROBLEMS: Final = (
    (HTTPStatus.SERVICE_UNAVAILABLE, UNAVAILABLE),
    (HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR),
    (HTTPStatus.BAD_REQUEST, MALFORMED_JSON),
    (HTTPStatus.INTERNAL_SERVER_ERROR, OPERATION_DEAD),  # as a worker stores it
)


class RefusedRequest(Exception):
    """A request that is refused for its form: status, code, sentence, and what is wrong where."""

    def __init__(self, status: HTTPStatus, code: str, detail: str, /, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.members = members


def status_of(refusal: type[BillingError]) -> HTTPStatus:
    """The status of an error or of the nearest class above it. Raises KeyError when there is none."""
    for kind in refusal.__mro__:
        if issubclass(kind, BillingError) and kind in STATUS:
            return STATUS[kind]
    raise KeyError(refusal)


def refusals() -> Iterator[type[BillingError]]:
    """Every error that shared/errors.py declares below the root."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, BillingError) and kind is not BillingError:
            yield kind


def document(status: int, code: str, detail: str, /, **members: Any) -> dict[str, Any]:
    """The members of a problem; ours come first and cannot be replaced."""
    ours = {
        "type": f"/problems/{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": int(status),
        "detail": detail,
        "code": code,
    }
    return ours | {name: value for name, value in members.items() if name not in ours}


def stored_document(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The problem of a failed operation, as a synchronous caller would have been answered."""
    members = dict(stored)
    code = str(members.pop("code"))
    detail = str(members.pop("detail"))
    return document(_status_of_code(code), code, detail, **members)


def response(status: int, code: str, detail: str, /, **members: Any) -> Response:
    """A problem as an answer."""
    answer = Response(
        msgspec.json.encode(document(status, code, detail, **members)), status=status, content_type=MEDIA_TYPE
    )
    if status == HTTPStatus.UNAUTHORIZED:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="billing"'
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        answer.headers["Retry-After"] = "1"
    return answer


def invalid(error: ValidationError, *, where: str) -> RefusedRequest:
    """What is wrong with a body, a query or the headers: where and why, and never what was sent."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(item["type"] == "json_invalid" for item in found):
        return RefusedRequest(HTTPStatus.BAD_REQUEST, *MALFORMED_JSON)
    return RefusedRequest(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        errors.InvalidInput.code,
        f"the {where} does not fit",
        errors=[
            {"field": ".".join(str(part)[:64] for part in item["loc"]), "reason": item["type"], "message": item["msg"]}
            for item in found[:MAX_FIELD_ERRORS]
        ],
    )


def install(app: Flask) -> None:
    """Answer every failure of this application with a problem."""
    app.register_error_handler(BillingError, _billing_error)
    app.register_error_handler(RefusedRequest, _refused_request)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def explain(code: str) -> dict[str, Any] | None:
    """What a code stands for, for people who follow a problem's `type`."""
    return _explanations().get(code)


def _status_of_code(code: str) -> int:
    known = explain(code)
    return HTTPStatus.INTERNAL_SERVER_ERROR if known is None else int(known["status"])


def _billing_error(error: BillingError) -> Response:
    answer = response(status_of(type(error)), error.code, error.detail, **error.data)
    if "retry_after_seconds" in error.data:
        answer.headers["Retry-After"] = str(error.data["retry_after_seconds"])
    return answer


def _refused_request(error: RefusedRequest) -> Response:
    return response(error.status, error.code, error.detail, **error.members)


def _http_error(error: HTTPException) -> Response:
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    code, detail = HTTP_PROBLEMS.get(status, (status.name.lower(), status.description or status.phrase))
    answer = response(status, code, detail)
    for name, value in error.get_headers():
        if name in {"Allow", "Retry-After", "Location"}:
            answer.headers[name] = value
    return answer


def _unexpected(error: Exception) -> Response:
    if is_transient(error) or isinstance(error, PoolTimeout | ProviderDown):
        log.warning("unavailable", error=type(error).__name__)
        return response(HTTPStatus.SERVICE_UNAVAILABLE, *UNAVAILABLE)
    log.error("unexpected_error", exc_info=error)
    return response(HTTPStatus.INTERNAL_SERVER_ERROR, *INTERNAL_ERROR)


@lru_cache(maxsize=1)
def _explanations() -> dict[str, dict[str, Any]]:
    found = [(status, code, detail) for status, (code, detail) in (*HTTP_PROBLEMS.items(), *OTHER_PROBLEMS)]
    found += [(status_of(kind), kind.code, " ".join((kind.__doc__ or "").split())) for kind in refusals()]
    return {code: document(status, code, detail) for status, code, detail in found}
