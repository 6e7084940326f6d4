"""Settings: what is accepted, what production refuses and what it says then, and that children get the same."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from shared.config import DEVELOPMENT_SECRET, PROJECT_DIR, Settings, explain

STRIPE: dict[str, Any] = {
    "stripe_secret_key": "sk_test_17",
    "stripe_webhook_secret": "whsec_17",
    "stripe_publishable_key": "pk_test_17",
}
PRODUCTION: dict[str, Any] = {
    "environment": "production",
    "secret_key": "s" * 32,
    "database_url": "postgresql://host/billing",
    "broker_url": "redis://host/0",
    "seller_name": "Shop Ltd",
    "seller_address": "2 High Street|Town",
    "seller_iban": "GB33BUKB20201555555555",
}


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def refusal(**values: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        Settings(**values)
    return explain(refused.value)


def test_a_child_process_gets_every_setting() -> None:
    given = Settings(
        **STRIPE,
        environment="development",
        data_dir=Path("/somewhere"),
        billing_sandbox=True,
        stripe_api_base="http://127.0.0.1:1",
        stripe_timeout_seconds=0.5,
        charge_retry_days=(2, 4),
        trusted_proxies=1,
        cors_origins=("https://app.example.com", "http://localhost:3000"),
        throttle_url="redis://127.0.0.1:6379/1",
        api_key_requests_per_minute=5,
        log_format="json",
        secret_key_previous=SecretStr("one,two"),
        signup_blocked_domains=("a.example", "b.example"),
        smtp_url=SecretStr("smtps://user:password@mail.example.com"),
    )
    ran = subprocess.run(
        [sys.executable, "-c", "from shared.config import Settings; print(Settings().model_dump_json())"],
        cwd=PROJECT_DIR,
        env={"PATH": os.environ["PATH"], **given.as_environment()},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.strip() == given.model_dump_json()
    assert given.as_environment()["STRIPE_SECRET_KEY"] == "sk_test_17"


@pytest.mark.parametrize(
    ("text", "days"),
    [("1,3,5", (1, 3, 5)), (" 2, 7 ", (2, 7)), ("4", (4,)), ("", ()), (" ", ())],
)
def test_retries_are_days_with_commas(monkeypatch: pytest.MonkeyPatch, text: str, days: tuple[int, ...]) -> None:
    monkeypatch.setenv("CHARGE_RETRY_DAYS", text)
    settings = Settings()
    assert settings.charge_retry_days == days
    monkeypatch.setenv("CHARGE_RETRY_DAYS", settings.as_environment()["CHARGE_RETRY_DAYS"])
    assert Settings() == settings


@pytest.mark.parametrize("text", ["0,1", "3,1", "1,1", "-1", "61", "1,2,3,4,5,6,7,8,9,10,11", "1;3", "soon", "1,,3"])
def test_days_that_do_not_go_forward_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CHARGE_RETRY_DAYS", text)
    assert "CHARGE_RETRY_DAYS" in refusal()


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        (" , ", ()),
        ("https://app.example.com", ("https://app.example.com",)),
        ("https://a.example, http://localhost:3000", ("https://a.example", "http://localhost:3000")),
        ("*", ("*",)),
    ],
)
def test_origins_are_written_with_commas(monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]) -> None:
    monkeypatch.setenv("CORS_ORIGINS", text)
    assert Settings().cors_origins == origins


@pytest.mark.parametrize(
    "text",
    [
        "app.example.com",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://*.example.com",
        "https://.*",
        "https://App.example.com",
        "https://user@app.example.com",
        "https://app.example.com:port",
        "https://[::1]:3000",
        "ftp://app.example.com",
        "null",
        "*,https://app.example.com",
        "https://a.example https://b.example",
    ],
)
def test_what_no_browser_sends_as_its_origin_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CORS_ORIGINS", text)
    assert "CORS_ORIGINS" in refusal()


def test_production_does_not_open_itself_to_every_page() -> None:
    assert "CORS_ORIGINS" in refusal(**PRODUCTION, cors_origins=("*",))
    assert Settings(**PRODUCTION, cors_origins=("https://app.example.com",)).cors_origins


@pytest.mark.parametrize("url", ["amqp://host//", "http://host", "memory://", ""])
def test_requests_are_counted_in_a_redis(url: str) -> None:
    assert "THROTTLE_URL" in refusal(throttle_url=url)


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name.endswith("_per_minute")])
def test_no_setting_switches_throttling_off(name: str) -> None:
    for value in (0, -1, "unlimited", float("inf")):
        assert name.upper() in refusal(**{name: value})


@pytest.mark.parametrize("name", STRIPE)
def test_an_empty_key_is_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name.upper(), " \n")
    assert getattr(Settings(), name) is None


def test_a_key_from_a_file_may_end_with_its_line() -> None:
    from_files: dict[str, Any] = {name: f"{value}\n" for name, value in STRIPE.items()}
    assert Settings(**from_files) == Settings(**STRIPE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("stripe_secret_key", "pk_live_17", id="the other key"),
        pytest.param("stripe_publishable_key", "sk_live_17", id="the secret key, for everybody to see"),
        pytest.param("stripe_webhook_secret", "we_17", id="the endpoint's id"),
        pytest.param("stripe_api_base", "api.stripe.com", id="no scheme"),
    ],
)
def test_keys_in_the_wrong_place_are_refused_and_not_shown(name: str, value: str) -> None:
    message = refusal(**{name: value})
    assert name.upper() in message
    assert value not in message.replace("https://api.stripe.com", "")


def test_a_base_address_ends_without_a_slash() -> None:
    assert Settings(stripe_api_base="https://stripe.example/").stripe_api_base == "https://stripe.example"


def test_production_with_stripe() -> None:
    assert Settings(**PRODUCTION, **STRIPE).stripe_api_base == "https://api.stripe.com"
    assert Settings(**PRODUCTION).stripe_secret_key is None
    restricted = Settings(**PRODUCTION, **STRIPE | {"stripe_secret_key": "rk_live_17"})
    assert restricted.stripe_webhook_secret is not None


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        pytest.param({"stripe_webhook_secret": None}, "set STRIPE_WEBHOOK_SECRET", id="no webhook secret"),
        pytest.param({"stripe_api_base": "http://127.0.0.1:1"}, "https://", id="a key in the open"),
    ],
)
def test_production_refuses(changes: dict[str, Any], advice: str) -> None:
    assert advice in refusal(**PRODUCTION, **STRIPE | changes)


VERIFYING: dict[str, Any] = {
    "email_verification": "required",
    "smtp_url": "smtps://u:p@mail.example.com",
    "mail_from": "billing@example.com",
}


def test_production_may_confirm_addresses() -> None:
    assert Settings(**PRODUCTION, **VERIFYING).sends_mail
    assert not Settings(**PRODUCTION).sends_mail


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        pytest.param(VERIFYING | {"smtp_url": None}, "set SMTP_URL and MAIL_FROM", id="letters into files"),
        pytest.param(VERIFYING | {"mail_from": "billing@localhost"}, "set SMTP_URL and MAIL_FROM", id="from nobody"),
        pytest.param({"secret_key_previous": "short"}, "SECRET_KEY_PREVIOUS", id="a short one before"),
        pytest.param({"secret_key_previous": f"{'x' * 40},{DEVELOPMENT_SECRET}"}, "SECRET_KEY_PREVIOUS", id="default"),
        pytest.param({"secret_key_previous": f"{'x' * 40},{'s' * 32}"}, "a rotation needs a new one", id="the same"),
    ],
)
def test_production_refuses_of_identity(changes: dict[str, Any], advice: str) -> None:
    message = refusal(**PRODUCTION | changes)
    assert advice in message
    assert "x" * 40 not in message


@pytest.mark.parametrize(
    ("text", "secrets"), [("", ()), (" ", ()), ("one", ("one",)), (" one , two,", ("one", "two")), (",", ())]
)
def test_secrets_before_this_one_are_a_list_with_commas(
    monkeypatch: pytest.MonkeyPatch, text: str, secrets: tuple[str, ...]
) -> None:
    monkeypatch.setenv("SECRET_KEY_PREVIOUS", text)
    assert Settings().previous_secret_keys == secrets


@pytest.mark.parametrize(
    ("text", "domains"), [("", ()), ("@Trash.example , b.example,", ("trash.example", "b.example"))]
)
def test_blocked_domains_are_a_list_with_commas(
    monkeypatch: pytest.MonkeyPatch, text: str, domains: tuple[str, ...]
) -> None:
    monkeypatch.setenv("SIGNUP_BLOCKED_DOMAINS", text)
    assert Settings().signup_blocked_domains == domains


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("smtp_url", "mail.example.com", id="no scheme"),
        pytest.param("smtp_url", "http://mail.example.com", id="another scheme"),
        pytest.param("smtp_url", "smtp://user:password@", id="no host"),
        pytest.param("mail_from", "Billing <billing@example.com>", id="with a name"),
        pytest.param("mail_from", "a@b.example\nBcc: c@d.example", id="with a header"),
    ],
)
def test_mail_goes_to_a_server_from_a_bare_address(name: str, value: str) -> None:
    message = refusal(**{name: value})
    assert name.upper() in message
    assert "password" not in message.replace("user:password@mail.example.com", "")


def test_secrets_are_not_shown() -> None:
    shown = repr(Settings(**STRIPE, smtp_url="smtp://u:hidden@mail.example.com", secret_key_previous="hidden"))
    assert "hidden" not in shown
    assert "sk_test_17" not in shown
    assert "whsec_17" not in shown
