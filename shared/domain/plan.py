"""Plans: what is sold, at which rhythm, and who may hand it out.

Source: docs/rules.md, "Plans". The catalogue of a fresh system is `SEED_PLANS`.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final
from uuid import UUID

from msgspec import Struct

from shared.domain.calendar import Interval

FREE_TRIAL: Final = "free-trial"
FREE: Final = "free"
ENTERPRISE: Final = "enterprise"


class Assigner(StrEnum):
    """Who hands a plan to an account."""

    SIGNUP = "signup"
    CHECKOUT = "checkout"
    ADMIN = "admin"


class Rollover(StrEnum):
    """What becomes of a seed's unspent credits when its credit month ends."""

    NONE = "none"  # they expire
    ALL = "all"  # they stay until spent
    CAP = "cap"  # up to `credit_rollover_cap` are carried into the next month


class TrialEnd(StrEnum):
    """What an unpaid trial ends in."""

    SUSPEND = "suspend"
    DOWNGRADE = "downgrade"  # to the free plan


class Plan(Struct, frozen=True, kw_only=True):
    """The terms of a plan. Prices are per billing interval, in minor units; credits per credit month."""

    id: UUID
    slug: str
    name: str
    price_minor: int
    currency: str
    interval: Interval
    interval_count: int
    trial_days: int
    credits_per_month: int
    credit_rollover: Rollover
    credit_rollover_cap: int | None
    trial_end: TrialEnd
    grace_days: int
    requests_per_minute: int
    assignable_by: frozenset[Assigner]


class Rules(Struct, frozen=True, kw_only=True):
    """What decisions depend on besides what they are about: the catalogue, and what the operator has set.

    seller_iban: the account that bank transfers go to, in compact capitals.
    """

    plans: dict[UUID, Plan]
    transfer_grace_days: int
    invoice_due_days: int
    low_credits_percent: int
    charge_retry_days: tuple[int, ...]
    seller_iban: str
    statement_auto_settle: bool
    new_id: Callable[[], UUID]

    def plan_by_slug(self, slug: str) -> Plan | None:
        """The plan of that name, or None."""
        return next((plan for plan in self.plans.values() if plan.slug == slug), None)

    @property
    def free_plan(self) -> Plan | None:
        """Where a trial that downgrades goes; None when it may not be given at signup."""
        plan = self.plan_by_slug(FREE)
        return plan if plan and Assigner.SIGNUP in plan.assignable_by else None


def signup_plan(plans: Iterable[Plan], *, trial: bool = True) -> Plan | None:
    """`free-trial`, else `free`, else None. No other plan can be reached by signing up.

    trial: whether it may be a plan with a trial.
    """
    assignable = {plan.slug: plan for plan in plans if Assigner.SIGNUP in plan.assignable_by}
    offered = (assignable.get(slug) for slug in (FREE_TRIAL, FREE))
    return next((plan for plan in offered if plan is not None and (trial or plan.trial_days == 0)), None)


class SeedPlan(Struct, frozen=True, kw_only=True):
    """A plan of the catalogue that a fresh system starts with: monthly, in USD, no rollover."""

    slug: str
    name: str
    price_minor: int
    credits_per_month: int
    requests_per_minute: int
    assignable_by: tuple[Assigner, ...]
    trial_days: int = 0


SEED_PLANS: Final = (
    SeedPlan(
        slug=FREE_TRIAL,
        name="Free trial",
        price_minor=0,
        credits_per_month=2_000,
        requests_per_minute=120,
        assignable_by=(Assigner.SIGNUP,),
        trial_days=14,
    ),
    SeedPlan(
        slug=FREE,
        name="Free",
        price_minor=0,
        credits_per_month=100,
        requests_per_minute=60,
        assignable_by=(Assigner.SIGNUP, Assigner.CHECKOUT, Assigner.ADMIN),
    ),
    SeedPlan(
        slug="starter",
        name="Starter",
        price_minor=89_00,
        credits_per_month=1_000,
        requests_per_minute=600,
        assignable_by=(Assigner.CHECKOUT, Assigner.ADMIN),
    ),
    SeedPlan(
        slug="growth",
        name="Growth",
        price_minor=139_00,
        credits_per_month=2_000,
        requests_per_minute=1_200,
        assignable_by=(Assigner.CHECKOUT, Assigner.ADMIN),
    ),
    SeedPlan(
        slug="scale",
        name="Scale",
        price_minor=229_00,
        credits_per_month=4_000,
        requests_per_minute=3_000,
        assignable_by=(Assigner.CHECKOUT, Assigner.ADMIN),
    ),
    SeedPlan(
        slug=ENTERPRISE,
        name="Enterprise",
        price_minor=0,
        credits_per_month=10_000,
        requests_per_minute=12_000,
        assignable_by=(Assigner.ADMIN,),
    ),
)
