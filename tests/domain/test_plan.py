"""The rules of docs/rules.md, "Plans": which plan a signup gets, and what the catalogue holds."""

from itertools import permutations

import pytest

from shared.domain.plan import SEED_PLANS, Assigner, signup_plan
from tests.factories import Table, cases, catalogue, plan, rules

SIGNUP = frozenset({Assigner.SIGNUP})
OTHERS = frozenset({Assigner.CHECKOUT, Assigner.ADMIN})
EVERYBODY = frozenset(Assigner)

ALLOCATION: Table = {
    "free-trial before free": ({"free-trial": SIGNUP, "free": SIGNUP}, "free-trial"),
    "free when there is no free-trial": ({"free": SIGNUP, "starter": OTHERS}, "free"),
    "free when free-trial may not be given at signup": ({"free-trial": OTHERS, "free": EVERYBODY}, "free"),
    "free-trial alone": ({"free-trial": SIGNUP}, "free-trial"),
    "nothing when free may not be given at signup": ({"free": OTHERS}, None),
    "nothing in an empty catalogue": ({}, None),
    "nothing when only paid plans exist": ({"starter": OTHERS, "growth": OTHERS}, None),
    "never enterprise, even when it is misconfigured": ({"enterprise": EVERYBODY}, None),
    "never a paid plan, even when it is misconfigured": ({"starter": EVERYBODY, "scale": SIGNUP}, None),
    "never a name that only resembles": ({"free-trial-2": SIGNUP, "Free": SIGNUP}, None),
}


@pytest.mark.parametrize(("assigners", "expected"), cases(ALLOCATION))
def test_a_signup_gets(assigners: dict[str, frozenset[Assigner]], expected: str | None) -> None:
    plans = [plan(slug, assignable_by=who) for slug, who in assigners.items()]
    for order in permutations(plans):
        chosen = signup_plan(order)
        assert (chosen.slug if chosen else None) == expected


def test_the_catalogue_is_the_table_of_the_design() -> None:
    table = {
        seed.slug: (seed.price_minor, seed.credits_per_month, set(seed.assignable_by), seed.trial_days)
        for seed in SEED_PLANS
    }
    assert table == {
        "free-trial": (0, 2_000, {"signup"}, 14),
        "free": (0, 100, {"signup", "checkout", "admin"}, 0),
        "starter": (89_00, 1_000, {"checkout", "admin"}, 0),
        "growth": (139_00, 2_000, {"checkout", "admin"}, 0),
        "scale": (229_00, 4_000, {"checkout", "admin"}, 0),
        "enterprise": (0, 10_000, {"admin"}, 0),
    }


def test_the_seeded_catalogue_gives_a_signup_the_free_trial() -> None:
    chosen = signup_plan(catalogue())
    assert chosen is not None
    assert (chosen.slug, chosen.trial_days, chosen.credits_per_month) == ("free-trial", 14, 2_000)


FREE_PLAN: Table = {
    "the plan called free": ({"free": EVERYBODY}, "free"),
    "none when free may not be given at signup": ({"free": OTHERS}, None),
    "none when there is no free": ({"starter": EVERYBODY}, None),
}


@pytest.mark.parametrize(("assigners", "expected"), cases(FREE_PLAN))
def test_a_trial_downgrades_to(assigners: dict[str, frozenset[Assigner]], expected: str | None) -> None:
    found = rules([plan(slug, assignable_by=who) for slug, who in assigners.items()]).free_plan
    assert (found.slug if found else None) == expected
