"""Create an account with its owner, its first subscription and its first credits: all or nothing."""

from datetime import datetime
from typing import Any
from uuid import UUID

from shared.db import accounts, audit, test_clocks, trials
from shared.db.account_state import Change, write
from shared.db.engine import Tx
from shared.domain import lifecycle
from shared.domain.account import Account, AccountState, AccountStatus
from shared.domain.member import Role
from shared.domain.operation import Operation, PrincipalKind
from shared.domain.plan import Plan, Rules, signup_plan
from shared.domain.requests import SignUp
from shared.errors import NoSignupPlan


def sign_up(tx: Tx, operation: Operation, request: SignUp, rules: Rules, *, now: datetime) -> dict[str, Any]:
    """The new account's ids and plan. Raises NoSignupPlan, EmailTaken, NotFound (test clock)."""
    account_id = rules.new_id()
    plan = _plan_for(tx, request.email, account_id, rules)
    if request.test_clock_id is not None:
        now = test_clocks.hold_still(tx, request.test_clock_id)
    account = Account(
        id=account_id,
        status=AccountStatus.TRIAL,
        status_reason=None,
        time_zone=request.time_zone,
        balance_credits=0,
        ledger_seq=0,
        acted_at=now,
    )
    state = lifecycle.sign_up(account, rules, plan, at=now)
    user_id = rules.new_id()
    accounts.create(tx, account, name=request.account_name, test_clock_id=request.test_clock_id)
    accounts.create_user(
        tx,
        user_id=user_id,
        account_id=account.id,
        email=request.email,
        password_hash=request.password_hash,
        role=Role.OWNER,
    )
    write(tx, [Change(AccountState(account=account), state)], rules)
    audit.record(
        tx,
        at=now,
        actor_kind=PrincipalKind.ANONYMOUS,
        actor_id=None,
        action="account.signed_up",
        account_id=account.id,
        subject_kind="account",
        subject_id=account.id,
        after={"plan": plan.slug, "credits": state.account.balance_credits},
        operation_id=operation.id,
    )
    return {
        "account_id": str(account.id),
        "user_id": str(user_id),
        "plan": plan.slug,
        "credits": state.account.balance_credits,
    }


def _plan_for(tx: Tx, email: str, account_id: UUID, rules: Rules) -> Plan:
    """The plan with a trial, once for each mailbox; else one without. Raises NoSignupPlan."""
    plan = signup_plan(rules.plans.values())
    if plan is not None and plan.trial_days > 0 and not trials.give(tx, email, account_id):
        plan = signup_plan(rules.plans.values(), trial=False)
    if plan is None:
        raise NoSignupPlan("neither free-trial nor free may be given at signup; run seed-plans")
    return plan
