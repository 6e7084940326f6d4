"""A bare route to compare with: a body validated, one statement that takes credits and notes it, and nothing else.

No principal, no key, no grants, no expiry: an UPDATE of a balance that suffices, and a row.
"""

from typing import Annotated, Final
from uuid import UUID

from flask import Flask, Response, request
from pydantic import BaseModel, Field
from sqlalchemy import Engine, create_engine, text

from shared.config import get_settings

TABLES: Final = """
    CREATE TABLE bare_accounts (
        id uuid PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0)
    ) WITH (fillfactor = 80);
    CREATE TABLE bare_ledger (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        account_id uuid NOT NULL, amount bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now()
    );
    INSERT INTO bare_accounts SELECT id, 1000000000 FROM accounts WHERE kind = 'customer';
    """

TAKE: Final = text(
    """
    WITH taken AS (
        UPDATE bare_accounts SET balance = balance - :amount WHERE id = :account_id AND balance >= :amount
        RETURNING id, balance
    ), noted AS (
        INSERT INTO bare_ledger (account_id, amount) SELECT id, - :amount FROM taken
    )
    SELECT balance FROM taken
    """
)


class Body(BaseModel):
    """How many credits, of whom."""

    account_id: UUID
    amount: Annotated[int, Field(ge=1, le=1_000_000_000_000)]


class Answer(BaseModel):
    """What is left."""

    balance: int


def create_app() -> Flask:
    """The application; its pool is made at the first request, so never before a fork."""
    app = Flask("bare")
    settings = get_settings()
    engines: list[Engine] = []

    @app.post("/consume")
    def consume() -> Response:
        if not engines:
            engines.append(create_engine(settings.database_url or "", pool_size=settings.api_threads))
        body = Body.model_validate_json(request.get_data())
        with engines[0].begin() as connection:
            row = connection.execute(TAKE, {"account_id": body.account_id, "amount": body.amount}).one_or_none()
        if row is None:
            return Response("{}", status=402, content_type="application/json")
        return Response(Answer(balance=row.balance).model_dump_json(), content_type="application/json")

    return app
