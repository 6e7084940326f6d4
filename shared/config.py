"""Settings: environment variables, read once, checked before anything starts."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PROJECT_DIR: Final = Path(__file__).resolve().parent.parent
DEVELOPMENT_SECRET: Final = "development-only-secret-never-valid-in-production"
SECRET_MIN_LENGTH: Final = 32
EXAMPLE_SELLER: Final = "Example Seller Ltd"
EXAMPLE_ADDRESS: Final = "1 Example Street|12345 Example City"
EXAMPLE_IBAN: Final = "DE89370400440532013000"
ORIGIN: Final = re.compile(r"https?://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")
CHARGE_RETRIES_MAX: Final = 10
CHARGE_RETRY_DAY_MAX: Final = 60


class Settings(BaseSettings):
    """One class, one place. The README's table is generated from these descriptions."""

    model_config = SettingsConfigDict(env_prefix="", extra="ignore", frozen=True, hide_input_in_errors=True)

    environment: Literal["development", "production"] = Field(
        "development", description="`production` refuses weak secrets, the sandbox and embedded servers"
    )
    database_url: str | None = Field(
        None, description="PostgreSQL 15 or newer, `postgresql://user:password@host/db`; unset: embedded"
    )
    due_database_url: str | None = Field(
        None,
        description="the same database for what is due when somebody spends, by a login that may act as `prepaid_due` "
        "alone; unset: `DATABASE_URL`",
    )
    broker_url: str | None = Field(
        None, description="Redis or RabbitMQ, `redis://host:6379/0` or `amqp://host//`; unset: embedded"
    )
    data_dir: Path = Field(PROJECT_DIR / ".data", description="where embedded servers and logs live")
    secret_key: SecretStr = Field(
        SecretStr(DEVELOPMENT_SECRET),
        description="signs tokens; at least 32 characters, no default in production",
    )
    secret_key_previous: SecretStr | None = Field(
        None, description="secrets before this one, with commas: what they signed still counts, nothing new is"
    )
    billing_sandbox: bool = Field(False, description="sandbox payment provider and test clocks; never in production")

    api_bind: str = Field("127.0.0.1:8000", description="address that gunicorn listens on")
    api_workers: int = Field(2, ge=1, le=64, description="gunicorn processes")
    api_threads: int = Field(8, ge=1, le=64, description="threads in each gunicorn process")
    max_body_bytes: int = Field(64 * 1024, ge=1024, description="largest request body accepted")
    trusted_proxies: int = Field(
        0, ge=0, le=8, description="proxies before the API, each of which adds to `X-Forwarded-For`; 0: it is ignored"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="origins whose pages may call the API, `https://app.example.com,https://...`; "
        "`*`, in development only: all",
    )
    access_token_minutes: int = Field(15, ge=1, le=60, description="life of an access token")
    refresh_token_days: int = Field(30, ge=1, le=365, description="life of a session")

    throttle_url: str | None = Field(
        None,
        description="Redis that requests are counted in, `redis://host:6379/1`; unset: the broker, if it is a Redis",
    )
    throttle_timeout_ms: int = Field(
        100, ge=10, le=10_000, description="longest wait for that Redis; after it a process counts by itself"
    )
    api_key_requests_per_minute: int | None = Field(
        None, ge=1, description="requests of one API key; unset: as many as the plan allows its account"
    )
    admin_requests_per_minute: int = Field(600, ge=1, description="requests of one admin")
    anonymous_requests_per_minute: int = Field(
        120, ge=1, description="requests of one network address without a credential, or of an account without a plan"
    )
    preflights_per_minute: int = Field(600, ge=1, description="CORS preflights and other `OPTIONS` of one address")
    failed_credentials_per_minute: int = Field(
        30, ge=1, description="tokens and API keys of one address that turn out to be nobody's"
    )
    login_attempts_per_minute: int = Field(10, ge=1, description="sign-ins of one address, right or wrong")
    signups_per_minute: int = Field(5, ge=1, description="signups of one address")
    refreshes_per_minute: int = Field(30, ge=1, description="exchanges of refresh tokens by one address")
    verifications_per_minute: int = Field(
        10, ge=1, description="invitations and addresses that one address accepts, verifies or asks for again"
    )
    webhooks_per_minute: int = Field(600, ge=1, description="webhooks of one address")
    argon2_time_cost: int = Field(2, ge=1, le=20, description="passes over the memory when a password is hashed")
    argon2_memory_kib: int = Field(
        19_456, ge=8, le=1_048_576, description="memory for hashing a password; every API thread may use it at once"
    )
    argon2_parallelism: int = Field(1, ge=1, le=16, description="lanes in which a password is hashed")
    email_verification: Literal["off", "required"] = Field(
        "off", description="`required`: an account begins when its address is confirmed; needs a way to send mail"
    )
    signup_blocked_domains: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="domains, with commas, whose addresses cannot sign up; those below them neither"
    )
    smtp_url: SecretStr | None = Field(
        None,
        description="where mail is handed in, `smtps://user:password@host` or `smtp://…` with STARTTLS; unset: files",
    )
    mail_from: str = Field("billing@localhost", max_length=254, description="address that mail is sent from")

    transfer_grace_days: int = Field(
        10, ge=0, le=60, description="how long an undecided bank transfer defers a suspension"
    )
    invoice_due_days: int = Field(14, ge=0, le=120, description="time to pay an invoice opened at checkout")
    low_credits_percent: int = Field(
        20, ge=0, le=100, description="share of a month's credits below which an account runs low"
    )
    hold_ttl_seconds: int = Field(15 * 60, ge=1, le=86_400, description="life of a hold that states none")
    hold_ttl_max_seconds: int = Field(86_400, ge=1, le=86_400, description="longest life a hold may ask for")

    seller_name: str = Field(
        EXAMPLE_SELLER, min_length=1, max_length=200, description="who sells: beneficiary, and printed on invoices"
    )
    seller_address: str = Field(
        EXAMPLE_ADDRESS, max_length=400, description="address printed on invoices, its lines separated by `|`"
    )
    seller_tax_id: str | None = Field(None, max_length=100, description="tax id printed on invoices; unset: none")
    seller_registration: str | None = Field(
        None, max_length=200, description="register and number printed on invoices; unset: none"
    )
    seller_email: str | None = Field(
        None, max_length=254, description="address for questions, printed on invoices; unset: none"
    )
    seller_iban: str = Field(EXAMPLE_IBAN, description="IBAN that bank transfers go to")
    seller_bic: str = Field("COBADEFFXXX", description="BIC of that account")
    statement_auto_settle: bool = Field(
        True, description="an imported payment that fits one open invoice exactly settles it by itself"
    )

    stripe_secret_key: SecretStr | None = Field(
        None, description="key of the Stripe account, `sk_…` or `rk_…`; unset: no card payments"
    )
    stripe_webhook_secret: SecretStr | None = Field(
        None, description="signing secret of the webhook endpoint, `whsec_…`; production needs it with the key"
    )
    stripe_publishable_key: str | None = Field(None, description="`pk_…`, for the browser that pays")
    stripe_api_base: str = Field("https://api.stripe.com", description="where Stripe's API is; production wants https")
    stripe_timeout_seconds: float = Field(
        10, gt=0, le=20, description="longest wait for a connection to Stripe, and then for its answer"
    )
    charge_retry_days: Annotated[tuple[int, ...], NoDecode] = Field(
        (1, 3, 5), description="days after a declined charge on which the saved card is tried again"
    )

    beat_interval_seconds: int = Field(60, ge=1, le=3_600, description="time between two ticks of a beat job")
    batch_size: int = Field(1_000, ge=1, le=20_000, description="accounts that a beat job claims per transaction")
    operation_max_attempts: int = Field(5, ge=1, le=50, description="unexpected errors before an operation is dead")
    account_backlog_limit: int = Field(
        100, ge=1, description="operations of an account that may wait at once; more are refused with 429"
    )
    relay_first_after_seconds: int = Field(5, ge=1, description="age at which the relay first looks at an operation")
    relay_backoff_seconds: int = Field(30, ge=30, description="least time between two sends of one operation")
    relay_queue_limit: int = Field(5_000, ge=1, description="queue depth above which the relay waits")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severe line logged")
    log_format: Literal["console", "json"] | None = Field(
        None, description="`json` or `console`; unset: json in production"
    )

    @field_validator("database_url", "due_database_url")
    @classmethod
    def _use_psycopg(cls, url: str | None) -> str | None:
        if url is None:
            return None
        scheme, separator, rest = url.partition("://")
        if scheme not in {"postgresql", "postgres", "postgresql+psycopg"} or not separator:
            raise ValueError("DATABASE_URL must be a PostgreSQL URL, like postgresql://user:password@host/billing")
        return f"postgresql+psycopg://{rest}"

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, url: str | None) -> str | None:
        known = ("redis://", "rediss://", "redis+socket://", "amqp://", "amqps://")
        if url is not None and not url.startswith(known):
            raise ValueError(f"BROKER_URL must start with one of {', '.join(known)}")
        return url

    @field_validator("throttle_url")
    @classmethod
    def _is_redis(cls, url: str | None) -> str | None:
        known = ("redis://", "rediss://", "redis+socket://")
        if url is not None and not url.startswith(known):
            raise ValueError(f"THROTTLE_URL must start with one of {', '.join(known)}")
        return url

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, origins: Any) -> Any:
        if not isinstance(origins, str):
            return origins
        return tuple(origin.strip() for origin in origins.split(",") if origin.strip())

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if origins != ("*",) and not all(ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError(
                "CORS_ORIGINS must be origins as browsers send them, like https://app.example.com,http://localhost:3000"
            )
        return origins

    @field_validator(
        "secret_key_previous",
        "stripe_secret_key",
        "stripe_webhook_secret",
        "stripe_publishable_key",
        "smtp_url",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return (value.strip() or None) if isinstance(value, str) else value  # as files and compose hand them on

    @field_validator("signup_blocked_domains", mode="before")
    @classmethod
    def _split_domains(cls, domains: Any) -> Any:
        if not isinstance(domains, str):
            return domains
        return tuple(part.strip().lower().removeprefix("@") for part in domains.split(",") if part.strip())

    @field_validator("smtp_url")
    @classmethod
    def _is_mail_server(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not re.match(r"smtps?://[^/]*[^/@]/?$", url.get_secret_value()):
            raise ValueError("SMTP_URL must be an address, like smtps://user:password@mail.example.com")
        return url

    @field_validator("mail_from")
    @classmethod
    def _is_sender(cls, address: str) -> str:
        if re.fullmatch(r"[^\s@<>,;:\"]+@[^\s@<>,;:\"]+", address) is None:
            raise ValueError("MAIL_FROM must be a bare address, like billing@example.com")
        return address

    @field_validator("stripe_secret_key")
    @classmethod
    def _is_secret_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not key.get_secret_value().startswith(("sk_", "rk_")):
            raise ValueError("STRIPE_SECRET_KEY must start with sk_ or rk_")
        return key

    @field_validator("stripe_webhook_secret")
    @classmethod
    def _is_webhook_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not secret.get_secret_value().startswith("whsec_"):
            raise ValueError("STRIPE_WEBHOOK_SECRET must start with whsec_")
        return secret

    @field_validator("stripe_publishable_key")
    @classmethod
    def _is_publishable_key(cls, key: str | None) -> str | None:
        if key is not None and not key.startswith("pk_"):
            raise ValueError("STRIPE_PUBLISHABLE_KEY must start with pk_; browsers get to see it")
        return key

    @field_validator("stripe_api_base")
    @classmethod
    def _is_base_address(cls, base: str) -> str:
        if not base.startswith(("https://", "http://")):
            raise ValueError("STRIPE_API_BASE must be an address, like https://api.stripe.com")
        return base.rstrip("/")

    @field_validator("charge_retry_days", mode="before")
    @classmethod
    def _split_days(cls, days: Any) -> Any:
        if not isinstance(days, str):
            return days
        return tuple(part.strip() for part in days.split(",")) if days.strip() else ()

    @field_validator("charge_retry_days")
    @classmethod
    def _days_go_forward(cls, days: tuple[int, ...]) -> tuple[int, ...]:
        rising = all(earlier < later for earlier, later in zip((0, *days), days, strict=False))
        if not rising or len(days) > CHARGE_RETRIES_MAX or max(days, default=0) > CHARGE_RETRY_DAY_MAX:
            raise ValueError(
                f"CHARGE_RETRY_DAYS must be up to {CHARGE_RETRIES_MAX} rising days "
                f"between 1 and {CHARGE_RETRY_DAY_MAX}, like 1,3,5"
            )
        return days

    @field_validator("seller_tax_id", "seller_registration", "seller_email")
    @classmethod
    def _blank_is_unset(cls, text: str | None) -> str | None:
        return (text or "").strip() or None

    @field_validator("seller_address")
    @classmethod
    def _has_a_line(cls, address: str) -> str:
        if not address_lines(address):
            raise ValueError("SELLER_ADDRESS must have a line, like 1 Example Street|12345 Example City")
        return address

    @model_validator(mode="after")
    def _safe_in_production(self) -> Self:
        if self.environment != "production":
            return self
        secret = self.secret_key.get_secret_value()
        if secret == DEVELOPMENT_SECRET or len(secret) < SECRET_MIN_LENGTH:
            raise ValueError(
                f"set SECRET_KEY to at least {SECRET_MIN_LENGTH} random characters: "
                "python -c 'import secrets; print(secrets.token_urlsafe(48))'"
            )
        previous = self.previous_secret_keys
        if DEVELOPMENT_SECRET in previous or any(len(earlier) < SECRET_MIN_LENGTH for earlier in previous):
            raise ValueError(
                f"SECRET_KEY_PREVIOUS holds a secret that production never had: each has at least {SECRET_MIN_LENGTH} "
                "characters, and they are separated by commas"
            )
        if secret in previous:
            raise ValueError("SECRET_KEY is one of SECRET_KEY_PREVIOUS; a rotation needs a new one")
        if self.email_verification == "required" and (self.smtp_url is None or self.mail_from.endswith("@localhost")):
            raise ValueError(
                "EMAIL_VERIFICATION=required sends mail; set SMTP_URL and MAIL_FROM, or nobody can sign up"
            )
        if self.billing_sandbox:
            raise ValueError("BILLING_SANDBOX=1 settles invoices without money; unset it in production")
        if "*" in self.cors_origins:
            raise ValueError("CORS_ORIGINS=* lets every page on the web call the API; name the origins of yours")
        if self.database_url is None or self.broker_url is None:
            raise ValueError("set DATABASE_URL and BROKER_URL; embedded servers are for development")
        if not self.stripe_api_base.startswith("https://"):
            raise ValueError("STRIPE_API_BASE must begin with https://, or the key travels in the open; unset it")
        if self.stripe_secret_key is not None and self.stripe_webhook_secret is None:
            raise ValueError(
                "set STRIPE_WEBHOOK_SECRET to the signing secret that Stripe shows for the webhook endpoint; "
                "without it nobody learns of payments whose browser was closed"
            )
        if (
            self.seller_name == EXAMPLE_SELLER
            or self.seller_address == EXAMPLE_ADDRESS
            or self.seller_iban == EXAMPLE_IBAN
        ):
            raise ValueError(
                "set SELLER_NAME, SELLER_ADDRESS, SELLER_IBAN and SELLER_BIC; they are printed, and the defaults are "
                "examples"
            )
        return self

    @property
    def log_as_json(self) -> bool:
        """Whether log lines are JSON documents."""
        return (self.log_format or ("json" if self.environment == "production" else "console")) == "json"

    @property
    def previous_secret_keys(self) -> tuple[str, ...]:
        """Secrets whose signatures still count, in the order in which they are stated."""
        if self.secret_key_previous is None:
            return ()
        stated = self.secret_key_previous.get_secret_value().split(",")
        return tuple(secret.strip() for secret in stated if secret.strip())

    @property
    def sends_mail(self) -> bool:
        """Whether what proves an address is mailed to it, and shown to nobody else."""
        return self.email_verification == "required"

    @property
    def seller_address_lines(self) -> tuple[str, ...]:
        """The seller's address, as it is printed."""
        return address_lines(self.seller_address)

    def as_environment(self) -> dict[str, str]:
        """The environment that gives a child process these settings."""
        values: dict[str, str] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            values[name.upper()] = written(value)
        return values


def written(value: object) -> str:
    """A setting as a variable holds it: `1` for True, `1,3,5` for several numbers."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(int(value) if isinstance(value, bool) else value)


def address_lines(address: str) -> tuple[str, ...]:
    """The lines of an address that was written in one, without empty ones."""
    return tuple(line.strip() for line in address.split("|") if line.strip())


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, which ends with one line about what is wrong with them."""
    try:
        return Settings()
    except ValidationError as error:
        raise SystemExit(f"error: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """What is wrong with the settings, and what to set; never what was set."""
    wrong = (f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}".lstrip(": ") for e in error.errors())
    return f"the settings are not valid: {'; '.join(wrong)}"
