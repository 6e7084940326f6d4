"""The schema and the catalogue: migrate, rollback, seed-plans, create-free-trial-plan."""

from typing import Annotated

import typer

from shared.db import plans
from shared.db.migrations import run as migrations
from shared.domain.plan import FREE_TRIAL, SEED_PLANS, SeedPlan
from workers.cli.session import revision, session


def migrate() -> None:
    """Bring the database up to this release's schema.

    Safe to run again, and from several machines at once: they take turns.
    """
    with session(needs_schema=False) as here:
        before = revision(here.database)
        migrations.upgrade(str(here.settings.database_url))
        after = revision(here.database)
    typer.echo(f"the database is at {after}" + ("" if before == after else f" (was {before or 'empty'})"))


def rollback(
    *,
    to: Annotated[
        str, typer.Option(help="A revision, or `base` for an empty database; unless stated, one step.")
    ] = "-1",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take the schema back. What only the newer schema can hold is lost: back up first."""
    with session(needs_schema=False) as here:
        before = revision(here.database)
        if not yes:
            question = f"Roll back from {before or 'empty'} to {'the revision before' if to == '-1' else to}?"
            typer.confirm(f"{question} Data may be lost.", abort=True)
        migrations.downgrade(str(here.settings.database_url), to)
        after = revision(here.database)
    typer.echo(f"the database is at {after or 'base: it is empty'} (was {before or 'empty'})")


def seed_plans() -> None:
    """Add the plans of a fresh system that are missing; what exists is left as it is."""
    _seed(*SEED_PLANS)


def create_free_trial_plan() -> None:
    """Add the plan free-trial, which signups get, if it is missing."""
    _seed(*(plan for plan in SEED_PLANS if plan.slug == FREE_TRIAL))


def _seed(*wanted: SeedPlan) -> None:
    with session() as here, here.database.transaction() as tx:
        added = plans.seed(tx, wanted)
        typer.echo(f"added: {', '.join(added) or 'nothing'}")
        kept = [plan.slug for plan in wanted if plan.slug not in added]
        if kept:
            typer.echo(f"there already: {', '.join(kept)}")
