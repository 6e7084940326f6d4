"""An admin rejects a bank transfer: no such money came."""

from datetime import datetime
from typing import Any

from shared.db import account_state, bank_transfers, settlement
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
    settlement.record_decision(
        tx,
        operation,
        transfer,
        EventKind.BANK_TRANSFER_REJECTED,
        at=account.now,
        reason=request.reason,
        after={"status": str(status)},
    )
    return {"account_id": str(transfer.account_id), "bank_transfer_id": str(request.bank_transfer_id)}
