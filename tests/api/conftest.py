"""The API in this process, on the real database; its operations are executed by the use cases, as a worker would."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from uuid import UUID

import msgspec
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from api.app import create_app
from api.services import EXTENSION, Services
from api.throttle import HEADERS as RATE_LIMIT_HEADERS
from shared import security
from shared.clock import utc_now
from shared.config import Settings
from shared.db import admins, operations, payments, plans
from shared.db.engine import Database, Tx
from shared.domain.letter import Letter
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import REQUESTS, ConfirmPayment, FollowRefunds, RefundPayment, SendMail
from shared.errors import BillingError
from shared.ids import new_id
from shared.providers import provider_for
from shared.usecases import confirm_payment, follow_refunds, refund_payment, send_mail
from tests.db.world import HANDLERS, Customer, World

PASSWORD: Final = "correct horse battery"
PASSWORD_HASH: Final = security.hash_password(Settings(), PASSWORD)
PROBLEM_MEMBERS: Final = {"type", "title", "status", "detail", "code"}


class Api:
    """A client with one credential, or none. Every answer is held against what is true of all answers."""

    def __init__(self, app: Flask, client: FlaskClient, documented: dict[str, Any], headers: Mapping[str, str]) -> None:
        self.app = app
        self.client = client
        self.documented = documented
        self.headers = headers

    def sending(self, **headers: str) -> "Api":
        """The same API with these headers alone."""
        return Api(self.app, self.client, self.documented, {k.replace("_", "-"): v for k, v in headers.items()})

    def with_token(self, token: str) -> "Api":
        return self.sending(Authorization=f"Bearer {token}")

    def with_key(self, key: str) -> "Api":
        return self.sending(X_API_Key=key)

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
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> TestResponse:
        """`body` is sent as JSON; `key` as Idempotency-Key; other options are those of Flask's client."""
        sent = {**self.headers, **(headers or {})} | ({} if key is None else {"Idempotency-Key": key})
        if body is not None:
            options["json"] = body
        response = self.client.open(f"/api/v1{path}", method=method, headers=sent, **options)
        self._hold_to_rules(method, f"/api/v1{path}", response)
        return response

    def _hold_to_rules(self, method: str, path: str, response: TestResponse) -> None:
        assert "Set-Cookie" not in response.headers
        assert response.headers["X-Request-Id"]
        assert all(name in response.headers for name in RATE_LIMIT_HEADERS)
        assert PASSWORD.encode() not in response.data
        if response.status_code >= 400:
            assert response.content_type == "application/problem+json", response.text
            problem = response.get_json(force=True)
            assert problem.keys() >= PROBLEM_MEMBERS
            assert problem["status"] == response.status_code
            assert problem["type"] == f"/problems/{problem['code']}"
        try:
            rule, _ = self.app.url_map.bind("").match(path.partition("?")[0], method, return_rule=True)
        except HTTPException:
            return
        described = self.documented["paths"][re.sub(r"<\w+:(\w+)>", r"{\1}", rule.rule)][method.lower()]
        assert str(response.status_code) in described["responses"], f"{method} {path}: {response.text}"


