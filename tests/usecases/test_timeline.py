"""The timeline of a stored account against what the beat jobs then write, row for row and instant for instant."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from shared.db import account_state, timeline
from shared.domain.timeline import TimelineEntry
from shared.domain.timeline import timeline as foreseen
from tests.factories import on
from tests.foretold import Books, assert_foretold
from tests.office import Customer, Office

UNTIL = on("2026-07-01")


def books(office: Office, who: Customer) -> Books:
    """All that is written of the account."""

    def rows(table: str, order: str) -> list[object]:
        sql = f"SELECT * FROM {table} WHERE account_id = %(id)s ORDER BY {order}"
        return list(office.rows(sql, id=who.account_id))

    return Books.of(
        account=office.row("SELECT * FROM accounts WHERE id = %(id)s", id=who.account_id),
        subscription=rows("subscriptions", "(status <> 'ended') DESC, started_at DESC")[0],
        periods=rows("subscription_periods", "starts_at"),
        invoices=rows("invoices", "id"),
        ledger=rows("credit_transactions", "seq"),
        grants=rows("credit_grants", "id"),
        slugs={plan.id: plan.slug for plan in office.rules().plans.values()},
    )


def ahead(office: Office, who: Customer, until: datetime = UNTIL) -> list[TimelineEntry]:
    with office.database.transaction() as tx:
        outlook = timeline.read(tx, who.account_id, office.settings, now=office.now)
    return list(foreseen(outlook.state, outlook.rules, until=until))


def trial(office: Office) -> Customer:
    return office.sign_up(time_zone="Europe/Berlin")


def downgraded(office: Office) -> Customer:
    office.change("UPDATE plans SET trial_end = 'downgrade' WHERE slug = 'free-trial'")
    return office.sign_up()


def starter(office: Office) -> Customer:
    who = office.sign_up()
    office.buy(who)
    return who


def paid_ahead(office: Office) -> Customer:
    who = starter(office)
    office.buy(who)
    return who


def growing(office: Office) -> Customer:
    who = starter(office)
    office.buy(who, "growth", 139_00)
    return who


def undecided(office: Office) -> Customer:
    """A checkout of another plan, which nobody has paid."""
    who = starter(office)
    office.open_invoice(who, "growth")
    return who


def leaving(office: Office) -> Customer:
    who = starter(office)
    office.cancel(who)
    return who


def past_due(office: Office) -> Customer:
    who = starter(office)
    office.tick(on("2026-02-11"))
    return who


def transfer_in_trial(office: Office) -> Customer:
    who = office.sign_up()
    office.submit(who, office.open_invoice(who))
    return who


def transfer_in_grace(office: Office) -> Customer:
    who = past_due(office)
    (invoice,) = office.rows("SELECT id FROM invoices WHERE status = 'open'")
    office.submit(who, invoice.id)
    return who


def yearly(office: Office) -> Customer:
    office.change("UPDATE plans SET interval = 'year' WHERE slug = 'starter'")
    return starter(office)


def capped(office: Office) -> Customer:
    office.change("UPDATE plans SET credit_rollover = 'cap', credit_rollover_cap = 150 WHERE slug = 'free'")
    who = office.sign_up(time_zone="America/New_York")
    office.assign(who, "free")
    office.consume(who, 1_950, "most of it")
    return who


def with_gifts(office: Office) -> Customer:
    who = office.sign_up()
    office.adjust(who, 5, on("2026-01-12"))
    office.adjust(who, 7)
    return who


def with_a_hold(office: Office) -> Customer:
    """Credits are held that will expire; the hold is over by then."""
    who = office.sign_up()
    office.now = on("2026-01-24 11:59")
    office.hold(who, 1_500, "h", 86_400)
    return who


def ended(office: Office) -> Customer:
    who = office.sign_up()
    office.cancel(who, at_period_end=False)
    return who


SITUATIONS = {
    make.__name__.replace("_", " "): make
    for make in (
        *(trial, downgraded, starter, paid_ahead, growing, undecided, leaving, past_due, transfer_in_trial),
        *(transfer_in_grace, yearly, capped, with_gifts, with_a_hold, ended),
    )
}
EVERYONE = pytest.mark.parametrize("make", SITUATIONS.values(), ids=SITUATIONS)


@EVERYONE
def test_the_jobs_write_what_was_foretold(office: Office, make: Callable[[Office], Customer]) -> None:
    who = make(office)
    assert_foretold(ahead(office, who), observed=lambda: books(office, who), live_until=office.tick, until=UNTIL)


@EVERYONE
def test_what_is_due_is_foretold_until_a_job_has_been_there(office: Office, make: Callable[[Office], Customer]) -> None:
    who = make(office)
    foretold = ahead(office, who)
    office.now = UNTIL + timedelta(days=1)
    assert ahead(office, who) == foretold, "as it was due, however late one looks"
    office.tick(UNTIL)
    assert ahead(office, who) == []


def test_each_account_has_a_timeline_of_its_own(office: Office) -> None:
    people = [starter(office), trial(office), with_gifts(office)]
    foretold = [ahead(office, who) for who in people]
    office.tick(on("2026-02-01"))
    later = [ahead(office, who) for who in people]
    assert later == [[entry for entry in entries if entry.at > office.now] for entries in foretold]
    assert [len(entries) for entries in later] == [9, 0, 0], "one has a subscription that goes on, two have none"


def test_on_a_test_clock_now_is_the_clocks(office: Office) -> None:
    clock_id = office.make_clock(on("2030-01-31 09:00"))
    who = office.sign_up(clock_id=clock_id)
    with office.database.transaction() as tx:
        outlook = timeline.read(tx, who.account_id, office.settings, now=office.now)
    assert outlook.now == on("2030-01-31 09:00")
    until = on("2030-06-01")
    assert_foretold(
        list(foreseen(outlook.state, outlook.rules, until=until)),
        observed=lambda: books(office, who),
        live_until=lambda at: office.advance_clock(clock_id, max(at, outlook.now)),
        until=until,
    )


# --- reading ----------------------------------------------------------------------------------------


def test_an_account_is_read_as_one_instant_has_it(office: Office) -> None:
    """While somebody consumes and a job writes, grants, balance and periods still belong together."""
    who = trial(office)
    with office.database.transaction() as tx:
        seen = timeline.read(tx, who.account_id, office.settings, now=office.now)
        office.consume(who, 120, "meanwhile")
        office.tick(on("2026-01-25"))
        assert account_state.read(tx, [who.account_id]) == [seen.state]


def test_nothing_is_written_or_waited_for(office: Office) -> None:
    who = starter(office)
    before = office.dump()
    with office.database.transaction() as busy:
        busy.execute("SELECT FROM accounts WHERE id = %(id)s FOR UPDATE", id=who.account_id)
        assert ahead(office, who)
    assert office.dump() == before
    with office.database.transaction() as tx:
        timeline.read(tx, who.account_id, office.settings, now=office.now)
        assert tx.scalar("SHOW transaction_read_only") == "on"
