"""The whole system as real processes, on servers of its own, with a Stripe beside it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from shared.config import Settings
from shared.db import admins, checks, plans
from shared.db.engine import Database
from shared.db.migrations import run
from shared.domain.plan import SEED_PLANS
from shared.embedded import Valkey, servers
from shared.ids import new_id
from shared.security import hash_password
from tests.factories import GENEROUS, PLENTY
from workers.demo import PASSWORD, Client, eventually
from workers.local_stripe import LocalStripe
from workers.stack import Stack


class System:
    """A stack on servers of its own, which a test may kill."""

    def __init__(self, stack: Stack, database: Database, broker: Valkey, stripe: LocalStripe) -> None:
        self.stack = stack
        self.database = database
        self.broker = broker
        self.stripe = stripe
        self._clients: list[Client] = []

    def customer(self, **terms: Any) -> Client:
        """Somebody who has just signed up, at work with the API."""
        client = self._client()
        client.sign_up("Ada", **terms)
        return client

    def admin(self) -> Client:
        """A platform admin, at work with the API."""
        email = f"{new_id().hex}@example.com"
        with self.database.transaction() as tx:
            admins.create(
                tx, admin_id=new_id(), email=email, password_hash=hash_password(self.stack.settings, PASSWORD)
            )
        client = self._client()
        client.log_in("/admin/auth/login", email, PASSWORD)
        return client

    def _client(self) -> Client:
        self._clients.append(Client(self.stack.url))
        return self._clients[-1]

    def close(self) -> None:
        """Let go of what was opened."""
        for client in self._clients:
            client.close()
        self.database.dispose()

    def findings(self) -> list[checks.Finding]:
        """Every broken invariant."""
        with self.database.transaction() as tx:
            return checks.run_checks(tx, self.stack.settings)

    def sign_up(self) -> httpx.Response:
        body = {"account_name": "Ada", "email": f"{new_id().hex}@example.com", "password": PASSWORD}
        return httpx.post(f"{self.stack.url}/api/v1/signup", json=body, timeout=10)

    def kill_broker(self) -> None:
        os.kill(self.broker.pid, signal.SIGKILL)
        eventually(lambda: None if self.broker.running() else True, "the broker to be gone")

    def start_broker(self) -> None:
        self.broker.start()
        self.broker.wait()

    def forget_all_messages(self) -> None:
        with redis.Redis.from_url(self.broker.url) as client:
            client.flushall()

    def accounts(self) -> int:
        with self.database.transaction() as tx:
            return int(tx.scalar("SELECT count(*) FROM accounts WHERE kind = 'customer'"))

    def eventually_has_accounts(self, count: int) -> None:
        eventually(lambda: True if self.accounts() == count else None, f"{count} accounts")


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder: Path = tmp_path_factory.mktemp("system")
    wanted = Settings(data_dir=folder, api_bind="127.0.0.1:0", billing_sandbox=True, beat_interval_seconds=1)
    wanted = wanted.model_copy(update=GENEROUS)
    with servers(wanted, postgres_options=("fsync=off",)) as settings:
        assert settings.database_url is not None
        run.upgrade(settings.database_url)
        database = Database(settings.database_url, application_name="tests")
        with database.transaction() as tx:
            plans.seed(tx, SEED_PLANS)
            tx.execute("UPDATE plans SET requests_per_minute = %(plenty)s", plenty=PLENTY)
        with LocalStripe(folder) as stripe, Stack(stripe.settings(settings)) as stack:
            stripe.send_webhooks_to(f"{stack.url}/api/v1/webhooks/stripe")
            system = System(stack, database, Valkey(folder / "valkey"), stripe)
            yield system
            system.close()
