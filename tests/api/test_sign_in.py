"""Guessing passwords and addresses: what an attacker learns, how often he may try, and whom he can shut out."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from argon2 import PasswordHasher, extract_parameters
from flask import Flask

from api.app import create_app
from api.network import network_of
from api.services import EXTENSION
from shared.config import Settings
from shared.db import admins
from shared.domain.sign_in import FAILURES_OF_ALL, FREE_FAILURES
from shared.ids import new_id
from tests.api.conftest import PASSWORD, PASSWORD_HASH, Api, Engine
from tests.db.world import Customer

WRONG = "not the password"
HERE, THERE = "203.0.113.7", "198.51.100.9"


def attempt(api: Api, email: str, password: str = WRONG, *, network: str = HERE, path: str = "/auth/login") -> Any:
    return api.post(path, {"email": email, "password": password}, environ_overrides={"REMOTE_ADDR": network})


def fail(api: Api, email: str, times: int = FREE_FAILURES, **where: Any) -> None:
    for _ in range(times):
        assert attempt(api, email, **where).status_code == 401


def let_time_pass(engine: Engine, seconds: int) -> None:
    """Whatever was counted was counted so much earlier."""
    engine.execute_sql(
        """
        UPDATE sign_in_attempts SET failed_at = failed_at - make_interval(secs => %(s)s),
               succeeded_at = succeeded_at - make_interval(secs => %(s)s)
        """,
        s=seconds,
    )


@pytest.fixture
def email(engine: Engine, ada: Customer) -> str:
    return engine.email_of(ada)


# --- what an attacker learns ----------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The passwords that were checked, and the parameters of the hashes that they were checked against."""
    seen: list[tuple[str, Any]] = []
    verify = PasswordHasher.verify

    def noting(self: PasswordHasher, kept: str, password: str) -> Any:
        seen.append((password, extract_parameters(kept)))
        return verify(self, kept, password)

    monkeypatch.setattr(PasswordHasher, "verify", noting)
    return seen


@pytest.mark.parametrize("path", ["/auth/login", "/admin/auth/login"])
def test_an_unknown_address_costs_the_same_work_and_is_answered_the_same(
    api: Api, engine: Engine, email: str, hashed: list[tuple[str, Any]], path: str
) -> None:
    with engine.database.transaction() as tx:
        admins.create(tx, admin_id=new_id(), email="root@example.com", password_hash=PASSWORD_HASH)
    known = "root@example.com" if path.startswith("/admin") else email
    answers = [attempt(api, address, path=path) for address in (known, "nobody@example.com")]
    assert answers[0].get_json() == answers[1].get_json()
    assert [answer.status_code for answer in answers] == [401, 401]
    assert hashed[0] == hashed[1], "the same password against a hash with the same parameters"
    assert len(hashed) == 2, "once each"
    counted = "SELECT count(*) FROM sign_in_attempts WHERE failures = 1"
    assert engine.scalar(counted) == 2, "and both are counted"


def test_what_was_typed_is_not_kept(api: Api, engine: Engine, email: str) -> None:
    attempt(api, "nobody@example.com")
    kept = engine.scalar("SELECT string_agg(t::text, '') FROM sign_in_attempts t")
    assert "nobody" not in kept
    assert WRONG not in kept


# --- how often one may try ------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_after_some_failures_the_next_attempt_has_to_wait_longer_and_longer(
    api: Api, engine: Engine, email: str, hashed: list[tuple[str, Any]], known: bool
) -> None:
    address = email if known else "nobody@example.com"
    fail(api, address)
    hashed.clear()
    waits = []
    for _ in range(4):
        answer = attempt(api, address, PASSWORD)
        assert (answer.status_code, answer.get_json()["code"]) == (429, "too_many_attempts")
        assert int(answer.headers["Retry-After"]) == answer.get_json()["retry_after_seconds"]
        waits.append(answer.get_json()["retry_after_seconds"])
        let_time_pass(engine, waits[-1])
        fail(api, address, times=1)
    assert waits == [10, 20, 40, 80]
    assert len(hashed) == 4, "who has to wait is not looked at, right or wrong"


def test_the_right_password_after_the_wait_opens_and_forgives(api: Api, engine: Engine, email: str) -> None:
    fail(api, email)
    assert attempt(api, email, PASSWORD).status_code == 429
    let_time_pass(engine, 10)
    assert attempt(api, email, PASSWORD).status_code == 200
    fail(api, email)
    assert attempt(api, email, PASSWORD).status_code == 429


def test_failures_are_forgotten_after_a_day(api: Api, engine: Engine, email: str) -> None:
    fail(api, email)
    let_time_pass(engine, 24 * 3600)
    fail(api, email)
    assert attempt(api, email).status_code == 429


def test_many_at_once_are_counted_one_by_one(api: Api, engine: Engine, email: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: attempt(api, email).status_code, range(16)))
    assert sorted(set(answers)) == [401, 429]
    assert answers.count(401) == FREE_FAILURES


# --- whom one can shut out --------------------------------------------------------------------------


