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

from flask import Response, request
from flask_openapi3 import APIBlueprint, Tag
from pydantic import BaseModel, ValidationError

from api import problems, schemas
from api.access import Needs
from api.accept import Accepted
from api.auth import admitted
from api.problems import RefusedRequest
from api.services import services
from shared.db.sessions import Audience

PREFIX: Final = "/api/v1"
NO_CONTENT: Final = HTTPStatus.NO_CONTENT
BEARER: Final = {"customer": "token", "admin": "admin-token"}
REPLAYED: Final = "Idempotent-Replayed"

Handler = TypeVar("Handler", bound=Callable[..., Any])
Answer = BaseModel | Accepted | None


class Placed(BaseModel):
    """An answer with headers of its own."""

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
        status: HTTPStatus = HTTPStatus.OK,
    ) -> Callable[[Handler], Handler]:
        """Register a handler for `method rule`; who may call it is part of the registration."""

        def register(handler: Handler) -> Handler:
            handler.__dict__.update(needs=needs, status=status)
            decorate: Callable[[Handler], Handler] = getattr(self, method.lower())(
                rule,
                operation_id=handler.__name__,
                security=_security(needs),
                responses={int(status): answer, **_problem_responses(method, rule, needs)},
            )
            return decorate(handler)

        return register

    @staticmethod
    def create_view_func(func: Any, header: Any, _cookie: Any, path: Any, query: Any, *_: Any, **options: Any) -> Any:
        """The view of a handler: let in, parse, call, commit, answer."""
        body: type[BaseModel] | None = func.__annotations__.get("body")
        needs: Needs = func.needs
        status: HTTPStatus = func.status

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
                answer = func(**given)
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
    if isinstance(answer, Accepted):
        if not answer.replayed:
            services().publisher.send(answer.kind.task_name, answer.operation_id)
        answer = Placed(body=answer.body(), location=f"{PREFIX}/operations/{answer.operation_id}", replayed=answer.replayed)
    if answer is None:
        return Response(status=status)
    placed = answer if isinstance(answer, Placed) else Placed(body=answer)
    response = Response(placed.body.model_dump_json(), status=status, content_type="application/json")
    if placed.location is not None:
        response.headers["Location"] = placed.location
    if placed.replayed:
        response.headers[REPLAYED] = "true"
    return response


# --- reading the request ----------------------------------------------------------------------


def _json_body() -> bytes:
    """The bytes of a JSON body, read before any transaction is open: the sender may be slow."""
    if request.mimetype != "application/json":
        raise RefusedRequest(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, *problems.HTTP_PROBLEMS[HTTPStatus.UNSUPPORTED_MEDIA_TYPE]
        )
    return request.get_data(cache=False)


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
    if needs.anonymous:
        schemes.append({})
    return schemes


def _problem_responses(method: str, rule: str, needs: Needs) -> dict[int, Any]:
    statuses = {HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE}
    if needs.audiences:
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
    if rule.startswith("/credits/") and method == "POST":
        statuses.add(HTTPStatus.PAYMENT_REQUIRED)
    schema = {"$ref": f"#/components/schemas/{schemas.Problem.__name__}"}
    return {
        int(status): {"description": status.phrase, "content": {problems.MEDIA_TYPE: {"schema": schema}}}
        for status in sorted(statuses)
    }


AUDIENCES: Final = frozenset(Audience)
