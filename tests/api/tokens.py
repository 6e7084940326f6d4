"""Tokens as an attacker would like them: looked into, changed, signed anew or not at all."""

import base64
import json
from typing import Any

import jwt
from flask import Flask

from api.auth import ALGORITHM
from shared import security


def claims(token: str) -> dict[str, Any]:
    """What a token says, believed or not."""
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def forge(app: Flask, token: str, *, header: dict[str, Any] | None = None, **changed: Any) -> str:
    """The token again with other claims, signed with the system's own key; a header of None is left out."""
    key = app.config["JWT_SECRET_KEY"]
    headers = {"kid": security.key_id(key)} | (header or {})
    algorithm = headers.pop("alg", ALGORITHM)
    headers = {name: value for name, value in headers.items() if value is not None}
    return jwt.encode(claims(token) | changed, "" if algorithm == "none" else key, algorithm, headers=headers)


def relabel(token: str, **header: Any) -> str:
    """The token under another header, with the signature that it had."""
    first, payload, signature = token.split(".")
    return ".".join([_encoded(_decoded(first) | header), payload, signature])


def tamper(token: str, **changed: Any) -> str:
    """The token with other claims and the signature that it had."""
    header, payload, signature = token.split(".")
    return ".".join([header, _encoded(_decoded(payload) | changed), signature])


def _decoded(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def _encoded(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()