def test_another_network_is_unaffected(api: Api, email: str) -> None:
    fail(api, email)
    assert attempt(api, email, PASSWORD).status_code == 429
    assert attempt(api, email, PASSWORD, network=THERE).status_code == 200


def test_another_address_is_unaffected(api: Api, engine: Engine, email: str) -> None:
    fail(api, email)
    other = engine.email_of(engine.sign_up())
    assert attempt(api, other, PASSWORD).status_code == 200


def test_customers_and_admins_are_counted_apart(api: Api, engine: Engine, email: str) -> None:
    fail(api, email, path="/admin/auth/login")
    assert attempt(api, email, path="/admin/auth/login").status_code == 429
    assert attempt(api, email, PASSWORD).status_code == 200


def test_from_many_networks_an_address_is_slowed_down_but_not_where_its_owner_has_been(
    api: Api, engine: Engine, email: str
) -> None:
    assert attempt(api, email, PASSWORD, network=THERE).status_code == 200
    engine.execute_sql(
        """
        INSERT INTO sign_in_attempts (who, network, failures, failed_at, expires_at)
        SELECT who, 'network ' || n, 1, now(), now() + interval '1 day'
        FROM sign_in_attempts, generate_series(1, %(n)s) AS n
        """,
        n=FAILURES_OF_ALL,
    )
    answer = attempt(api, email, PASSWORD, network=HERE)
    assert answer.status_code == 429
    assert answer.get_json()["retry_after_seconds"] > 800
    assert attempt(api, email, PASSWORD, network=THERE).status_code == 200, "known for having signed in"
    fail(api, email, network=THERE)
    assert attempt(api, email, network=THERE).status_code == 429, "which is no licence to guess"
    let_time_pass(engine, 3600)
    assert attempt(api, email, PASSWORD, network=HERE).status_code == 200


NETWORKS = {
    "203.0.113.7": "203.0.113.7",
    "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
    "2001:db8:1:2::9": "2001:db8:1:2::/64",
    "fe80::1%eth0": "fe80::/64",
    "::ffff:203.0.113.7": "203.0.113.7",
    "": "unknown",
    "unix:": "unknown",
}


@pytest.mark.parametrize("address", NETWORKS)
def test_a_network_is_an_address_or_what_one_customer_has_of_ipv6(address: str) -> None:
    assert network_of(address) == NETWORKS[address]


# --- hashes with other parameters -------------------------------------------------------------------


@pytest.fixture
def costlier(app: Flask, settings: Settings, documented: dict[str, Any], database: object) -> Iterator[Api]:
    """The API after a restart with other parameters for hashing."""
    other = {"argon2_time_cost": 3, "argon2_memory_kib": 8_192, "argon2_parallelism": 2}
    restarted = create_app(settings.model_copy(update=other))
    yield Api(restarted, restarted.test_client(use_cookies=False), documented, {})
    restarted.extensions[EXTENSION].database.dispose()


def parameters(engine: Engine, table: str, email: str) -> tuple[int, int, int]:
    kept = engine.scalar(f"SELECT password_hash FROM {table} WHERE email = %(email)s", email=email)
    found = extract_parameters(kept)
    return found.time_cost, found.memory_cost, found.parallelism


@pytest.mark.parametrize("table", ["users", "admins"])
def test_a_password_is_hashed_anew_when_parameters_have_changed(
    costlier: Api, engine: Engine, email: str, table: str
) -> None:
    path = "/auth/login"
    if table == "admins":
        email, path = "root@example.com", "/admin/auth/login"
        with engine.database.transaction() as tx:
            admins.create(tx, admin_id=new_id(), email=email, password_hash=PASSWORD_HASH)
    before = parameters(engine, table, email)
    assert attempt(costlier, email, path=path).status_code == 401
    assert parameters(engine, table, email) == before, "not by a wrong password"
    assert attempt(costlier, email, PASSWORD, path=path).status_code == 200
    assert parameters(engine, table, email) == (3, 8_192, 2)
    assert attempt(costlier, email, PASSWORD, path=path).status_code == 200


# --- one address, however it is typed ---------------------------------------------------------------

SPELLINGS = {
    "capitals": ("ada.l@example.com", "ADA.L@Example.COM"),
    "a domain in ASCII": ("ada@b\u00fccher.example.com", "ada@xn--bcher-kva.example.com"),
    "a domain in capitals": ("ada@b\u00fccher.example.com", "ada@B\u00dcCHER.example.com"),
    "a letter in two parts": ("andr\u00e9@example.com", "andre\u0301@example.com"),
    "a wide dot": ("ada@example.com", "ada@example\uff0ecom"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_address_is_one_however_it_is_typed(api: Api, engine: Engine, spelling: str) -> None:
    first, second = SPELLINGS[spelling]
    body = {"account_name": "A", "email": first, "password": PASSWORD}
    assert "user_id" in engine.finish(api.post("/signup", body))
    assert engine.finish(api.post("/signup", body | {"email": second}))["code"] == "email_taken"
    assert attempt(api, second, PASSWORD).status_code == 200
