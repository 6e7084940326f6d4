"""From an address to a handler: what a route needs is declared with it, and checked before it is called.

A handler takes what it reads by name: `tx` and `principal` (unless anybody may call it), or the `asker` of a single
question to the database, which lets the customer in by itself; without a `tx`, it opens transactions of its own. And
`path`, `query`, `header`, `body` as models, from which the OpenAPI document is made too, or `raw` for bytes that are no
document of ours. It returns a model, an accepted operation, a file that is made once the transaction has ended or sent
while it is read, or nothing; it neither commits nor knows a status.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from http import HTTPStatus
from typing import Any, Final, TypeVar

import structlog
from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from msgspec import Struct
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import RequestEntityTooLarge

from api import problems, schemas
from api.accept import Accepted
from api.access import Needs
from api.auth import admitted, asker
from api.problems import RefusedRequest
from api.services import services
from api.throttle import HEADERS as RATE_LIMIT_HEADERS
from api.throttle import Throttle
from shared.db.sessions import Audience

PREFIX: Final = "/api/v1"
BEARER: Final = {Audience.CUSTOMER: "token", Audience.ADMIN: "admin-token"}
ACCEPTED: Final = schemas.AcceptedOperation
STATUS_OF_ANSWER: Final[dict[type[BaseModel] | None, HTTPStatus]] = {
    ACCEPTED: HTTPStatus.ACCEPTED,
    None: HTTPStatus.NO_CONTENT,
}
REPLAYED: Final = "Idempotent-Replayed"
JSON: Final = ("application/json",)

Handler = TypeVar("Handler", bound=Callable[..., Any])


class Answer(Struct, frozen=True, kw_only=True):
    """A document with headers of its own."""

    body: BaseModel
    location: str | None = None
    replayed: bool = False


class File(Struct, frozen=True):
    """What a route answers that is no document: a file of this media type. is_binary: it is no text."""

    media_type: str
    is_binary: bool = False


Described = type[BaseModel] | File | tuple[File, ...] | None
"""What a route answers; several files where the request chooses one."""


class Rendered(Struct, frozen=True, kw_only=True):
    """A file that is made in one piece.

    make: called when the request's transaction has ended, so what it needs of that is taken before. What goes wrong in
    it is answered like any other failure.
    """

    make: Callable[[], str | bytes]
    content_type: str
    file_name: str
    content_security_policy: str | None = None


class Streamed(Struct, frozen=True, kw_only=True):
    """A file that is sent while it is read.

    chunks: read after the request's transaction has ended, and possibly after the application's context: whatever
    they need of it is taken before. What goes wrong in them cuts the answer off, so refuse what is to be refused first.
    """

    chunks: Iterable[str]
    content_type: str
    file_name: str


class Routes(APIBlueprint):
    """The routes of one concept."""

    def __init__(self, name: str, *, about: str, prefix: str = PREFIX) -> None:
        super().__init__(
            name,
            __name__,
            url_prefix=prefix,
            abp_tags=[Tag(name=name, description=about)],
        )

    def handle(
        self,
        method: str,
        rule: str,
        *,
        needs: Needs,
        answer: Described,
        status: HTTPStatus | None = None,
        refusals: tuple[HTTPStatus, ...] = (),
        max_body_bytes: int | None = None,
        throttle: Throttle = Throttle.CALLER,
    ) -> Callable[[Handler], Handler]:
        """Register a handler for `method rule`; who may call it is part of the registration.

        refusals: statuses to document besides those that follow from the rest.
        max_body_bytes: for a route that takes more than MAX_BODY_BYTES.
        throttle: for a route that counts for the network address, whoever asks.
        """
        if status is None:
            status = HTTPStatus.OK if isinstance(answer, File | tuple) else STATUS_OF_ANSWER.get(answer, HTTPStatus.OK)

        def register(handler: Handler) -> Handler:
            handler.__dict__.update(needs=needs, status=status, max_body_bytes=max_body_bytes, throttle=throttle)
            decorate: Callable[[Handler], Handler] = getattr(self, method.lower())(
                rule,
                operation_id=handler.__name__,
                security=_security(needs),
                responses={int(status): _described(answer), **_problem_responses(method, rule, needs, refusals)},
            )
            return decorate(handler)

        return register

    @staticmethod
    def create_view_func(  # the arguments are flask-openapi3's
        func: Any,
        header: Any,
        cookie: Any,  # noqa: ARG004
        path: Any,
        query: Any,
        form: Any,  # noqa: ARG004
        body: Any,
        raw: Any,
        view_class: Any = None,  # noqa: ARG004
        view_kwargs: Any = None,  # noqa: ARG004
        responses: Any = None,  # noqa: ARG004
        validate_response: Any = None,  # noqa: ARG004
    ) -> Callable[..., Response]:
        """The view of a handler: let in, parse, call, commit, answer."""
        needs: Needs = func.needs
        status: HTTPStatus = func.status
        wanted = func.__annotations__.keys()

        @wraps(func)
        def view(**values: Any) -> Response:
            data = _read_body(JSON) if body is not None else b""
            if raw is not None:
                if needs.audiences:
                    with admitted(needs):
                        pass  # these bodies are large, so whoever would not be let in is not listened to
                _read_body(raw.mimetypes)

            def read() -> dict[str, Any]:
                given: dict[str, Any] = {}
                if path is not None:
                    given["path"] = _parsed("path", lambda: path.model_validate(values))
                if header is not None:
                    given["header"] = _headers(header)
                if query is not None:
                    given["query"] = _query(query)
                if body is not None:
                    given["body"] = _parsed("body", lambda: body.model_validate_json(data, strict=True))
                if raw is not None:
                    given["raw"] = request
                return given

            let_in = _asker if "asker" in wanted else _transaction if "tx" in wanted else _door
            with let_in(needs, read) as given:
                answer = func(**{name: given[name] for name in given if name in wanted})
            return _respond(answer, status)

        return view


@contextmanager
def _transaction(needs: Needs, read: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What most handlers get; the transaction commits where this ends. read: the request, once it is let in."""
    if not needs.audiences:
        yield read()
        return
    with admitted(needs) as (tx, principal):
        yield read() | {"tx": tx, "principal": principal}


