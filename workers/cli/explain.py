"""Where an account's credits came from and went: explain."""

from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer
from msgspec.structs import asdict
from rich.console import Console
from rich.text import Text

from shared.clock import utc_now
from shared.db import credits, ledger
from shared.db.engine import Tx
from shared.domain.explanation import (
    Actor,
    Explanation,
    Grant,
    GrantStatement,
    Period,
    Refund,
    Settlement,
    Statement,
    statement,
)
from shared.domain.money import written
from shared.errors import InvalidInput
from workers.cli.accounts import Who, account_id_of
from workers.cli.output import AsJson, console, facts, print_json, table
from workers.cli.session import Session, session

ROWS: Final = 20
MOST_ROWS: Final = 1_000


def explain(
    who: Who,
    *,
    limit: Annotated[
        int, typer.Option(min=1, max=MOST_ROWS, help="So many of the ledger's newest rows are explained.")
    ] = ROWS,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print the whole ledger as CSV instead, oldest first, however long it is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Explain a balance: where each credit came from, and where it went.

    First a statement, from nothing to the balance, and whether it sums up. Then a line per grant: what brought it, and
    what was consumed, corrected, expired and reversed of it; BALANCE is what all grants up to that one leave. Then the
    newest rows of the ledger: who did it and why, its period and what paid for that, when it was due and when it was
    written.

    Reads one instant of the database and writes nothing. A statement that does not sum up names the checks that fail;
    `check` has a repair for each.
    """
    if as_csv and as_json:
        raise InvalidInput("state --csv or --json, not both")
    with session() as here:
        if as_csv:
            _print_csv(here, who)
            return
        with here.database.transaction() as tx:
            tx.read_one_instant()
            document = _document(tx, who, limit)
    if as_json:
        print_json(document)
    else:
        _print(console(), document)


def _print_csv(here: Session, who: str) -> None:
    with here.database.transaction() as tx:
        account_id = account_id_of(tx, who)
        upto_seq = ledger.newest_seq(tx, account_id)
    for chunk in ledger.as_csv(here.database.transaction, account_id, upto_seq=upto_seq):
        typer.echo(chunk, nl=False)


def _document(tx: Tx, who: str, limit: int) -> dict[str, Any]:
    account_id = account_id_of(tx, who)
    balance = credits.balance(tx, account_id, now=utc_now())
    grants = ledger.grant_statements(tx, account_id)
    return {
        "account_id": account_id,
        "credits": asdict(balance),
        "statement": statement(grants, balance_credits=balance.balance_credits),
        "grants": grants,
        "ledger": [_row(one) for one in ledger.newest_explained(tx, account_id, limit=limit)],
    }


def _row(one: Explanation) -> dict[str, Any]:
    """For machines: what the API says to admins."""
    return {
        "seq": one.seq,
        "kind": one.kind,
        "amount": one.amount,
        "balance_before": one.balance_before,
        "balance_after": one.balance_after,
        "effective_at": one.effective_at,
        "recorded_at": one.recorded_at,
        "reason": one.reason,
        "idempotency_key": one.idempotency_key,
        "rule": one.rule,
        "grant": one.grant,
        "period": one.period,
        "payment": one.payment,
        "refund": one.refund,
        "operation": None if one.operation is None else {"id": one.operation.id, "kind": one.operation.kind},
        "hold": one.hold,
        "actor": one.actor(for_admins=True),
        "posting_seqs": one.posting_seqs,
        "reverses_seq": one.reverses_seq,
        "reversed_by_seqs": one.reversed_by_seqs,
    }


# --- for people ---------------------------------------------------------------------------------


def _print(out: Console, document: dict[str, Any]) -> None:
    out.print(facts("account", {"id": document["account_id"]} | document["credits"]))
    out.print()
    _print_statement(out, document["statement"])
    out.print()
    out.print(table("grants", _grant_rows(document["grants"])))
    out.print(table("ledger, newest first", [_shown_row(row) for row in document["ledger"]]))


def _print_statement(out: Console, sums: Statement) -> None:
    signed = {
        "opening": sums.opening,
        "+ seeded": sums.seeded,
        "+ purchased": sums.purchased,
        "+ given": sums.given,
        "- consumed": sums.consumed,
        "- corrected": sums.corrected,
        "- expired": sums.expired,
        "± reversed": sums.reversed,
        "= balance": sums.balance,
    }
    out.print(facts("statement", {name: f"{credits:>15,}" for name, credits in signed.items()}))
    if sums.fails:
        out.print(Text(f"it does not sum up: {', '.join(sums.fails)}; see `check`", "bold red"))
    else:
        out.print(Text("it sums up: the ledger, the grants and the balance agree", "bold green"))


def _grant_rows(grants: list[GrantStatement]) -> list[dict[str, Any]]:
    rows, balance = [], 0
    for grant in grants:
        balance += grant.left
        rows.append(
            {
                "grant": grant.id,
                "source": grant.source,
                "row": grant.opened_by_seq,
                "effective_at": grant.effective_at,
                "expires_at": grant.expires_at,
                "+": grant.seeded + grant.purchased + grant.given,
                "consumed": -grant.consumed,
                "corrected": -grant.corrected,
                "expired": -grant.expired,
                "reversed": grant.reversed,
                "remaining": grant.remaining,
                "balance": balance,
            }
        )
    return rows


def _shown_row(row: dict[str, Any]) -> dict[str, Any]:
    grant: Grant = row["grant"]
    return {
        "row": row["seq"],
        "effective": row["effective_at"],
        "recorded": row["recorded_at"],
        "kind": row["kind"],
        "amount": row["amount"],
        "balance": row["balance_after"],
        "grant": f"{grant.source} of row {grant.opened_by_seq}",
        "by": _by(row),
        "why": "; ".join(_why(row)),
    }


def _by(row: dict[str, Any]) -> str:
    actor: Actor | None = row["actor"]
    if actor is None:
        return f"hold {row['hold'].id}"
    return f"{actor.kind} {actor.name or actor.id or ''}".strip()


def _why(row: dict[str, Any]) -> Iterator[str]:
    period: Period | None = row["period"]
    payment: Settlement | None = row["payment"]
    refund: Refund | None = row["refund"]
    operation: dict[str, Any] | None = row["operation"]
    yield row["rule"].sentence
    if period is not None:
        paid = f", paid by {payment.provider} {payment.invoice_reference}" if payment is not None else ""
        yield f"{period.plan} from {period.starts_at:%Y-%m-%d} to {period.ends_at:%Y-%m-%d}{paid}"
    if refund is not None:
        money = written(refund.amount_minor, refund.currency)
        yield f"refund {refund.id} of {money}, of payment {refund.payment_id}"
    if operation is not None:
        yield f"{operation['kind']} {operation['id']}"
    if row["reason"] is not None:
        yield f'"{row["reason"]}"'
    if row["reverses_seq"] is not None:
        yield f"undoes row {row['reverses_seq']}"
    if row["reversed_by_seqs"]:
        yield f"undone by row {', '.join(str(seq) for seq in row['reversed_by_seqs'])}"
