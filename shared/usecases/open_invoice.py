"""Checkout: open the invoice that brings a plan."""

from datetime import datetime
from typing import Any

from shared.db import account_state
from shared.db.account_state import Change
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.account import Action, require_access
from shared.domain.operation import Operation
from shared.domain.plan import Rules
from shared.domain.requests import OpenInvoice
from shared.errors import NotFound


def open_invoice(tx: Tx, operation: Operation, request: OpenInvoice, rules: Rules, *, now: datetime) -> dict[str, Any]:
    """The invoice's id, or none when the plan costs nothing. Raises what `lifecycle.choose_plan` does."""
    account = account_state.open_operation_account(tx, operation, rules, now=now)
    plan = rules.plan_by_slug(request.plan)
    if plan is None:
        raise NotFound(f"no plan is called {request.plan}")
    require_access(Action.PAY, status=account.state.account.status, access_ends_at=None, now=account.now)
    state, invoice = lifecycle.choose_plan(account.state, rules, plan, method=request.payment_method, at=account.now)
    account_state.write(tx, [Change(account.loaded, state)], rules)
    return {
        "account_id": str(state.account.id),
        "plan": plan.slug,
        "invoice_id": str(invoice.id) if invoice else None,
    }
