"""The audit log over HTTP: who decided what, when and why, found by any of it."""

from typing import Any

import pytest

from tests.api.conftest import Api, Engine
from tests.db.world import Customer


@pytest.fixture
def decided(admin: Api, engine: Engine, ada: Customer) -> list[dict[str, Any]]:
    """An admin gives credits, then a plan; the rows, newest first. Another account has signed up, too."""
    engine.sign_up()
    engine.finish(admin.post(f"/admin/accounts/{ada.account_id}/credits", {"amount": 5, "reason": "sorry"}))
    engine.finish(admin.post(f"/admin/accounts/{ada.account_id}/plan", {"plan": "enterprise", "reason": "a deal"}))
    return [row for row in admin.get("/admin/audit").get_json()["items"] if row["actor_kind"] == "admin"]


def test_a_decision_has_actor_reason_before_and_after(decided: list[dict[str, Any]], ada: Customer) -> None:
    plan, credits = decided
    assert (plan["action"], credits["action"]) == ("plan.assigned", "credits.adjusted")
    assert (credits["actor_kind"], credits["reason"]) == ("admin", "sorry")
    assert credits["account_id"] == credits["subject_id"] == str(ada.account_id)
    assert credits["after"]["balance_credits"] - credits["before"]["balance_credits"] == 5
    assert credits["operation_id"] != plan["operation_id"]


FILTERS = ["action", "account_id", "actor_id", "subject_id", "operation_id"]


@pytest.mark.parametrize("name", FILTERS)
def test_decisions_are_found_by(admin: Api, decided: list[dict[str, Any]], name: str) -> None:
    wanted = decided[1][name]
    everything = admin.get("/admin/audit").get_json()["items"]
    expected = [row["id"] for row in everything if row[name] == wanted]
    assert 0 < len(expected) < len(everything)
    assert [row["id"] for row in admin.get(f"/admin/audit?{name}={wanted}").get_json()["items"]] == expected
    other = "nothing.of_this" if name == "action" else "01a00000-0000-7000-8000-000000000000"
    assert admin.get(f"/admin/audit?{name}={other}").get_json()["items"] == []


def test_decisions_are_found_by_when_they_were_made(admin: Api, decided: list[dict[str, Any]]) -> None:
    newer, older = decided

    def found(query: str) -> list[str]:
        return [row["id"] for row in admin.get(f"/admin/audit?{query}").get_json()["items"]]

    assert found(f"since={newer['at']}") == [newer["id"]]
    assert found(f"until={newer['at']}&actor_id={newer['actor_id']}") == [older["id"]]
    assert found(f"since={older['at']}&until={newer['at']}&action=plan.assigned") == []


def test_pages_go_on_where_the_last_one_ended(admin: Api, decided: list[dict[str, Any]]) -> None:
    wanted = f"actor_id={decided[0]['actor_id']}&limit=1"
    first = admin.get(f"/admin/audit?{wanted}").get_json()
    second = admin.get(f"/admin/audit?{wanted}&cursor={first['next_cursor']}").get_json()
    assert [*first["items"], *second["items"]] == decided
    assert second["next_cursor"] is None


@pytest.mark.parametrize("query", ["action=no spaces", "actor_id=me", "since=yesterday", "colour=red"])
def test_what_is_no_filter_is_refused(admin: Api, query: str) -> None:
    assert admin.get(f"/admin/audit?{query}").status_code == 422


def test_customers_do_not_read_it(customer: Api) -> None:
    assert customer.get("/admin/audit").status_code == 403
