"""API keys that replace each other: a new secret at once, the old one for as long as was asked, never more than two."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.conftest import Api, Engine
from tests.db.world import Customer

ALL_SCOPES = ["billing:read", "credits:consume", "credits:read"]


def make(customer: Api, **terms: Any) -> dict[str, Any]:
    answer = customer.post("/api-keys", {"name": "backend", "scopes": ALL_SCOPES} | terms)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.get_json()
    return made


def rotate(customer: Api, api_key_id: str, hours: int | None = None) -> dict[str, Any]:
    body = {} if hours is None else {"overlap_hours": hours}
    answer = customer.post(f"/api-keys/{api_key_id}/rotate", body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.get_json()
    return made


def opens(customer: Api, key: dict[str, Any]) -> bool:
    return customer.with_key(key["key"]).get("/credits").status_code == 200


def test_without_an_overlap_the_old_secret_ends_at_once(customer: Api, engine: Engine, ada: Customer) -> None:
    site_id = customer.post("/sites", {"name": "Shop", "domain": "shop.example.com"}).get_json()["id"]
    old = make(customer, site_id=site_id, expires_at="2100-01-01T00:00:00Z")
    new = rotate(customer, old["id"])
    assert (opens(customer, old), opens(customer, new)) == (False, True)
    same = ("name", "scopes", "site_id", "expires_at")
    assert [new[name] for name in same] == [old[name] for name in same]
    assert new["prefix"] != old["prefix"]
    assert new["key"].startswith(new["prefix"])
    shown_new, shown_old = customer.get("/api-keys").get_json()["items"]
    assert (shown_new["id"], shown_new["replaced_by"]) == (new["id"], None)
    assert (shown_old["id"], shown_old["replaced_by"]) == (old["id"], new["id"])
    assert "key" not in shown_new
    audited = (
        "SELECT (actor_id, subject_id, after->>'replaced_by')::text FROM audit_log WHERE action = 'api_key.rotated'"
    )
    assert engine.scalar(audited) == f"({ada.user_id},{old['id']},{new['id']})"
    assert new["key"] not in engine.scalar("SELECT string_agg(k::text, '') FROM api_keys k")


def test_during_the_overlap_both_work_and_after_it_the_new_one(customer: Api, engine: Engine) -> None:
    old = make(customer)
    new = rotate(customer, old["id"], hours=24)
    assert (opens(customer, old), opens(customer, new)) == (True, True)
    left = "SELECT extract(epoch FROM expires_at - now()) / 3600 FROM api_keys WHERE id = %(id)s"
    assert engine.scalar(left, id=old["id"]) == pytest.approx(24, abs=0.1)
    engine.execute_sql("UPDATE api_keys SET expires_at = now() WHERE id = %(id)s", id=old["id"])
    assert (opens(customer, old), opens(customer, new)) == (False, True)


def test_an_overlap_prolongs_nothing(customer: Api, engine: Engine) -> None:
    old = make(customer)
    engine.execute_sql("UPDATE api_keys SET expires_at = now() + interval '1 hour'")
    new = rotate(customer, old["id"], hours=24)
    ends = "SELECT count(DISTINCT expires_at) FROM api_keys WHERE expires_at < now() + interval '2 hours'"
    assert engine.scalar(ends) == 1
    assert new["expires_at"] is not None


def test_never_more_than_two_secrets_work(customer: Api) -> None:
    first = make(customer)
    second = rotate(customer, first["id"], hours=24)
    third = rotate(customer, second["id"], hours=24)
    assert [opens(customer, key) for key in (first, second, third)] == [False, True, True]


def test_revoking_the_new_key_ends_the_one_that_it_replaced(customer: Api) -> None:
    old = make(customer)
    new = rotate(customer, old["id"], hours=24)
    assert customer.send("DELETE", f"/api-keys/{new['id']}").status_code == 204
    assert [opens(customer, key) for key in (old, new)] == [False, False]


def test_revoking_the_old_key_leaves_the_one_that_replaced_it(customer: Api) -> None:
    old = make(customer)
    new = rotate(customer, old["id"], hours=24)
    assert customer.send("DELETE", f"/api-keys/{old['id']}").status_code == 204
    assert [opens(customer, key) for key in (old, new)] == [False, True]


ENDS = {
    "replaced": "UPDATE api_keys SET replaced_by = id, expires_at = now() + interval '1 day'",
    "revoked": "UPDATE api_keys SET revoked_at = now()",
    "expired": "UPDATE api_keys SET expires_at = now()",
}


@pytest.mark.parametrize("end", ENDS)
def test_what_has_ended_or_was_replaced_is_not_rotated(customer: Api, engine: Engine, end: str) -> None:
    old = make(customer)
    engine.execute_sql(ENDS[end])
    answer = customer.post(f"/api-keys/{old['id']}/rotate", {})
    assert (answer.status_code, answer.get_json()["code"]) == (409, "api_key_not_live")
    assert engine.scalar("SELECT count(*) FROM api_keys") == 1


def test_of_several_rotations_at_once_one_happens(customer: Api, engine: Engine) -> None:
    old = make(customer)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: customer.post(f"/api-keys/{old['id']}/rotate", {}), range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert engine.scalar("SELECT count(*) FROM api_keys") == 2


@pytest.mark.parametrize("hours", [-1, 169, 1.5, "1", True, None])
def test_an_overlap_is_whole_hours_up_to_a_week(customer: Api, hours: Any) -> None:
    old = make(customer)
    answer = customer.post(f"/api-keys/{old['id']}/rotate", {"overlap_hours": hours})
    assert answer.status_code == 422
    assert opens(customer, old)


def test_a_suspension_bites_both_secrets_at_the_next_request(customer: Api, engine: Engine, ada: Customer) -> None:
    old = make(customer)
    new = rotate(customer, old["id"], hours=1)
    engine.suspend(ada)
    for key in (old, new):
        answer = customer.with_key(key["key"]).post("/credits/consume", {"amount": 1}, key="k")
        assert (answer.status_code, answer.get_json()["code"]) == (403, "account_suspended")
    answer = customer.post(f"/api-keys/{new['id']}/rotate", {})
    assert (answer.status_code, answer.get_json()["code"]) == (403, "account_suspended")
