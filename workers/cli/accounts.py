"""Accounts: show, unpark, refresh."""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
import typer
from msgspec.structs import asdict

from shared.clock import utc_now
from shared.db import account_state, accounts, audit, credits, invoices, subscriptions, users
from shared.db import timeline as outlooks
from shared.db.engine import Tx
from shared.db.plans import load_rules
from shared.domain.operation import PrincipalKind
from shared.domain.timeline import TimelineEntry, horizon, timeline
from shared.errors import Conflict, InvalidInput, NotFound
from shared.usecases.refresh_accounts import refresh_accounts
from workers.cli.output import AsJson, console, facts, print_json, table
from workers.cli.session import Session, session

commands = typer.Typer(help="Show an account, hand a parked one back, derive schedules anew.", no_args_is_help=True)

NEWEST: Final = UUID(int=2**128 - 1)
NEWEST_SEQ: Final = 2**63 - 1
SHOWN: Final = 10
CHUNK: Final = 1_000

Who = Annotated[str, typer.Argument(metavar="ID|EMAIL", help="The account's id, or the address of one of its users.")]


@commands.command("show")
def show_account(
    who: Who,
    *,
    until: Annotated[
        str | None,
        typer.Option(metavar="INSTANT", help="Show what will happen until then, too, if nobody does anything."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show an account with its subscription, periods, credits and newest invoices, and what lies ahead."""
    with session() as here:
        with here.database.transaction() as tx:
            account_id = account_id_of(tx, who)
            document = _document(tx, account_id)
        if until is not None:
            document["ahead"] = [_row(entry) for entry in _ahead(here, account_id, _instant(until))]
    if as_json:
        print_json(document)
        return
    out = console()
    for name, content in document.items():
        if isinstance(content, list):
            out.print(table(name, content))
        else:
            out.print(facts(name, content or {}))
            out.print()


@commands.command("unpark")
def unpark(who: Who) -> None:
    """Hand a parked account back to the beat jobs, once its trouble is repaired."""
    with session() as here, here.database.transaction() as tx:
        account_id = account_id_of(tx, who)
        if not account_state.unpark(tx, account_id):
            raise Conflict(f"the account {account_id} is not parked")
        audit.record(
            tx,
            at=utc_now(),
            actor_kind=PrincipalKind.SYSTEM,
            actor_id=None,
            action="account.unparked",
            account_id=account_id,
            subject_kind="account",
            subject_id=account_id,
            reason="python -m workers accounts unpark",
        )
    typer.echo(f"the next tick takes up {account_id}")


@commands.command("refresh")
def refresh(
    who: Annotated[str | None, typer.Argument(metavar="[ID|EMAIL]", help="The account.")] = None,
    *,
    everybody: Annotated[bool, typer.Option("--all", help="Every account, in batches.")] = False,
) -> None:
    """Derive next transition, end of access and renewal anew.

    For after a change of a plan's terms in the database, or of TRANSFER_GRACE_DAYS: these dates are stored, and
    `check` reports those that no longer follow from the terms. What is due stays due.
    """
    if (who is not None) == everybody:
        raise InvalidInput("name an account, or state --all")
    refreshed = 0
    with session() as here:
        with here.database.transaction() as tx:
            rules = load_rules(tx, here.settings)
            chunk = [account_id_of(tx, who)] if who is not None else _next_ids(tx, UUID(int=0))
        while chunk:
            with here.database.transaction() as tx:
                refreshed += refresh_accounts(tx, chunk, rules)
                chunk = _next_ids(tx, chunk[-1]) if everybody else []
    typer.echo(f"refreshed: {refreshed}")


def _next_ids(tx: Tx, after: UUID) -> list[UUID]:
    rows = tx.rows(
        """
        SELECT id FROM accounts WHERE kind = 'customer' AND deleted_at IS NULL AND id > %(after)s
        ORDER BY id LIMIT %(limit)s
        """,
        after=after,
        limit=CHUNK,
    )
    return [row.id for row in rows]


def account_id_of(tx: Tx, who: str) -> UUID:
    """The account that an id or an address names. Raises NotFound, InvalidInput."""
    if "@" in who:
        user = users.by_email(tx, who.strip().lower())
        if user is None:
            raise NotFound(f"nobody signs in with {who}")
        user_account: UUID = user.account_id
        return user_account
    try:
        account_id = UUID(who)
    except ValueError:
        raise InvalidInput(f"{who} is neither an id nor an email address") from None
    accounts.get(tx, account_id)
    return account_id


def _instant(text: str) -> datetime:
    """Raises InvalidInput."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise InvalidInput(f"{text} is no instant with its offset, such as 2027-01-31T09:00:00Z")
    return at


def _ahead(here: Session, account_id: UUID, until: datetime) -> Iterator[TimelineEntry]:
    with here.database.transaction() as tx:
        outlook = outlooks.read(tx, account_id, here.settings, now=utc_now())
    return timeline(outlook.state, outlook.rules, until=horizon(outlook.now, until))


def _row(entry: TimelineEntry) -> dict[str, Any]:
    """When, why and what; and as facts, whatever its kind has to say."""
    told: dict[str, Any] = msgspec.to_builtins(entry)
    return {
        "at": entry.at,
        "transition": told.pop("transition"),
        "kind": told.pop("kind"),
        "facts": {name: value for name, value in told.items() if name != "at"},
    }


def _document(tx: Tx, account_id: UUID) -> dict[str, Any]:
    try:
        subscription = subscriptions.newest(tx, account_id)
    except NotFound:
        subscription = None
    periods = subscriptions.periods(tx, subscription.id, limit=SHOWN) if subscription else []
    ledger = credits.transactions_page(tx, account_id, before=NEWEST_SEQ, limit=SHOWN)
    return {
        "account": {**accounts.get(tx, account_id)._asdict(), "owner": users.owner_email(tx, account_id)},
        "credits": asdict(credits.balance(tx, account_id, now=utc_now())),
        "subscription": subscription._asdict() if subscription else None,
        "periods": [row._asdict() for row in periods],
        "invoices": [row._asdict() for row in invoices.page(tx, account_id, before=NEWEST, limit=SHOWN)],
        "ledger": [row._asdict() for row in ledger],
    }
