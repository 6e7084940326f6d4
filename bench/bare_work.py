"""A bare route and a bare task to compare with: a row inserted, a message sent inside the request, a row by a worker.

No principal, no key, no throttle, no attempt that is counted, no row that is locked.
"""

import os
from functools import lru_cache
from typing import Any, Final, Literal
from uuid import UUID

from flask import Flask, Response, request
from pydantic import BaseModel
from sqlalchemy import Engine, create_engine, text

from shared.broker import make_celery
from shared.config import get_settings
from shared.ids import new_id

ASK: Final = text("INSERT INTO bare_asked (id, payload) VALUES (:id, CAST(:payload AS jsonb))")
BEGIN: Final = text("INSERT INTO bare_begun (id) VALUES (:id) ON CONFLICT DO NOTHING")

app = make_celery(get_settings())


class Body(BaseModel):
    """What a checkout asks for."""

    plan: str
    payment_method: Literal["bank_transfer"]


class Answer(BaseModel):
    """What will be worked on."""

    id: UUID


@app.task(name="bench.insert", ignore_result=True)
def insert(asked_id: str) -> None:
    """Insert one row."""
    note_begun(UUID(asked_id))


def note_begun(asked_id: UUID) -> None:
    """Write down, in a transaction of its own, that a worker has this in hand now."""
    with engine(os.getpid()).begin() as connection:
        connection.execute(BEGIN, {"id": asked_id})


@lru_cache(maxsize=1)
def engine(_pid: int) -> Engine:
    """One pool in each process, made after the fork."""
    settings = get_settings()
    return create_engine(settings.database_url or "", pool_size=settings.api_threads)


def create_app() -> Flask:
    """The application, with a route that inserts alone and one that publishes as well."""
    server = Flask("bare")
    sender = make_celery(get_settings(), sends_only=True)

    def ask() -> UUID:
        body, asked_id = Body.model_validate_json(request.get_data()), new_id()
        with engine(os.getpid()).begin() as connection:
            connection.execute(ASK, {"id": asked_id, "payload": body.model_dump_json()})
        return asked_id

    def answer(asked_id: UUID) -> Response:
        return Response(Answer(id=asked_id).model_dump_json(), status=202, content_type="application/json")

    @server.post("/insert")
    def insert_only() -> Response:
        return answer(ask())

    @server.post("/insert-and-publish")
    def insert_and_publish() -> Response:
        asked_id = ask()
        sender.send_task(insert.name, args=(str(asked_id),), retry=False, ignore_result=True)
        return answer(asked_id)

    return server


def watch_begun(*, args: Any, **_: Any) -> None:
    """A handler of Celery's `task_prerun`, for the product's worker: note when it takes an operation up."""
    if args:  # an operation's id; beat jobs have none
        note_begun(UUID(args[0]))
