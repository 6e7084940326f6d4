"""Nothing secret gets out: neither into logs nor metrics, nor into rows that others may read."""

from pathlib import Path

import httpx
import pytest

from shared.ids import new_id
from tests.processes.conftest import System
from workers.demo import PASSWORD, eventually
from workers.local_stripe import SECRET_KEY, WEBHOOK_SECRET

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("processes")]

READ_BY_OTHERS = ("operations", "events", "audit_log", "provider_events", "checkouts", "job_runs")


def test_no_secret_is_in_logs_metrics_or_rows(system: System) -> None:
    ada, admin = system.customer(), system.admin()
    key = ada.post("/api-keys", {"name": "backend", "scopes": ["credits:consume"]})["key"]
    invited = ada.post("/members/invitations", {"email": f"{new_id().hex}@example.com", "role": "viewer"})
    invoice_id = ada.post("/invoices", {"plan": "starter", "payment_method": "stripe"})["invoice_id"]
    begun = ada.post(f"/invoices/{invoice_id}/checkout", {})
    system.stripe.customer_pays(begun["external_payment_id"])
    eventually(lambda: ada.get(f"/invoices/{invoice_id}")["status"] == "paid" or None, "the payment to be settled")
    for path in ("/credits/consume", "/credits/nowhere", "/auth/login"):  # refused, and still logged
        httpx.post(f"{system.stack.url}/api/v1{path}", json={"password": PASSWORD}, headers={"X-API-Key": key})

    secrets = {
        "a password": PASSWORD,
        "a user's token": ada.headers["Authorization"].removeprefix("Bearer "),
        "an admin's token": admin.headers["Authorization"].removeprefix("Bearer "),
        "an API key": key,
        "an invitation": invited["token"],
        "a client secret": begun["client_secret"],
        "the signing key": system.stack.settings.secret_key.get_secret_value(),
        "Stripe's key": SECRET_KEY,
        "Stripe's webhook secret": WEBHOOK_SECRET,
    }
    places = {path.name: path.read_text(errors="replace") for path in logs(system)}
    assert len(places) >= 5
    places["metrics"] = httpx.get(f"{system.stack.url}/metrics").text
    with system.database.transaction() as tx:
        for table in READ_BY_OTHERS:
            places[table] = tx.scalar(f"SELECT coalesce(string_agg(t::text, ' '), '') FROM {table} t")
    found = {(what, where) for what, secret in secrets.items() for where, text in places.items() if secret in text}
    assert found == set()
    assert "argon2" not in places["operations"], "nor the hash of a password, once its operation is done"


def logs(system: System) -> list[Path]:
    return sorted((system.stack.settings.data_dir / "logs").glob("*.log"))
