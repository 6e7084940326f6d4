"""After a restore to an earlier moment: what the provider took meanwhile is found again, and nothing happens twice."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from api.app import create_app
from api.services import EXTENSION
from shared.clock import utc_now
from shared.config import Settings
from shared.db import checks
from shared.db.engine import Database
from shared.db.plans import load_rules
from shared.usecases.ask_providers import ask_providers
from tests.api.conftest import Api, Engine
from tests.api.test_stripe import Shop
from tests.db.test_migrations import opened
from tests.stripe_webhooks import event, sign
from workers import backup
from workers.local_stripe import LocalStripe


@pytest.fixture
def shop(api: Api, engine: Engine, stripe: LocalStripe, settings: Settings) -> Iterator[Shop]:
    shop = Shop(api, engine, stripe, settings)
    yield shop
    shop.app.extensions[EXTENSION].database.dispose()


@pytest.fixture
def restored(empty_url: str) -> Iterator[Database]:
    """An empty database, to be filled; its books are in order in the end."""
    with opened(empty_url) as database:
        yield database
        with database.transaction() as tx:
            assert checks.run_checks(tx) == []


def keep(shop: Shop, folder: Path) -> Path:
    """A backup of this moment."""
    backup.dump(shop.engine.database, folder / "kept.dump", on_table=lambda _: None)
    return folder / "kept.dump"


def go_back(file: Path, restored: Database, shop: Shop) -> Engine:
    backup.restore(restored, file, on_table=lambda _: None)
    return Engine(restored, shop.engine.settings)


def waiting(engine: Engine) -> list[UUID]:
    return list(
        engine.scalar("SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM operations WHERE status = 'pending'")
    )


def status_of(engine: Engine, shop: Shop) -> str:
    return str(engine.scalar("SELECT status FROM invoices WHERE id = %(id)s", id=shop.invoice_id))


def test_a_payment_that_was_made_after_the_moment_is_found_by_asking(
    shop: Shop, restored: Database, tmp_path: Path
) -> None:
    payment = shop.check_out()["external_payment_id"]
    file = keep(shop, tmp_path)
    shop.stripe.customer_pays(payment)
    shop.confirm(payment)
    assert shop.invoice_status == "paid"

    engine = go_back(file, restored, shop)
    assert (status_of(engine, shop), waiting(engine)) == ("open", [])
    for _ in range(2):
        with restored.transaction() as tx:
            rules = load_rules(tx, engine.settings)
            ask_providers(tx, rules, utc_now() + timedelta(minutes=11), 100)
        for operation_id in waiting(engine):
            engine.execute(operation_id)
    assert status_of(engine, shop) == "paid"
    assert engine.scalar("SELECT count(*) FROM payments WHERE status = 'succeeded'") == 1


def test_work_that_was_done_after_the_moment_is_done_again_and_settles_once(
    shop: Shop, restored: Database, tmp_path: Path
) -> None:
    payment = shop.check_out()["external_payment_id"]
    shop.stripe.customer_pays(payment)
    body = {"invoice_id": shop.invoice_id, "provider": "stripe", "external_payment_id": payment}
    accepted = shop.api.post("/payments", body)
    file = keep(shop, tmp_path)
    shop.engine.finish(accepted)

    engine = go_back(file, restored, shop)
    (again,) = waiting(engine)
    assert str(again) == accepted.get_json()["operation_id"], "the relay sends it again"
    assert engine.execute(again)["invoice_id"] == shop.invoice_id
    assert status_of(engine, shop) == "paid"


def test_events_that_are_sent_again_settle_what_the_database_knows_and_list_what_it_does_not(
    shop: Shop, restored: Database, tmp_path: Path
) -> None:
    payment = shop.check_out()["external_payment_id"]
    file = keep(shop, tmp_path)
    shop.stripe.customer_pays(payment)
    known = event("payment_intent.succeeded", shop.payment(payment))
    assert shop.deliver(known) == 204
    shop.work()
    lost = dict(shop.payment("pi_of_an_invoice_that_is_lost"))
    lost["metadata"] = lost["metadata"] | {"invoice_id": "01a00000-0000-7000-8000-000000000001"}
    unknown = event("payment_intent.succeeded", lost, event_id="evt_lost")

    engine = go_back(file, restored, shop)
    app = create_app(engine.settings.model_copy(update={"database_url": restored.url}))
    client = app.test_client()
    for sent_again in (known, unknown):
        answer = client.post("/api/v1/webhooks/stripe", headers=sign(sent_again), data=sent_again)
        assert answer.status_code == 204
    for operation_id in waiting(engine):
        engine.execute(operation_id)
    app.extensions[EXTENSION].database.dispose()
    assert status_of(engine, shop) == "paid"
    told = "SELECT ignored FROM provider_events WHERE event_id = 'evt_lost'"
    assert engine.scalar(told) == "names an invoice that the account does not have"
