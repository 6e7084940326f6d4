"""From an address to a handler: what a route needs is declared with it, and checked before it is called.

A handler takes what it reads by name: `tx` and `principal` (unless anybody may call it), and `path`,
`query`, `header`, `body` as models, from which the OpenAPI document is made too. It returns a model, an
accepted operation, or nothing; it neither commits nor knows a status.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
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
from api.auth import admitted
from api.problems import RefusedRequest
from api.services import services
from shared.db.sessions import Audience

PREFIX: Final = "/api/v1"
BEARER: Final = {Audience.CUSTOMER: "token", Audience.ADMIN: "admin-token"}
ACCEPTED: Final = schemas.AcceptedOperation
STATUS_OF_ANSWER: Final[dict[type[BaseModel] | None, HTTPStatus]] = {
    ACCEPTED: HTTPStatus.ACCEPTED,
    None: HTTPStatus.NO_CONTENT,
}
REPLAYED: Final = "Idempotent-Replayed"

Handler = TypeVar("Handler", bound=Callable[..., Any])


class Answer(Struct, frozen=True, kw_only=True):
    """A document with headers of its own."""

    body: BaseModel
    location: str | None = None
    replayed: bool = False


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
        answer: type[BaseModel] | None,
        status: HTTPStatus | None = None,
        refusals: tuple[HTTPStatus, ...] = (),
    ) -> Callable[[Handler], Handler]:
        """Register a handler for `method rule`; who may call it is part of the registration.

        refusals: statuses to document besides those that follow from the rest.
        """
        if status is None:
            status = STATUS_OF_ANSWER.get(answer, HTTPStatus.OK)

        def register(handler: Handler) -> Handler:
            handler.__dict__.update(needs=needs, status=status)
            decorate: Callable[[Handler], Handler] = getattr(self, method.lower())(
                rule,
                operation_id=handler.__name__,
                security=_security(needs),
                responses={int(status): answer, **_problem_responses(method, rule, needs, refusals)},
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
        raw: Any,  # noqa: ARG004
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
            data = _json_body() if body is not None else b""
            with _request(needs) as given:
                if path is not None:
                    given["path"] = path.model_validate(values)
                if header is not None:
                    given["header"] = _headers(header)
                if query is not None:
                    given["query"] = _query(query)
                if body is not None:
                    given["body"] = _parsed("body", lambda: body.model_validate_json(data, strict=True))
                answer = func(**{name: given[name] for name in given if name in wanted})
            return _respond(answer, status)

        return view


@contextmanager
def _request(needs: Needs) -> Iterator[dict[str, Any]]:
    """What every handler gets; the transaction commits where this ends."""
    if not needs.audiences:
        yield {}
        return
    with admitted(needs) as (tx, principal):
        yield {"tx": tx, "principal": principal}


def _respond(answer: Any, status: HTTPStatus) -> Response:
    if answer is None:
        return Response(status=status)
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


def _json_body() -> bytes:
    """The bytes of a JSON body, read before any transaction is open: the sender may be slow."""
    if request.mimetype != "application/json":
        raise RefusedRequest(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, *problems.HTTP_PROBLEMS[HTTPStatus.UNSUPPORTED_MEDIA_TYPE]
        )
    data = request.get_data(cache=False)
    if request.content_length is None and len(data) >= (request.max_content_length or 0):
        raise RequestEntityTooLarge  # sent in chunks, and cut off by Werkzeug where the limit was reached
    return data


def _query(model: type[BaseModel]) -> BaseModel:
    values: dict[str, Any] = {}
    for name, given in request.args.lists():
        values[name] = given[0] if len(given) == 1 else given  # given twice is no string, and refused as such
    return _parsed("query", lambda: model.model_validate(values))


def _headers(model: type[BaseModel]) -> BaseModel:
    names = [field.alias or name for name, field in model.model_fields.items()]
    values = {name: request.headers[name] for name in names if name in request.headers}
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


def _problem_responses(method: str, rule: str, needs: Needs, refusals: tuple[HTTPStatus, ...]) -> dict[int, Any]:
    statuses = {*refusals, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE}
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
    return {
        int(status): {"description": status.phrase, "content": {problems.MEDIA_TYPE: {"schema": schema}}}
        for status in sorted(statuses)
    }
