"""Settings: environment variables, read once, checked before anything starts."""

from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT_DIR: Final = Path(__file__).resolve().parent.parent
DEVELOPMENT_SECRET: Final = "development-only-secret-never-valid-in-production"
SECRET_MIN_LENGTH: Final = 32
EXAMPLE_IBAN: Final = "DE89370400440532013000"


class Settings(BaseSettings):
    """One class, one place. The README's table is generated from these descriptions."""

    model_config = SettingsConfigDict(env_prefix="", extra="ignore", frozen=True, hide_input_in_errors=True)

    environment: Literal["development", "production"] = Field(
        "development", description="`production` refuses weak secrets, the sandbox and embedded servers"
    )
    database_url: str | None = Field(
        None, description="PostgreSQL 15 or newer, `postgresql://user:password@host/db`; unset: embedded"
    )
    broker_url: str | None = Field(
        None, description="Redis or RabbitMQ, `redis://host:6379/0` or `amqp://host//`; unset: embedded"
    )
    data_dir: Path = Field(PROJECT_DIR / ".data", description="where embedded servers and logs live")
    secret_key: SecretStr = Field(
        SecretStr(DEVELOPMENT_SECRET),
        description="signs tokens; at least 32 characters, no default in production",
    )
    billing_sandbox: bool = Field(False, description="sandbox payment provider and test clocks; never in production")

    api_bind: str = Field("127.0.0.1:8000", description="address that gunicorn listens on")
    api_workers: int = Field(2, ge=1, le=64, description="gunicorn processes")
    api_threads: int = Field(8, ge=1, le=64, description="threads in each gunicorn process")
    max_body_bytes: int = Field(64 * 1024, ge=1024, description="largest request body accepted")
    access_token_minutes: int = Field(15, ge=1, le=60, description="life of an access token")
    refresh_token_days: int = Field(30, ge=1, le=365, description="life of a session")

    transfer_grace_days: int = Field(
        10, ge=0, le=60, description="how long an undecided bank transfer defers a suspension"
    )
    invoice_due_days: int = Field(14, ge=0, le=120, description="time to pay an invoice opened at checkout")
    low_credits_percent: int = Field(
        20, ge=0, le=100, description="share of a month's credits below which an account runs low"
    )
    hold_ttl_seconds: int = Field(15 * 60, ge=1, le=86_400, description="life of a hold that states none")
    hold_ttl_max_seconds: int = Field(86_400, ge=1, le=86_400, description="longest life a hold may ask for")

    seller_name: str = Field("Example Seller Ltd", description="beneficiary printed on payment instructions")
    seller_iban: str = Field(EXAMPLE_IBAN, description="IBAN that bank transfers go to")
    seller_bic: str = Field("COBADEFFXXX", description="BIC of that account")

    beat_interval_seconds: int = Field(60, ge=1, le=3_600, description="time between two ticks of a beat job")
    batch_size: int = Field(1_000, ge=1, le=20_000, description="accounts that a beat job claims per transaction")
    operation_max_attempts: int = Field(5, ge=1, le=50, description="unexpected errors before an operation is dead")
    relay_first_after_seconds: int = Field(5, ge=1, description="age at which the relay first looks at an operation")
    relay_backoff_seconds: int = Field(30, ge=30, description="least time between two sends of one operation")
    relay_queue_limit: int = Field(5_000, ge=1, description="queue depth above which the relay waits")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severe line logged")
    log_format: Literal["console", "json"] | None = Field(
        None, description="`json` or `console`; unset: json in production"
    )

    @field_validator("database_url")
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
        if self.billing_sandbox:
            raise ValueError("BILLING_SANDBOX=1 settles invoices without money; unset it in production")
        if self.database_url is None or self.broker_url is None:
            raise ValueError("set DATABASE_URL and BROKER_URL; embedded servers are for development")
        if self.seller_iban == EXAMPLE_IBAN:
            raise ValueError("set SELLER_NAME, SELLER_IBAN and SELLER_BIC; the default account is an example")
        return self

    @property
    def log_as_json(self) -> bool:
        """Whether log lines are JSON documents."""
        return (self.log_format or ("json" if self.environment == "production" else "console")) == "json"

    def as_environment(self) -> dict[str, str]:
        """The environment that gives a child process these settings."""
        values: dict[str, str] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            values[name.upper()] = str(int(value)) if isinstance(value, bool) else str(value)
        return values


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
