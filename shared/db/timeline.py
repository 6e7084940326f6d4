"""What a timeline is computed from: an account, as one instant of the database has it."""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from shared.config import Settings
from shared.db import account_state
from shared.db.engine import Tx
from shared.db.plans import load_rules
from shared.domain.account import AccountState
from shared.domain.plan import Rules


class Outlook(Struct, frozen=True):
    """An account as it is stored, the rules that it lives by, and the instant in which it lives."""

    state: AccountState
    rules: Rules
    now: datetime


def read(tx: Tx, account_id: UUID, settings: Settings, *, now: datetime) -> Outlook:
    """The outlook of a customer's account; nothing is locked or written.

    tx: fresh. An account is several rows, and while they are read somebody may consume or a job may
    write: only within one instant do grants, balance and periods belong together.
    """
    tx.read_one_instant()
    (state,) = account_state.read(tx, [account_id])
    return Outlook(state, load_rules(tx, settings), account_state.now_for(tx, account_id, now))
