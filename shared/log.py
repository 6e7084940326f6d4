"""Structured logs: one event a line, JSON in production, with the ids of operation, account and task."""

import logging
import sys
from typing import Any, Final

import structlog

from shared.config import Settings

# Never let these leave the process, whoever hands them to a logger.
SECRET_KEYS: Final = frozenset(
    {
        "password",
        "password_hash",
        "secret_key",
        "authorization",
        "token",
        "access_token",
        "refresh_token",
        "api_key",
    }
)


def configure(settings: Settings) -> None:
    """Set up structlog and route the standard library's loggers through it."""
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
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
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


def _redact(_logger: Any, _method: str, event: Any) -> Any:
    for key in SECRET_KEYS & event.keys():
        event[key] = "[redacted]"
    return event
