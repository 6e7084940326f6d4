"""Write to somebody who has signed up or was invited.

What a letter proves is derived from SECRET_KEY when it is sent: neither the operation nor any other row holds it.
"""

from datetime import datetime
from typing import Any

from shared import security
from shared.config import Settings
from shared.db import members, signups, users
from shared.db.engine import Tx
from shared.domain import letter as letters
from shared.domain.letter import Letter, LetterKind
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import SendMail


def compose(tx: Tx, operation: Operation, request: SendMail, *, settings: Settings, now: datetime) -> Letter | None:
    """What is to be sent now; None when it would come too late."""
    if request.letter is LetterKind.INVITATION:
        invited = members.open_invitation(tx, request.subject_id, now=now)
        return (
            None
            if invited is None
            else letters.invitation(
                id=str(operation.id),
                to=invited.email,
                account_name=invited.account_name,
                role=invited.role,
                token=security.sent_token(settings, security.Purpose.INVITATION, invited.id),
                expires_at=invited.expires_at,
            )
        )
    signup = signups.open_signup(tx, request.subject_id, now=now)
    if signup is None:
        return None
    if users.by_email(tx, signup.email) is not None:
        return letters.address_in_use(id=str(operation.id), to=signup.email)
    token = security.sent_token(settings, security.Purpose.CONFIRM_ADDRESS, signup.id)
    return letters.confirm_address(id=str(operation.id), to=signup.email, token=token, expires_at=signup.expires_at)


def sent(_tx: Tx, _operation: Operation, request: SendMail, _answer: None, _rules: Rules, **_: Any) -> dict[str, Any]:
    """The same answer whatever was written, and whether or not: who asked may not learn who has an account."""
    return {"letter": str(request.letter)}
