"""An admin rejects a bank transfer: no such money came."""

from datetime import datetime
from typing import Any

from shared.db import account_state, audit, bank_transfers, events
from shared.db.account_state import Change
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.bank_transfer import BankTransferEvent, BankTransferStatus, next_status
from shared.domain.event import EventKind
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import RejectBankTransfer
from shared.errors import Forbidden


def reject_bank_transfer(
    tx: Tx, operation: Operation, request: RejectBankTransfer, rules: Rules, *, now: datetime
) -> dict[str, Any]:
    """Decide the transfer; time granted for its sake ends. Raises NotFound, AlreadyApproved, AlreadyRejected."""
    if operation.principal_id is None:
        raise Forbidden("a bank transfer is decided by an admin")
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    transfer = bank_transfers.lock(tx, account.state.account.id, request.bank_transfer_id)
    status = next_status(BankTransferStatus(transfer.status), BankTransferEvent.REJECT)
    bank_transfers.reject(
        tx, request.bank_transfer_id, reason=request.reason, decided_by=operation.principal_id, at=account.now
    )
    state = lifecycle.transfer_rejected(account.state, rules, transfer.invoice_id, at=account.now)
    account_state.write(tx, [Change(account.loaded, state)], rules)
    events.record(
        tx,
        EventKind.BANK_TRANSFER_REJECTED,
        account_id=transfer.account_id,
        subject_id=request.bank_transfer_id,
        at=account.now,
        data={"invoice_id": transfer.invoice_id},
    )
    audit.record(
        tx,
        at=account.now,
        actor_kind=operation.principal_kind,
        actor_id=operation.principal_id,
        action="bank_transfer.rejected",
        account_id=transfer.account_id,
        subject_kind="bank_transfer",
        subject_id=request.bank_transfer_id,
        reason=request.reason,
        before={"status": transfer.status},
        after={"status": str(status)},
        operation_id=operation.id,
    )
    return {"account_id": str(transfer.account_id), "bank_transfer_id": str(request.bank_transfer_id)}
