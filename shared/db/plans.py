"""Plans: read the catalogue, seed it."""

from collections.abc import Callable, Iterable
from uuid import UUID

from stdnum import iban

from shared.config import Settings
from shared.db.engine import Tx
from shared.domain.calendar import Interval
from shared.domain.plan import Assigner, Plan, Rollover, Rules, SeedPlan, TrialEnd
from shared.ids import new_id


def load_plans(tx: Tx) -> dict[UUID, Plan]:
    """The whole catalogue; it is small."""
    rows = tx.rows(
        """
        SELECT p.*, array_remove(array_agg(a.assigned_by), NULL) AS assigners
        FROM plans p LEFT JOIN plan_assigners a ON a.plan_id = p.id
        GROUP BY p.id ORDER BY p.price_minor, p.slug
        """
    )
    return {
        row.id: Plan(
            id=row.id,
            slug=row.slug,
            name=row.name,
            price_minor=row.price_minor,
            currency=row.currency,
            interval=Interval(row.interval),
            interval_count=row.interval_count,
            trial_days=row.trial_days,
            credits_per_month=row.credits_per_month,
            credit_rollover=Rollover(row.credit_rollover),
            credit_rollover_cap=row.credit_rollover_cap,
            trial_end=TrialEnd(row.trial_end),
            grace_days=row.grace_days,
            requests_per_minute=row.requests_per_minute,
            assignable_by=frozenset(Assigner(name) for name in row.assigners),
        )
        for row in rows
    }


def load_rules(tx: Tx, settings: Settings) -> Rules:
    """What decisions depend on besides what they are about."""
    return Rules(
        plans=load_plans(tx),
        transfer_grace_days=settings.transfer_grace_days,
        invoice_due_days=settings.invoice_due_days,
        low_credits_percent=settings.low_credits_percent,
        charge_retry_days=settings.charge_retry_days,
        seller_iban=iban.compact(settings.seller_iban).upper(),
        statement_auto_settle=settings.statement_auto_settle,
        new_id=new_id,
    )


def seed(tx: Tx, plans: Iterable[SeedPlan], *, make_id: Callable[[], UUID] = new_id) -> list[str]:
    """Add the plans that are missing, with their assigners; what exists is left alone. The slugs added."""
    added = []
    for plan in plans:
        plan_id = make_id()
        created = tx.execute(
            """
            INSERT INTO plans (id, slug, name, price_minor, currency, interval, interval_count, trial_days,
                               credits_per_month, credit_rollover, trial_end, grace_days, requests_per_minute)
            VALUES (%(id)s, %(slug)s, %(name)s, %(price_minor)s, 'USD', 'month', 1, %(trial_days)s,
                    %(credits)s, 'none', 'suspend', 7, %(requests_per_minute)s)
            ON CONFLICT (slug) DO NOTHING
            """,
            id=plan_id,
            slug=plan.slug,
            name=plan.name,
            price_minor=plan.price_minor,
            trial_days=plan.trial_days,
            credits=plan.credits_per_month,
            requests_per_minute=plan.requests_per_minute,
        )
        if created:
            added.append(plan.slug)
            tx.execute(
                """
                INSERT INTO plan_assigners (plan_id, plan_slug, assigned_by)
                SELECT %(id)s, %(slug)s, unnest(%(assigners)s::text[])
                """,
                id=plan_id,
                slug=plan.slug,
                assigners=[str(assigner) for assigner in plan.assignable_by],
            )
    return added
