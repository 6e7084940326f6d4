"""Where addresses have to be confirmed: nobody learns who has an account, and no account begins without its mailbox."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from api.app import create_app
from api.services import EXTENSION
from shared.config import Settings
from shared.domain.letter import Letter
from shared.security import Purpose, sent_token
from tests.api.conftest import PASSWORD, Api, Engine
from tests.api.routes import BODIES
from tests.db.world import Customer

EMAIL = "bob@example.com"
SIGNUP: dict[str, Any] = {"account_name": "Bob Ltd", "email": EMAIL, "password": PASSWORD}


@pytest.fixture
def mailing(settings: Settings) -> Settings:
    return settings.model_copy(update={"email_verification": "required"})


@pytest.fixture
def engine(database: Any, mailing: Settings) -> Engine:
    return Engine(database, mailing)


@pytest.fixture
def api(mailing: Settings, documented: dict[str, Any], database: Any) -> Iterator[Api]:
    """The API for nobody in particular, with EMAIL_VERIFICATION=required."""
    app = create_app(mailing)
    yield Api(app, app.test_client(use_cookies=False), documented, {})
    app.extensions[EXTENSION].database.dispose()


def token_in(letter: Letter) -> str:
    (token,) = re.findall(r"^    (\S{64})$", letter.text, flags=re.MULTILINE)
    return str(token)


def signed_up(api: Api, engine: Engine, **terms: Any) -> Letter:
    """The letter that a signup is answered with."""
    engine.finish(api.post("/signup", SIGNUP | terms))
    return engine.letters[-1]


def confirm(api: Api, token: str, password: str = PASSWORD) -> Any:
    return api.post("/auth/verify-email", {"token": token, "password": password})


def log_in(api: Api, email: str = EMAIL, password: str = PASSWORD) -> Any:
    return api.post("/auth/login", {"email": email, "password": password})


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["code"]


def test_from_a_signup_over_its_letter_to_an_account(api: Api, engine: Engine) -> None:
    letter = signed_up(api, engine)
    assert letter.to == EMAIL
    assert log_in(api).status_code == 401, "there is no account yet"
    assert engine.scalar("SELECT count(*) FROM accounts WHERE kind = 'customer'") == 0
    result = engine.finish(confirm(api, token_in(letter)))
    assert result["plan"] == "free-trial", "and the trial begins now"
    assert log_in(api).status_code == 200


def test_a_token_makes_one_account_however_often_it_is_presented(api: Api, engine: Engine) -> None:
    token = token_in(signed_up(api, engine))
    first, again = confirm(api, token), confirm(api, token)
    assert again.get_json() == first.get_json()
    assert again.headers["Idempotent-Replayed"] == "true"
    engine.finish(first)
    assert confirm(api, token).get_json()["status"] == "succeeded"
    assert engine.scalar("SELECT count(*) FROM accounts WHERE kind = 'customer'") == 1


def test_whoever_did_not_choose_the_password_confirms_nothing(api: Api, engine: Engine) -> None:
    """A stranger has signed up with Bob's address, and Bob does what the letter says."""
    token = token_in(signed_up(api, engine, password="a passphrase of a stranger"))
    assert refusal(confirm(api, token)) == (401, "unauthenticated")
    assert engine.scalar("SELECT count(*) FROM operations WHERE kind = 'sign_up'") == 0


def test_a_token_that_was_not_sent_for_it_confirms_nothing(api: Api, engine: Engine, mailing: Settings) -> None:
    token = token_in(signed_up(api, engine))
    signup_id = engine.scalar("SELECT id FROM signups")
    other_purpose = sent_token(mailing, Purpose.INVITATION, signup_id)
    for forged in (other_purpose, str(signup_id), token[:-1] + ("A" if token[-1] != "A" else "B"), "A" * 64):
        assert refusal(confirm(api, forged)) == (404, "not_found")
    engine.execute_sql("UPDATE signups SET created_at = now() - interval '2 days', expires_at = now()")
    assert refusal(confirm(api, token)) == (404, "not_found"), "expired"


def test_an_anonymous_caller_cannot_tell_a_taken_address_from_a_free_one(
    api: Api, engine: Engine, ada: Customer
) -> None:
    """The answer, the operation while it waits, and its outcome: the same but for ids and instants."""
    seen = []
    for email in (engine.email_of(ada), EMAIL):
        accepted = api.post("/signup", SIGNUP | {"email": email})
        poll = {"X-Poll-Token": accepted.get_json()["poll_token"]}
        path = f"/operations/{accepted.get_json()['operation_id']}"
        pending = api.get(path, headers=poll)
        engine.finish(accepted)
        done = api.get(path, headers=poll)
        seen.append([without_ids(answer) for answer in (accepted, pending, done)])
    assert seen[0] == seen[1]
    assert seen[0][2][1]["status"] == "succeeded"
    assert engine.scalar("SELECT count(*) FROM signups") == 2
    to_ada, to_bob = engine.letters
    assert "have an account" in to_ada.subject
    assert re.search(r"\S{40}", to_ada.text) is None, "nothing in it can be used"
    assert token_in(to_bob)


