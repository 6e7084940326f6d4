"""Secrets: passwords, API keys, and what is derived from the system's own key.

Passwords are hashed slowly because people choose them; API keys are 256 random bits, so one fast hash
suffices and lets the database find a key by it. What the system signs uses a key of its own per purpose,
derived from SECRET_KEY; what was signed with one of SECRET_KEY_PREVIOUS is still recognised.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from enum import StrEnum
from functools import lru_cache
from typing import Final
from uuid import UUID

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from msgspec import Struct

from shared.config import Settings

API_KEY_PREFIX_LENGTH: Final = 11  # `bk_` and eight characters


class NewApiKey(Struct, frozen=True, kw_only=True):
    """A key as it is shown, once; only prefix and hash are kept."""

    key: str
    prefix: str
    key_hash: bytes


class Purpose(StrEnum):
    """What a token that is sent to somebody is for; one of another purpose is none."""

    CONFIRM_ADDRESS = "confirm-address"
    INVITATION = "invitation"


def hash_password(settings: Settings, password: str) -> str:
    """An Argon2id hash in its usual text form, with its own salt and the parameters of today."""
    return _hasher(settings).hash(password)


def verify_password(settings: Settings, password_hash: str | None, password: str) -> bool:
    """Whether the password fits. Without a hash (nobody by that name) it takes as long, and does not."""
    hasher = _hasher(settings)
    try:
        return hasher.verify(password_hash or _hash_of_nobody(hasher), password) and password_hash is not None
    except (VerificationError, InvalidHashError):
        return False


def is_hashed_otherwise(settings: Settings, password_hash: str) -> bool:
    """Whether a hash that has just fitted was made with other parameters than those of today."""
    return _hasher(settings).check_needs_rehash(password_hash)


def new_api_key() -> NewApiKey:
    """A fresh key: `bk_`, eight characters that lists show, and the secret."""
    prefix = f"bk_{secrets.token_hex(4)}"
    key = f"{prefix}_{secrets.token_urlsafe(32)}"
    return NewApiKey(key=key, prefix=prefix, key_hash=hash_api_key(key))


def hash_api_key(key: str) -> bytes:
    """What the database finds a key by."""
    return hashlib.sha256(key.encode()).digest()


def signing_key(settings: Settings, purpose: str) -> bytes:
    """32 bytes for one purpose, to sign with; nobody can tell those of another purpose from them."""
    return signing_keys(settings, purpose)[0]


def signing_keys(settings: Settings, purpose: str) -> list[bytes]:
    """The key to sign with, and after it those whose signatures are still recognised."""
    secrets_in_use = [settings.secret_key.get_secret_value(), *settings.previous_secret_keys]
    return [hmac.digest(secret.encode(), purpose.encode(), "sha256") for secret in secrets_in_use]


def key_id(key: bytes) -> str:
    """A name for a signing key that gives nothing of it away."""
    return hashlib.sha256(b"key-id:" + key).hexdigest()[:16]


def poll_token(settings: Settings, operation_id: UUID) -> str:
    """What lets an anonymous client read the operation that it started."""
    return _unpadded(hmac.digest(signing_key(settings, "poll-token"), operation_id.bytes, "sha256"))


def is_poll_token(settings: Settings, operation_id: UUID, token: str) -> bool:
    """Whether the token is that operation's, told in constant time."""
    return any(
        hmac.compare_digest(_unpadded(hmac.digest(key, operation_id.bytes, "sha256")).encode(), token.encode())
        for key in signing_keys(settings, "poll-token")
    )


def sent_token(settings: Settings, purpose: Purpose, subject_id: UUID) -> str:
    """What proves that its bearer was sent it: the subject's id and its signature.

    It can be made again from the id, so nobody has to keep it; the subject's row says until when it counts, and whether
    it was used.
    """
    return _unpadded(subject_id.bytes + _signature_of(signing_key(settings, purpose), subject_id))


def subject_of_token(settings: Settings, purpose: Purpose, token: str) -> UUID | None:
    """Whose token it is; None when we signed no such one for this purpose."""
    try:
        content = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        subject_id = UUID(bytes=content[:16])
    except (binascii.Error, ValueError):
        return None
    keys = signing_keys(settings, purpose)
    signed = any(hmac.compare_digest(_signature_of(key, subject_id), content[16:]) for key in keys)
    return subject_id if signed else None


def request_hash(settings: Settings, canonical_request: bytes) -> bytes:
    """A fingerprint by which the same request is known again; the request cannot be guessed from it."""
    return request_hashes(settings, canonical_request)[0]


def request_hashes(settings: Settings, canonical_request: bytes) -> list[bytes]:
    """The fingerprint, and after it those that the same request had under earlier secrets."""
    return [hmac.digest(key, canonical_request, "sha256") for key in signing_keys(settings, "request-hash")]


def sign_in_digest(settings: Settings, audience: str, email: str) -> bytes:
    """What failed sign-ins of an address are counted under; the address cannot be guessed from it."""
    return hmac.digest(signing_key(settings, "sign-in"), f"{audience}:{email}".encode(), "sha256")


def _signature_of(key: bytes, subject_id: UUID) -> bytes:
    return hmac.digest(key, subject_id.bytes, "sha256")


def _unpadded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _hasher(settings: Settings) -> PasswordHasher:
    return _hasher_with(settings.argon2_time_cost, settings.argon2_memory_kib, settings.argon2_parallelism)


@lru_cache
def _hasher_with(time_cost: int, memory_kib: int, parallelism: int) -> PasswordHasher:
    return PasswordHasher(time_cost=time_cost, memory_cost=memory_kib, parallelism=parallelism)


@lru_cache
def _hash_of_nobody(hasher: PasswordHasher) -> str:
    return hasher.hash(secrets.token_urlsafe(32))
