"""Operations: list, show, retry."""

from typing import Annotated, Any, Final
from uuid import UUID

import typer
from sqlalchemy import Row

from shared.clock import utc_now
from shared.db import audit, operations
from shared.db.engine import Tx
from shared.domain.operation import OperationKind, OperationStatus, PrincipalKind
from shared.errors import InvalidInput
from shared.log import SECRET_KEYS
from workers.cli.output import AsJson, console, facts, print_json, table
from workers.cli.session import session

commands = typer.Typer(help="List operations, show one, retry dead ones.", no_args_is_help=True)

NEWEST: Final = UUID(int=2**128 - 1)
LISTED: Final = ("id", "kind", "status", "account_id", "attempts", "sends", "created_at", "finished_at", "last_error")


@commands.command("list")
def list_operations(
    *,
    status: Annotated[OperationStatus | None, typer.Option(help="Only those of this status.")] = None,
    kind: Annotated[OperationKind | None, typer.Option(help="Only those of this kind.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List operations, newest first."""
    with session() as here, here.database.transaction() as tx:
        found = operations.page(tx, status=status, kind=kind, before=NEWEST, limit=limit)
        rows = [{name: getattr(row, name) for name in LISTED} for row in found]
    if as_json:
        print_json(rows)
    else:
        console().print(table("operations", rows))


@commands.command("show")
def show_operation(operation_id: UUID, *, as_json: AsJson = False) -> None:
    """Show an operation: what was asked, by whom, and what has become of it."""
    with session() as here, here.database.transaction() as tx:
        row = _without_secrets(operations.get(tx, operation_id), operations.payload_of(tx, operation_id))
    if as_json:
        print_json(row)
    else:
        console().print(facts(f"operation {operation_id}", row))


@commands.command("retry")
def retry(
    operation_ids: Annotated[list[UUID] | None, typer.Argument(help="Which dead operations.")] = None,
    *,
    all_dead: Annotated[bool, typer.Option("--all-dead", help="Every dead operation.")] = False,
) -> None:
    """Give dead operations all their attempts again; the relay sends them as soon as it runs."""
    if bool(operation_ids) == all_dead:
        raise InvalidInput("name the operations, or state --all-dead")
    with session() as here, here.database.transaction() as tx:
        revived = operation_ids or [
            row.id for row in tx.rows("SELECT id FROM operations WHERE status = 'dead' ORDER BY id FOR UPDATE")
        ]
        for operation_id in revived:
            _revive(tx, operation_id)
    typer.echo(f"{len(revived)} operation{'' if len(revived) == 1 else 's'} will be sent again by the relay")


def _revive(tx: Tx, operation_id: UUID) -> None:
    now = utc_now()
    operations.revive(tx, operation_id, now=now)
    audit.record(
        tx,
        at=now,
        actor_kind=PrincipalKind.SYSTEM,
        actor_id=None,
        action="operation.retried",
        subject_kind="operation",
        subject_id=operation_id,
        reason="python -m workers operations retry",
        operation_id=operation_id,
    )


def _without_secrets(row: Row[Any], payload: dict[str, Any]) -> dict[str, Any]:
    shown = row._asdict()
    shown["request_hash"] = bytes(shown["request_hash"]).hex()
    shown["payload"] = {name: "[redacted]" if name in SECRET_KEYS else value for name, value in payload.items()}
    return shown
