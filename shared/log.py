"""Structured logs: one event a line, JSON in production, with the ids of operation, account and task."""

import logging
import sys
from typing import Any, Final

import msgspec
import structlog

from shared.config import Settings

# Never let these leave the process, whoever hands them to a logger.
SECRET_KEYS: Final = frozenset(
    {
        "password",
        "password_hash",
        "secret_key",
        "secret_key_previous",
        "smtp_url",
        "client_secret",
        "stripe_secret_key",
        "stripe_webhook_secret",
        "authorization",
        "token",
        "access_token",
        "refresh_token",
        "api_key",
    }
)


class Lines(structlog.BytesLogger):
    """Writes a line at once. Going through the standard library takes longer than answering many a request."""

    def __init__(self, name: str = "") -> None:
        super().__init__(sys.stderr.buffer)
        self.name = name


def configure(settings: Settings) -> None:
    """Set up structlog, and make the loggers of the standard library write likewise."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _redact,
    ]
    # Tracebacks without local variables: one of them may be a password.
    renderer: Any = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    if settings.log_as_json:
        without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared.append(structlog.processors.ExceptionRenderer(without_locals))
        renderer = _as_json
    structlog.configure(
        processors=[*shared, renderer, _encoded],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=Lines,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)


def _as_json(_logger: Any, _method: str, event: Any) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()


def _encoded(_logger: Any, _method: str, line: Any) -> bytes:
    encoded: bytes = line.encode()
    return encoded


def _redact(_logger: Any, _method: str, event: Any) -> Any:
    for key in SECRET_KEYS & event.keys():
        event[key] = "[redacted]"
    return event
