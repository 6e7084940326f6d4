"""The API in this process, on the real database; its operations are executed by the use cases, as a worker would."""

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

import msgspec
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from api.services import EXTENSION, Services
from shared import security
from shared.clock import utc_now
from shared.config import Settings
from shared.db import operations, payments, plans
from shared.db.engine import Database, Tx
from shared.domain.operation import Operation
from shared.domain.requests import REQUESTS, ConfirmPayment
from shared.errors import BillingError
from shared.ids import new_id
from shared.providers import provider_for
from shared.usecases import confirm_payment
from tests.db.world import HANDLERS, World
from tests.db.world import Customer as Signed

PASSWORD: Final = "correct horse battery"
PASSWORD_HASH: Final = security.hash_password(PASSWORD)
PROBLEM_MEMBERS: Final = {"type", "title", "status", "detail", "code"}


class Api:
    """A client with one credential, or none. Every answer is held against what the API documents of itself."""

    def __init__(self, client: FlaskClient, documented: dict[str, Any], **headers: str) -> None:
        self._client = client
        self._documented = documented
        self.headers = headers

    def as_(self, **headers: str) -> "Api":
        """The same API for somebody else."""
        return Api(self._client, self._documented, **headers)

    def with_token(self, token: str) -> "Api":
        return self.as_(Authorization=f"Bearer {token}")

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.send("GET", path, **options)

    def post(self, path: str, body: Any = None, *, key: str | None = None, **options: Any) -> TestResponse:
        return self.send("POST", path, body, key=key, **options)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> TestResponse:
        """Send, and hold the answer against what is true of every answer."""
        sent = self.headers | (headers or {}) | ({} if key is None else {"Idempotency-Key": key})
        if body is not None:
            options["json"] = body
        response = self._client.open(f"/api/v1{path}", method=method, headers=sent, **options)
        self._hold(method, response)
        return response

    def _hold(self, method: str, response: TestResponse) -> None:
        assert "Set-Cookie" not in response.headers
        assert response.headers["X-Request-Id"]
        if response.status_code >= 400:
            assert response.content_type == "application/problem+json", response.text
            problem = response.get_json(force=True)
            assert problem.keys() >= PROBLEM_MEMBERS
            assert problem["status"] == response.status_code
            assert PASSWORD not in response.text
            assert "Traceback" not in response.text
        rule = response.request.environ.get("test.rule")
        if rule is not None:
            described = self._documented["paths"][rule][method.lower()]
            assert str(response.status_code) in described["responses"], f"{method} {rule} {response.text}"


class Engine:
    """What a worker does, on demand."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def finish(self, operation_id: str) -> dict[str, Any] | str:
        """Execute an accepted operation: its result, or the code of its refusal."""
        with self._database.transaction() as tx:
            operation = operations.begin_attempt(tx, UUID(operation_id))
            assert operation is not None, "accepted means pending"
            try:
                with tx.savepoint():
                    result = self._execute(tx, operation)
            except BillingError as refusal:
                payments.fail(tx, operation.id, refusal, at=utc_now())
                operations.fail(tx, operation.id, refusal, now=utc_now())
                return refusal.code
            operations.succeed(tx, operation.id, result=result, now=utc_now())
            return result

    def _execute(self, tx: Tx, operation: Operation) -> dict[str, Any]:
        rules = plans.load_rules(tx, self._settings)
        request = msgspec.convert(operation.payload, REQUESTS[operation.kind])
        if not isinstance(request, ConfirmPayment):
            return HANDLERS[operation.kind](tx, operation, request, rules, now=operation.created_at)
        confirm_payment.record_intent(tx, operation, request, rules)
        provider = provider_for(request.provider, self._settings, self._database)
        answer = provider.retrieve(request.external_payment_id)
        return confirm_payment.settle_confirmed(tx, operation, request, answer, rules, now=operation.created_at)


@pytest.fixture(scope="session")
def app(settings: Settings) -> Iterator[Flask]:
    """The application of this worker's database."""
    app = create_app(settings.model_copy(update={"api_threads": 4}))

    @app.before_request
    def note_rule() -> None:
        from flask import request  # noqa: PLC0415

        if request.url_rule is not None:
            rule = request.url_rule.rule.replace("<uuid:", "{").replace(">", "}")
            request.environ["test.rule"] = rule if rule.startswith("/api/") else None

    yield app
    services: Services = app.extensions[EXTENSION]
    services.database.dispose()


@pytest.fixture
def api(app: Flask, database: Database) -> Api:
    """The API for nobody in particular, on a fresh database."""
    client = app.test_client(use_cookies=False)
    return Api(client, client.get("/openapi.json").get_json())


@pytest.fixture
def engine(database: Database, settings: Settings) -> Engine:
    return Engine(database, settings)


@pytest.fixture
def signed_up(database: Database, settings: Settings) -> Signed:
    """A customer on the wall clock, in the trial; the owner's password is PASSWORD."""
    return sign_up(database, settings)


@pytest.fixture
def customer(api: Api, database: Database, signed_up: Signed) -> Api:
    """The API for that customer's owner."""
    return signed_in(api, database, signed_up)


@pytest.fixture
def stranger(api: Api, database: Database, settings: Settings) -> Api:
    """The API for the owner of another account."""
    return signed_in(api, database, sign_up(database, settings))


@pytest.fixture
def admin(api: Api, database: Database) -> Api:
    """The API for a platform admin."""
    from shared.db import admins  # noqa: PLC0415

    email = f"{new_id()}@example.com"
    with database.transaction() as tx:
        admins.create(tx, admin_id=new_id(), email=email, password_hash=PASSWORD_HASH)
    tokens = api.post("/admin/auth/login", {"email": email, "password": PASSWORD}).get_json()
    return api.with_token(tokens["access_token"])


def sign_up(database: Database, settings: Settings, **terms: Any) -> Signed:
    with database.transaction() as tx:
        signed = World(tx, settings).sign_up(**({"at": None} | terms))
        tx.execute(
            "UPDATE users SET password_hash = %(hash)s WHERE id = %(id)s", hash=PASSWORD_HASH, id=signed.user_id
        )
    return signed


def email_of(database: Database, signed: Signed) -> str:
    with database.transaction() as tx:
        return str(tx.scalar("SELECT email FROM users WHERE id = %(id)s", id=signed.user_id))


def log_in(api: Api, email: str) -> dict[str, Any]:
    answer = api.post("/auth/login", {"email": email, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    tokens: dict[str, Any] = answer.get_json()
    return tokens


def signed_in(api: Api, database: Database, signed: Signed) -> Api:
    return api.with_token(log_in(api, email_of(database, signed))["access_token"])