def without_ids(answer: Any) -> tuple[int, dict[str, Any]]:
    varying = {"operation_id", "poll_token", "created_at", "finished_at"}
    body = {name: value for name, value in answer.get_json().items() if name not in varying}
    return answer.status_code, body


def test_of_two_confirmed_signups_of_one_address_the_first_counts(api: Api, engine: Engine) -> None:
    first, second = signed_up(api, engine), signed_up(api, engine, account_name="Another")
    assert engine.finish(confirm(api, token_in(first)))["plan"] == "free-trial"
    assert engine.finish(confirm(api, token_in(second)))["code"] == "email_taken", (
        "which the owner of the mailbox is told"
    )


def test_a_signup_sent_twice_under_one_key_is_one_letter(api: Api, engine: Engine) -> None:
    first, again = api.post("/signup", SIGNUP, key="k"), api.post("/signup", SIGNUP, key="k")
    assert first.get_json()["operation_id"] == again.get_json()["operation_id"]
    assert engine.scalar("SELECT count(*) FROM signups") == 1


def test_no_usable_secret_is_kept(api: Api, engine: Engine) -> None:
    token = token_in(signed_up(api, engine))
    for table in ("operations", "signups", "events", "audit_log"):
        kept = engine.scalar(f"SELECT coalesce(string_agg(t::text, ''), '') FROM {table} t")
        assert token not in kept
        assert PASSWORD not in kept


def test_a_letter_that_comes_too_late_is_not_sent(api: Api, engine: Engine) -> None:
    accepted = api.post("/signup", SIGNUP)
    engine.execute_sql("UPDATE signups SET created_at = now() - interval '2 days', expires_at = now()")
    assert engine.finish(accepted) == {"letter": "confirm_address"}
    assert engine.letters == []


def test_an_invitation_is_mailed_and_shown_to_nobody(api: Api, engine: Engine, ada: Customer) -> None:
    """Whoever invites an address he does not own cannot use the invitation himself."""
    owner = engine.signed_in(api, ada)
    made = owner.post("/members/invitations", {"email": EMAIL, "role": "viewer"})
    assert (made.status_code, made.get_json()["token"]) == (201, None)
    engine.execute(engine.scalar("SELECT id FROM operations WHERE kind = 'send_mail'"))
    (letter,) = engine.letters
    assert letter.to == EMAIL
    body = {"token": token_in(letter), "password": "a passphrase of Bob alone"}
    assert api.post("/invitations/accept", body).status_code == 201


def test_a_revoked_invitation_is_not_mailed_any_more(api: Api, engine: Engine, ada: Customer) -> None:
    owner = engine.signed_in(api, ada)
    made = owner.post("/members/invitations", {"email": EMAIL, "role": "viewer"}).get_json()
    assert owner.send("DELETE", f"/members/invitations/{made['id']}").status_code == 204
    engine.execute(engine.scalar("SELECT id FROM operations WHERE kind = 'send_mail'"))
    assert engine.letters == []


# --- domains that cannot sign up ------------------------------------------------------------------

BLOCKED = ("trash.example.com", "xn--mll-hoa.example.com")
DOMAINS = {
    "x@trash.example.com": 422,
    "x@TRASH.example.com": 422,
    "x@deep.below.trash.example.com": 422,
    "x@m\u00fcll.example.com": 422,
    "x@nottrash.example.com": 202,
    "x@example.com": 202,
}


@pytest.mark.parametrize("email", DOMAINS)
@pytest.mark.parametrize("verification", ["off", "required"])
def test_blocked_domains_and_those_below_them_cannot_sign_up(
    settings: Settings, documented: dict[str, Any], database: Any, email: str, verification: str
) -> None:
    changed = {"signup_blocked_domains": BLOCKED, "email_verification": verification}
    app = create_app(settings.model_copy(update=changed))
    api = Api(app, app.test_client(use_cookies=False), documented, {})
    answer = api.post("/signup", BODIES["POST /signup"] | {"email": email})
    app.extensions[EXTENSION].database.dispose()
    assert answer.status_code == DOMAINS[email]
    if answer.status_code == 422:
        assert answer.get_json()["code"] == "signup_blocked"
