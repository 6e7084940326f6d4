"""Identifiers: UUID version 7, made in Python, so that rows sort by the time of their creation."""

from uuid import UUID

from uuid_utils import compat


def new_id() -> UUID:
    """A fresh UUIDv7 (RFC 9562)."""
    return compat.uuid7()
