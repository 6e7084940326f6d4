"""Platform admins: create-admin."""

import sys
from typing import Annotated

import typer

from shared import security
from shared.clock import utc_now
from shared.db import admins, audit
from shared.domain.email import normalised
from shared.domain.operation import PrincipalKind
from shared.domain.password import MAX_LENGTH, MIN_LENGTH, weakness
from shared.errors import InvalidInput
from shared.ids import new_id
from workers.cli.session import session


def create_admin(
    *,
    email: Annotated[str | None, typer.Option(help="What the admin signs in with; asked for when not stated.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input instead of asking.")
    ] = False,
) -> None:
    """Create a platform admin. The password is asked for; it is never an argument, which others could see."""
    address = _address(email if email is not None else typer.prompt("Email"))
    password = _password(address, from_stdin=password_stdin)
    with session() as here, here.database.transaction() as tx:
        admin_id = new_id()
        password_hash = security.hash_password(here.settings, password)
        admins.create(tx, admin_id=admin_id, email=address, password_hash=password_hash)
        audit.record(
            tx,
            at=utc_now(),
            actor_kind=PrincipalKind.SYSTEM,
            actor_id=None,
            action="admin.created",
            subject_kind="admin",
            subject_id=admin_id,
            reason="python -m workers create-admin",
            after={"email": address},
        )
    typer.echo(f"{address} can sign in at /api/v1/admin/auth/login")


def at_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty()


def _address(text: str) -> str:
    try:
        return normalised(text)
    except InvalidInput as error:
        raise InvalidInput(f"{text} is no email address: {error.detail}") from None


def _password(address: str, *, from_stdin: bool) -> str:
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif at_terminal():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        raise InvalidInput("there is no terminal to ask for the password; hand it over with --password-stdin")
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise InvalidInput(f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters")
    if (why := weakness(password, about=[address])) is not None:
        raise InvalidInput(f"the password {why}")
    return str(password)