class Engine:
    """What a worker does, on demand."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.letters: list[Letter] = []

    def finish(self, accepted: TestResponse) -> dict[str, Any]:
        """Execute an accepted operation: its result, or the problem that it ends in."""
        assert accepted.status_code == 202, accepted.text
        return self.execute(UUID(accepted.get_json()["operation_id"]))

    def execute(self, operation_id: UUID) -> dict[str, Any]:
        """The same of one that nobody outside has asked for."""
        with self.database.transaction() as tx:
            operation = operations.begin_attempt(tx.maybe, operation_id)
            assert operation is not None, "what is accepted is pending"
            try:
                decide = self._asked(tx, operation)
                with tx.savepoint():
                    result = decide()
            except BillingError as refusal:
                payments.fail(tx, operation.id, refusal, at=utc_now())
                operations.fail(tx, operation.id, refusal, now=utc_now())
                return {"code": refusal.code}
            if isinstance(result, BillingError):
                operations.fail(tx, operation.id, result, now=utc_now())
                return {"code": result.code}
            operations.succeed(tx, operation.id, result=result, now=utc_now())
            return result

    def execute_sql(self, sql: str, **params: Any) -> None:
        with self.database.transaction() as tx:
            tx.execute(sql, **params)

    def scalar(self, sql: str, **params: Any) -> Any:
        with self.database.transaction() as tx:
            return tx.scalar(sql, **params)

    def tables_behind_the_wall(self) -> list[str]:
        with self.database.transaction() as tx:
            rows = tx.rows(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relrowsecurity"
            )
        return [row.relname for row in rows]

    def sign_up(self, **terms: Any) -> Customer:
        """A customer on the wall clock, in the trial, whose owner's password is PASSWORD."""
        with self.database.transaction() as tx:
            customer = World(tx, self.settings).sign_up(**({"at": None} | terms))
            tx.execute(
                "UPDATE users SET password_hash = %(hash)s WHERE id = %(id)s",
                hash=PASSWORD_HASH,
                id=customer.user_id,
            )
        return customer

    def email_of(self, customer: Customer) -> str:
        return str(self.scalar("SELECT email FROM users WHERE id = %(id)s", id=customer.user_id))

    def log_in(self, api: Api, customer: Customer) -> dict[str, Any]:
        """The owner's tokens."""
        answer = api.post("/auth/login", {"email": self.email_of(customer), "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.get_json()
        return tokens

    def signed_in(self, api: Api, customer: Customer) -> Api:
        return api.with_token(self.log_in(api, customer)["access_token"])

    def suspend(self, customer: Customer) -> None:
        """The trial has ended by its date; no worker has been there."""
        self.execute_sql(
            "UPDATE accounts SET access_ends_at = %(now)s WHERE id = %(id)s", id=customer.account_id, now=utc_now()
        )

    def cancel(self, customer: Customer) -> None:
        self.execute_sql("UPDATE accounts SET status = 'cancelled' WHERE id = %(id)s", id=customer.account_id)

    def _asked(self, tx: Tx, operation: Operation) -> Callable[[], dict[str, Any] | BillingError]:
        """What is left to do of it, once its provider was asked."""
        rules = plans.load_rules(tx, self.settings)
        request = msgspec.convert(operation.payload, REQUESTS[operation.kind])
        now = operation.created_at
        if isinstance(request, RefundPayment):
            return lambda: self._give_back(tx, operation, request, rules)
        if isinstance(request, FollowRefunds):
            provider = provider_for(request.provider, self.settings, self.database)
            made = provider.refunds_of(request.external_payment_id)
            return lambda: follow_refunds.follow_refunds(tx, operation, request, made, rules, now=now)
        if isinstance(request, SendMail):
            letter = send_mail.compose(tx, operation, request, settings=self.settings, now=utc_now())
            self.letters += [] if letter is None else [letter]
            return lambda: send_mail.sent(tx, operation, request, None, rules)
        if not isinstance(request, ConfirmPayment):
            return lambda: HANDLERS[operation.kind](tx, operation, request, rules, now=now)
        confirm_payment.record_intent(tx, operation, request, rules)
        answer = provider_for(request.provider, self.settings, self.database).retrieve(request.external_payment_id)
        return lambda: confirm_payment.settle_confirmed(tx, operation, request, answer, rules, now=now)

    def _give_back(self, tx: Tx, operation: Operation, request: RefundPayment, rules: Rules) -> dict[str, Any]:
        intent = refund_payment.record_refund(tx, operation, request, rules)
        answer = None
        if intent.request is not None:
            provider = provider_for(intent.provider, self.settings, self.database)
            answer = refund_payment.give_back(provider, intent.request, intent, now=utc_now())
        result = refund_payment.complete_refund(tx, operation, request, answer, rules, now=operation.created_at)
        assert isinstance(result, dict), "the sandbox refuses nothing"
        return result


@pytest.fixture(scope="session")
def app(settings: Settings) -> Iterator[Flask]:
    """The application on this worker's database."""
    app = create_app(settings.model_copy(update={"api_threads": 4}))
    yield app
    app.extensions[EXTENSION].dispose()


@pytest.fixture(scope="session")
def documented(app: Flask) -> dict[str, Any]:
    """The OpenAPI document."""
    document: dict[str, Any] = app.test_client().get("/openapi.json").get_json()
    return document


@pytest.fixture
def api(app: Flask, documented: dict[str, Any], database: Database) -> Api:
    """The API for nobody in particular, on a fresh database."""
    return Api(app, app.test_client(use_cookies=False), documented, {})


@pytest.fixture
def engine(database: Database, settings: Settings) -> Engine:
    return Engine(database, settings)


@pytest.fixture
def ada(engine: Engine) -> Customer:
    """A customer on the wall clock, in the trial."""
    return engine.sign_up()


@pytest.fixture
def customer(api: Api, engine: Engine, ada: Customer) -> Api:
    """The API for Ada, the owner of her account."""
    return engine.signed_in(api, ada)


@pytest.fixture(params=[True, False], ids=["both walls", "scoped queries alone"])
def stranger(request: pytest.FixtureRequest, api: Api, engine: Engine) -> Iterator[Api]:
    """The API for the owner of another account; then without row-level security, which would hide a missing scope."""
    walled = [] if request.param else engine.tables_behind_the_wall()
    for table in walled:
        engine.execute_sql(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    yield engine.signed_in(api, engine.sign_up())
    for table in walled:
        engine.execute_sql(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")


@pytest.fixture
def admin(api: Api, engine: Engine) -> Api:
    """The API for a platform admin."""
    email = f"{new_id()}@example.com"
    with engine.database.transaction() as tx:
        admins.create(tx, admin_id=new_id(), email=email, password_hash=PASSWORD_HASH)
    tokens = api.post("/admin/auth/login", {"email": email, "password": PASSWORD}).get_json()
    return api.with_token(tokens["access_token"])


@pytest.fixture
def user_key(customer: Api) -> Api:
    """The API for a key of Ada's account with every scope."""
    scopes = ["billing:read", "credits:consume", "credits:read"]
    answer = customer.post("/api-keys", {"name": "all", "scopes": scopes})
    return customer.with_key(answer.get_json()["key"])


@pytest.fixture
def variant(settings: Settings) -> Iterator[Any]:
    """Make the application with other settings."""
    made: list[Flask] = []

    def make(**changed: Any) -> FlaskClient:
        made.append(create_app(settings.model_copy(update=changed)))
        return made[-1].test_client()

    yield make
    for app in made:
        services: Services = app.extensions[EXTENSION]
        if services.settings.database_url is not None:
            services.database.dispose()
