"""A customer says that a bank transfer for an open invoice is on its way."""

from datetime import datetime
from typing import Any

from shared.db import account_state, bank_transfers, events
from shared.db.account_state import Change
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.event import EventKind
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import SubmitBankTransfer
from shared.errors import Forbidden


def submit_bank_transfer(
    tx: Tx, operation: Operation, request: SubmitBankTransfer, rules: Rules, *, now: datetime
) -> dict[str, Any]:
    """The pending transfer's id. Raises InvoiceNotOpen, TransferPending, Forbidden."""
    if operation.principal_id is None:
        raise Forbidden("a bank transfer is submitted by a user")
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    state = lifecycle.transfer_submitted(account.state, request.invoice_id, at=account.now)
    bank_transfer_id = rules.new_id()
    bank_transfers.submit(
        tx,
        bank_transfer_id=bank_transfer_id,
        account_id=state.account.id,
        invoice_id=request.invoice_id,
        payer_name=request.payer_name,
        transferred_on=request.transferred_on,
        note=request.note,
        submitted_by=operation.principal_id,
        at=account.now,
    )
    account_state.write(tx, [Change(account.loaded, state)], rules)
    events.record(
        tx,
        EventKind.BANK_TRANSFER_SUBMITTED,
        account_id=state.account.id,
        subject_id=bank_transfer_id,
        at=account.now,
        data={"invoice_id": request.invoice_id},
    )
    return {
        "account_id": str(state.account.id),
        "invoice_id": str(request.invoice_id),
        "bank_transfer_id": str(bank_transfer_id),
    }