@contextmanager
def _door(needs: Needs, read: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What handlers get that open transactions of their own, such as those that ask a provider in between."""
    with _transaction(needs, read) as given:
        pass
    yield given


@contextmanager
def _asker(needs: Needs, read: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What handlers get that put one question, which lets the customer in by itself.

    Whoever would not be let in is told so, and nothing of what else is wrong with the request.
    """
    asking = asker(needs)
    try:
        given = read()
    except RefusedRequest:
        with admitted(needs):
            raise
    yield given | {"asker": asking}


def _respond(answer: Any, status: HTTPStatus) -> Response:
    if answer is None:
        return Response(status=status)
    if isinstance(answer, Streamed):
        return _file(answer.chunks, answer, status)
    if isinstance(answer, Rendered):
        return _rendered(answer, status)
    if isinstance(answer, Accepted):
        answer = _send(answer)
    if isinstance(answer, BaseModel):
        answer = Answer(body=answer)
    response = Response(answer.body.model_dump_json(), status=status, content_type="application/json")
    if answer.location is not None:
        response.headers["Location"] = answer.location
    if answer.replayed:
        response.headers[REPLAYED] = "true"
    return response


def _file(content: Iterable[str] | str | bytes, file: Streamed | Rendered, status: HTTPStatus) -> Response:
    response = Response(content, status=status, content_type=file.content_type)
    response.headers["Content-Disposition"] = f'attachment; filename="{file.file_name}"'
    return response


def _rendered(file: Rendered, status: HTTPStatus) -> Response:
    response = _file(file.make(), file, status)
    if file.content_security_policy is not None:
        response.headers["Content-Security-Policy"] = file.content_security_policy
    return response


def _send(accepted: Accepted) -> Answer:
    """The operation is committed by now: wake a worker, and say where to look."""
    structlog.contextvars.bind_contextvars(operation_id=str(accepted.operation_id))
    if not accepted.replayed:
        services().publisher.send(accepted.kind.task_name, accepted.operation_id)
    return Answer(
        body=accepted.document(),
        location=f"{PREFIX}/operations/{accepted.operation_id}",
        replayed=accepted.replayed,
    )


# --- reading the request ----------------------------------------------------------------------


def _read_body(media_types: Sequence[str]) -> bytes:
    """The bytes of a body, read before any transaction is open: the sender may be slow. They stay on the request."""
    if request.mimetype not in media_types:
        code, _ = problems.HTTP_PROBLEMS[HTTPStatus.UNSUPPORTED_MEDIA_TYPE]
        detail = f"the body must be {' or '.join(media_types)}"
        raise RefusedRequest(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, code, detail)
    data = request.get_data()
    if request.content_length is None and len(data) >= (request.max_content_length or 0):
        raise RequestEntityTooLarge  # sent in chunks, and cut off by Werkzeug where the limit was reached
    return data


def _query(model: type[BaseModel]) -> BaseModel:
    values: dict[str, Any] = {}
    for name, given in request.args.lists():
        values[name] = given[0] if len(given) == 1 else given  # given twice is no string, and refused as such
    return _parsed("query", lambda: model.model_validate(values))


@lru_cache
def _header_names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _headers(model: type[BaseModel]) -> BaseModel:
    given = request.headers
    values = {name: value for name in _header_names(model) if (value := given.get(name)) is not None}
    return _parsed("headers", lambda: model.model_validate(values))


def _parsed(where: str, parse: Callable[[], BaseModel]) -> BaseModel:
    try:
        return parse()
    except ValidationError as error:
        raise problems.invalid(error, where=where) from None


# --- describing the route ---------------------------------------------------------------------


def _security(needs: Needs) -> list[dict[str, list[str]]]:
    schemes: list[dict[str, list[str]]] = [{BEARER[audience]: []} for audience in sorted(needs.audiences)]
    if needs.api_keys:
        schemes.append({"api-key": []})
    if needs.refresh_token:
        schemes.append({"refresh-token": []})
    if needs.anonymous:
        schemes.append({})
    return schemes


def _described(answer: Described) -> type[BaseModel] | dict[str, Any] | None:
    if isinstance(answer, File):
        answer = (answer,)
    if not isinstance(answer, tuple):
        return answer
    return {
        "description": HTTPStatus.OK.phrase,
        "headers": {"Content-Disposition": {"schema": {"type": "string"}}},
        "content": {file.media_type: {} if file.is_binary else {"schema": {"type": "string"}} for file in answer},
    }


def _problem_responses(method: str, rule: str, needs: Needs, refusals: tuple[HTTPStatus, ...]) -> dict[int, Any]:
    statuses = {
        *refusals,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.SERVICE_UNAVAILABLE,
    }
    if needs.audiences or needs.refresh_token:
        statuses |= {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
    if "<" in rule:
        statuses.add(HTTPStatus.NOT_FOUND)
    if method in {"POST", "PATCH"}:
        statuses |= {
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.NOT_FOUND,
            HTTPStatus.CONFLICT,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        }
    schema = {"$ref": f"#/components/schemas/{schemas.Problem.__name__}"}
    described: dict[int, Any] = {
        int(status): {"description": status.phrase, "content": {problems.MEDIA_TYPE: {"schema": schema}}}
        for status in sorted(statuses)
    }
    described[HTTPStatus.TOO_MANY_REQUESTS]["headers"] = {
        name: {"schema": {"type": "integer"}} for name in ("Retry-After", *RATE_LIMIT_HEADERS)
    }
    return described
