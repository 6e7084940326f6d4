"""What is written to people, as plain text; who sends it is no concern of this module.

Text that others chose, such as the name of an account, is put on a line of its own and cut: a letter is no place to
write to strangers in.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from msgspec import Struct

LONGEST_NAME: Final = 60


class LetterKind(StrEnum):
    """On what occasion something is written."""

    CONFIRM_ADDRESS = "confirm_address"
    INVITATION = "invitation"


class Letter(Struct, frozen=True, kw_only=True):
    """One letter to one address. id: the same for the same letter, however often it is sent."""

    id: str
    to: str
    subject: str
    text: str


def confirm_address(*, id: str, to: str, token: str, expires_at: datetime) -> Letter:  # noqa: A002 (a field's name)
    """To whoever signed up with this address, or whose address somebody else has typed."""
    return Letter(
        id=id,
        to=to,
        subject="Confirm your address",
        text=f"""\
Somebody, hopefully you, is signing up with this address.

To confirm it, use this code, together with the password that you chose:

    {token}

It works until {_written(expires_at)}. If it was not you, do nothing: without the code there is no account.
""",
    )


def address_in_use(*, id: str, to: str) -> Letter:  # noqa: A002 (a field's name)
    """To whoever signs up with an address that signs in to an account already. It asks for nothing."""
    return Letter(
        id=id,
        to=to,
        subject="You have an account",
        text="""\
Somebody, hopefully you, tried to sign up with this address. It signs in to an account already, so nothing was changed.

If it was you, sign in with the password that you have. If it was not you, do nothing.
""",
    )


def invitation(
    *,
    id: str,  # noqa: A002 (a field's name)
    to: str,
    account_name: str,
    role: str,
    token: str,
    expires_at: datetime,
) -> Letter:
    """To whoever may join an account."""
    return Letter(
        id=id,
        to=to,
        subject="You are invited",
        text=f"""\
You are invited to join, as {role}, the account

    {account_name[:LONGEST_NAME]}

To accept, use this code, together with a password that you choose:

    {token}

It works until {_written(expires_at)}. If you expect no invitation, do nothing.
""",
    )


def _written(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
