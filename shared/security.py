"""Secrets: passwords, API keys, and what is derived from the system's own key.

Passwords are hashed slowly because people choose them; API keys are 256 random bits, so one fast hash
suffices and lets the database find a key by it. What the system signs uses a key of its own per purpose.
"""

import base64
import hashlib
import hmac
import secrets
from functools import lru_cache
from typing import Final
from uuid import UUID

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from msgspec import Struct

from shared.config import Settings

# Argon2id with 19 MiB and two passes, the least that OWASP recommends: all threads of an API process may hash at once.
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)

API_KEY_PREFIX_LENGTH: Final = 11  # `bk_` and eight characters


class NewApiKey(Struct, frozen=True, kw_only=True):
    """A key as it is shown, once; only prefix and hash are kept."""

    key: str
    prefix: str
    key_hash: bytes


def hash_password(password: str) -> str:
    """An Argon2id hash in its usual text form, with its own salt and parameters."""
    return _HASHER.hash(password)


def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether the password fits. Without a hash (nobody by that name) it takes as long, and does not."""
    try:
        return _HASHER.verify(password_hash or _hash_of_nobody(), password) and password_hash is not None
    except (VerificationError, InvalidHashError):
        return False


def new_api_key() -> NewApiKey:
    """A fresh key: `bk_`, eight characters that lists show, and the secret."""
    prefix = f"bk_{secrets.token_hex(4)}"
    key = f"{prefix}_{secrets.token_urlsafe(32)}"
    return NewApiKey(key=key, prefix=prefix, key_hash=hash_api_key(key))


def hash_api_key(key: str) -> bytes:
    """What the database finds a key by."""
    return hashlib.sha256(key.encode()).digest()


def signing_key(settings: Settings, purpose: str) -> bytes:
    """32 bytes for one purpose; nobody can tell those of another purpose from them."""
    return hmac.digest(settings.secret_key.get_secret_value().encode(), purpose.encode(), "sha256")


def key_id(key: bytes) -> str:
    """A name for a signing key that gives nothing of it away."""
    return hashlib.sha256(b"key-id:" + key).hexdigest()[:16]


def poll_token(settings: Settings, operation_id: UUID) -> str:
    """What lets an anonymous client read the operation that it started."""
    digest = hmac.digest(signing_key(settings, "poll-token"), operation_id.bytes, "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def is_poll_token(settings: Settings, operation_id: UUID, token: str) -> bool:
    """Whether the token is that operation's, told in constant time."""
    return hmac.compare_digest(poll_token(settings, operation_id).encode(), token.encode())


def request_hash(settings: Settings, canonical_request: bytes) -> bytes:
    """A fingerprint by which the same request is known again; the request cannot be guessed from it."""
    return hmac.digest(signing_key(settings, "request-hash"), canonical_request, "sha256")


@lru_cache(maxsize=1)
def _hash_of_nobody() -> str:
    return _HASHER.hash(secrets.token_urlsafe(32))
