"""Members: invited, accepted, promoted, removed; nobody above oneself, and never without an owner."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest

from shared.domain.member import RANK, Role
from shared.security import Purpose, sent_token
from tests.api.conftest import PASSWORD, Api, Engine
from tests.db.world import Customer

BOB = "bob@example.com"
OTHER_PASSWORD = "a passphrase of Bob alone"


def invite(by: Api, email: str = BOB, role: str = "viewer") -> dict[str, Any]:
    answer = by.post("/members/invitations", {"email": email, "role": role})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.get_json()
    return made


def accept(api: Api, token: str, password: str = OTHER_PASSWORD) -> Any:
    return api.sending().post("/invitations/accept", {"token": token, "password": password})


def log_in(api: Api, email: str, password: str = OTHER_PASSWORD) -> Any:
    return api.sending().post("/auth/login", {"email": email, "password": password})


def join(by: Api, email: str = BOB, role: str = "viewer") -> tuple[str, Api]:
    """Somebody new in the account of `by`: the id, and the API for that user."""
    member = accept(by, invite(by, email, role)["token"])
    assert member.status_code == 201, member.text
    tokens = log_in(by, email).get_json()
    return member.get_json()["id"], by.with_token(tokens["access_token"])


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["code"]


# --- invitations --------------------------------------------------------------------------------


def test_from_an_invitation_to_a_member(customer: Api, engine: Engine, ada: Customer) -> None:
    made = invite(customer, "Bob@Example.com", "developer")
    assert (made["email"], made["role"], made["invited_by"]) == (BOB, "developer", str(ada.user_id))
    accepted = accept(customer, made["token"])
    assert (accepted.status_code, accepted.get_json()["role"]) == (201, "developer")
    bob = customer.with_token(log_in(customer, BOB).get_json()["access_token"])
    assert bob.get("/account").get_json()["id"] == str(ada.account_id)
    assert bob.post("/api-keys", {"name": "his", "scopes": ["credits:read"]}).status_code == 201

    members = customer.get("/members").get_json()["items"]
    assert [(member["email"], member["role"]) for member in members] == [
        (BOB, "developer"),
        (engine.email_of(ada), "owner"),
    ]
    (listed,) = customer.get("/members/invitations").get_json()["items"]
    assert listed["accepted_at"] is not None
    assert "token" not in listed
    audited = engine.scalar(
        """
        SELECT array_agg(ARRAY[action, subject_kind, subject_id::text] ORDER BY id) FROM audit_log
        WHERE action LIKE 'member.%%'
        """
    )
    assert audited == [
        ["member.invited", "invitation", made["id"]],
        ["member.joined", "member", accepted.get_json()["id"]],
    ]


def test_an_invitation_is_used_once(customer: Api, engine: Engine) -> None:
    token = invite(customer)["token"]
    assert accept(customer, token).status_code == 201
    assert refusal(accept(customer, token)) == (404, "not_found")
    assert engine.scalar("SELECT count(*) FROM users WHERE email = %(email)s", email=BOB) == 1


def test_of_several_who_accept_at_once_one_gets_in(customer: Api, engine: Engine) -> None:
    token = invite(customer)["token"]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda n: accept(customer, token, f"{OTHER_PASSWORD} {n}"), range(4)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 404: 3}
    assert engine.scalar("SELECT count(*) FROM users WHERE email = %(email)s", email=BOB) == 1


ENDS = {
    "expired": "UPDATE invitations SET created_at = created_at - interval '8 days', expires_at = now()",
    "revoked": "UPDATE invitations SET revoked_at = now()",
    "account deleted": "UPDATE accounts SET deleted_at = now() WHERE kind = 'customer'",
}


@pytest.mark.parametrize("end", ENDS)
def test_an_invitation_that_has_ended_is_none(customer: Api, engine: Engine, end: str) -> None:
    token = invite(customer)["token"]
    engine.execute_sql(ENDS[end])
    assert refusal(accept(customer, token)) == (404, "not_found")


def test_an_invitation_is_revoked_by_those_who_may(customer: Api, engine: Engine, ada: Customer) -> None:
    made = invite(customer)
    path = f"/members/invitations/{made['id']}"
    engine.suspend(ada)
    assert customer.send("DELETE", path).status_code == 204, "a suspended account may take access away"
    assert customer.send("DELETE", path).status_code == 204, "again changes nothing"
    assert refusal(accept(customer, made["token"])) == (404, "not_found")
    assert engine.scalar("SELECT count(*) FROM audit_log WHERE action = 'invitation.revoked'") == 1


def test_inviting_again_ends_the_earlier_invitation(customer: Api) -> None:
    first, second = invite(customer, role="admin"), invite(customer, role="viewer")
    assert refusal(accept(customer, first["token"])) == (404, "not_found")
    assert accept(customer, second["token"]).get_json()["role"] == "viewer"


def test_a_token_is_of_its_invitation_and_of_nothing_else(customer: Api, engine: Engine, settings: Any) -> None:
    made = invite(customer)
    other_purpose = sent_token(settings, Purpose.CONFIRM_ADDRESS, UUID(made["id"]))
    changed = made["token"][:-1] + ("A" if made["token"][-1] != "A" else "B")
    for token in (other_purpose, changed, made["token"][:-4], made["token"] + "AAAA", "A" * 64, made["id"]):
        assert refusal(accept(customer, token)) == (404, "not_found"), token
    assert (
        engine.scalar("SELECT count(*) FROM invitations i WHERE i::text LIKE '%%' || %(t)s || '%%'", t=made["token"])
        == 0
    )


def test_inviting_an_address_that_has_an_account_looks_like_any_other(
    customer: Api, engine: Engine, stranger: Api
) -> None:
    other = engine.email_of(engine.sign_up())
    known, unknown = invite(customer, other), invite(customer, BOB)
    assert known.keys() == unknown.keys()
    varying = {"id", "email", "token", "created_at", "expires_at"}
    assert {k: v for k, v in known.items() if k not in varying} == {
        k: v for k, v in unknown.items() if k not in varying
    }
    assert refusal(accept(customer, known["token"])) == (409, "email_taken"), "whoever holds the token is told"
    listed = customer.get("/members/invitations").get_json()["items"]
    assert [item["accepted_at"] for item in listed] == [None, None]


@pytest.mark.parametrize("password", ["bob.example.com", "password1234", "short"])
def test_a_member_chooses_a_password_that_is_hard_to_guess(customer: Api, password: str) -> None:
    token = invite(customer)["token"]
    assert accept(customer, token, password).status_code == 422
    assert accept(customer, token).status_code == 201, "and may try again"


# --- roles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", list(Role))
@pytest.mark.parametrize("own", [Role.OWNER, Role.ADMIN])
def test_nobody_gives_a_role_above_their_own(customer: Api, own: Role, given: Role) -> None:
    """By invitation, by promotion, and neither takes one."""
    by = customer if own is Role.OWNER else join(customer, "admin@example.com", "admin")[1]
    target, _ = join(customer, "target@example.com", "viewer")
    above = RANK[given] > RANK[own]
    invited = by.post("/members/invitations", {"email": "new@example.com", "role": str(given)})
    changed = by.send("PATCH", f"/members/{target}", {"role": str(given)})
    if above:
        assert refusal(invited) == refusal(changed) == (403, "role_above_own")
    else:
        assert (invited.status_code, changed.status_code) == (201, 200)
        assert changed.get_json()["role"] == given


def test_nobody_takes_a_role_above_their_own(customer: Api, ada: Customer) -> None:
    join(customer, "second@example.com", "owner")  # so that it is not for the last owner's sake
    _, admin = join(customer, "admin@example.com", "admin")
    for answer in (
        admin.send("PATCH", f"/members/{ada.user_id}", {"role": "viewer"}),
        admin.send("DELETE", f"/members/{ada.user_id}"),
    ):
        assert refusal(answer) == (403, "role_above_own")


@pytest.mark.parametrize("role", [Role.EDITOR, Role.DEVELOPER, Role.VIEWER])
def test_those_who_manage_nobody_cannot_promote_themselves(customer: Api, role: Role) -> None:
    user_id, member = join(customer, role=str(role))
    answer = member.send("PATCH", f"/members/{user_id}", {"role": "owner"})
    assert refusal(answer) == (403, "forbidden")
    assert member.get("/members").status_code == 403


def test_a_role_counts_from_the_next_request_on(customer: Api, engine: Engine) -> None:
    user_id, bob = join(customer, role="viewer")
    assert bob.post("/sites", {"name": "Shop", "domain": "shop.example.com"}).status_code == 403
    assert customer.send("PATCH", f"/members/{user_id}", {"role": "editor"}).status_code == 200
    assert bob.post("/sites", {"name": "Shop", "domain": "shop.example.com"}).status_code == 201
    audited = "SELECT (before->>'role', after->>'role')::text FROM audit_log WHERE action = 'member.role_changed'"
    assert engine.scalar(audited) == "(viewer,editor)"


# --- removal ------------------------------------------------------------------------------------


def test_who_is_removed_is_out_at_the_next_request_and_the_keys_stay(customer: Api, engine: Engine) -> None:
    user_id, bob = join(customer, role="developer")
    tokens = log_in(customer, BOB).get_json()
    key = bob.post("/api-keys", {"name": "his", "scopes": ["credits:read"]}).get_json()["key"]
    assert customer.send("DELETE", f"/members/{user_id}").status_code == 204
    assert bob.get("/account").status_code == 401
    assert customer.with_token(tokens["refresh_token"]).post("/auth/refresh").status_code == 401
    assert log_in(customer, BOB).status_code == 401
    assert customer.with_key(key).get("/credits").status_code == 200, "it is the account's"
    reasons = "SELECT DISTINCT revoked_reason FROM sessions WHERE user_id = %(id)s"
    assert engine.scalar(reasons, id=user_id) == "member_removed"
    assert engine.scalar("SELECT subject_id FROM audit_log WHERE action = 'member.removed'") == UUID(user_id)
    assert refusal(customer.send("DELETE", f"/members/{user_id}")) == (404, "not_found")
    assert join(customer)[0] != user_id, "the address is free again"


@pytest.mark.parametrize("role", [None, "viewer", "admin"])
def test_the_invitations_of_who_is_removed_or_demoted_end_with_the_right_to_make_them(
    customer: Api, role: str | None
) -> None:
    user_id, bob = join(customer, role="owner")
    above, within = invite(bob, "x@example.com", "owner"), invite(bob, "y@example.com", "viewer")
    path = f"/members/{user_id}"
    if role is None:
        assert customer.send("DELETE", path).status_code == 204
    else:
        assert customer.send("PATCH", path, {"role": role}).status_code == 200
    assert accept(customer, above["token"]).status_code == 404
    assert accept(customer, within["token"]).status_code == (201 if role == "admin" else 404)


def test_a_suspended_account_removes_and_invites_nobody(customer: Api, engine: Engine, ada: Customer) -> None:
    user_id, _ = join(customer)
    engine.suspend(ada)
    invited = customer.post("/members/invitations", {"email": "x@example.com", "role": "viewer"})
    assert refusal(invited) == (403, "account_suspended")
    assert customer.send("DELETE", f"/members/{user_id}").status_code == 204, "taking access away is never refused"


def test_the_last_owner_neither_leaves_nor_steps_down(customer: Api, ada: Customer) -> None:
    path = f"/members/{ada.user_id}"
    assert refusal(customer.send("DELETE", path)) == (409, "last_owner")
    assert refusal(customer.send("PATCH", path, {"role": "admin"})) == (409, "last_owner")
    assert customer.send("PATCH", path, {"role": "owner"}).status_code == 200, "which changes nothing"
    join(customer, role="owner")
    assert customer.send("PATCH", path, {"role": "admin"}).status_code == 200


@pytest.mark.parametrize("ways", ["leave", "step down", "remove each other"])
def test_owners_who_go_at_once_leave_one(customer: Api, engine: Engine, ada: Customer, ways: str) -> None:
    """Committed connections of their own; whoever comes last sees that nobody else is left."""
    people = [(str(ada.user_id), customer)] + [join(customer, f"{n}@example.com", "owner") for n in range(3)]
    others = [*people[1:], people[0]]

    def go(place: int) -> Any:
        user_id, api = people[place]
        if ways == "remove each other":
            user_id = others[place][0]
        if ways == "step down":
            return api.send("PATCH", f"/members/{user_id}", {"role": "viewer"})
        return api.send("DELETE", f"/members/{user_id}")

    with ThreadPoolExecutor(len(people)) as threads:
        answers = list(threads.map(go, range(len(people))))
    assert {answer.status_code for answer in answers} <= {200, 204, 401, 403, 404, 409}
    left = "SELECT count(*) FROM users WHERE account_id = %(id)s AND role = 'owner' AND deleted_at IS NULL"
    assert engine.scalar(left, id=ada.account_id) >= 1
    if ways != "remove each other":
        assert engine.scalar(left, id=ada.account_id) == 1


def test_a_member_signs_in_with_the_own_password_alone(customer: Api) -> None:
    join(customer)
    assert log_in(customer, BOB, PASSWORD).status_code == 401
