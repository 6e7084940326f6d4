"""How much may go back, how far a refund has come, and which part of the credits goes back with the money."""

from datetime import timedelta
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.invoice import PaymentMethod
from shared.domain.payment import PaymentStatus, ProviderStatus
from shared.domain.refund import (
    KEY_LASTS,
    RefundStatus,
    amount_to_refund,
    credits_to_reverse,
    next_status,
    outlived_its_key,
    require_reference,
)
from shared.errors import BillingError, InvalidInput, PaymentNotSucceeded, RefundExceedsPayment
from tests.factories import Table, cases, on

# --- how much -----------------------------------------------------------------------------------

AMOUNTS: Table = {
    "all of it, unless stated": (89_00, 0, None, 89_00),
    "all that is left, unless stated": (89_00, 80_00, None, 9_00),
    "a part": (89_00, 0, 1, 1),
    "the very last": (89_00, 88_99, 1, 1),
    "all of it, stated": (89_00, 0, 89_00, 89_00),
}


@pytest.mark.parametrize(("paid", "refunded", "wanted", "amount"), cases(AMOUNTS))
def test_what_goes_back(paid: int, refunded: int, wanted: int | None, amount: int) -> None:
    found = amount_to_refund(PaymentStatus.SUCCEEDED, paid_minor=paid, refunded_minor=refunded, wanted_minor=wanted)
    assert found == amount


NOT_REFUNDED: Table = {
    "more than came": (PaymentStatus.SUCCEEDED, 89_00, 0, 89_01, RefundExceedsPayment),
    "more than is left": (PaymentStatus.SUCCEEDED, 89_00, 50_00, 39_01, RefundExceedsPayment),
    "what has gone back": (PaymentStatus.SUCCEEDED, 89_00, 89_00, None, RefundExceedsPayment),
    "nothing": (PaymentStatus.SUCCEEDED, 89_00, 0, 0, InvalidInput),
    "less than nothing": (PaymentStatus.SUCCEEDED, 89_00, 50_00, -1, InvalidInput),
    "what is not known to have come": (PaymentStatus.PENDING, None, 0, None, PaymentNotSucceeded),
    "what never came": (PaymentStatus.FAILED, None, 0, 1, PaymentNotSucceeded),
}


@pytest.mark.parametrize(("status", "paid", "refunded", "wanted", "refusal"), cases(NOT_REFUNDED))
def test_what_does_not_go_back(
    status: PaymentStatus, paid: int | None, refunded: int, wanted: int | None, refusal: type[BillingError]
) -> None:
    with pytest.raises(refusal):
        amount_to_refund(status, paid_minor=paid, refunded_minor=refunded, wanted_minor=wanted)


@pytest.mark.parametrize("provider", PaymentMethod)
def test_how_money_went_back_is_stated_where_no_provider_does_it(provider: PaymentMethod) -> None:
    by_hand = provider in {PaymentMethod.BANK_TRANSFER, PaymentMethod.MANUAL}
    fits, does_not = ("SEPA 4711", None) if by_hand else (None, "SEPA 4711")
    require_reference(provider, fits)
    with pytest.raises(InvalidInput):
        require_reference(provider, does_not)


# --- how far ------------------------------------------------------------------------------------

# Written out once more, by hand. What is not here is no news.
NEWS = {
    ("pending", "succeeded"): "succeeded",
    ("pending", "failed"): "failed",
    ("succeeded", "failed"): "failed",
}


@pytest.mark.parametrize("status", RefundStatus)
@pytest.mark.parametrize("said", ProviderStatus)
def test_what_a_provider_says_is_news_or_changes_nothing(status: RefundStatus, said: ProviderStatus) -> None:
    assert next_status(status, said) == NEWS.get((status, said), status)


def test_a_key_is_not_relied_upon_for_ever() -> None:
    asked_at = on("2026-01-10")
    assert not outlived_its_key(asked_at, now=asked_at + KEY_LASTS - timedelta(seconds=1))
    assert outlived_its_key(asked_at, now=asked_at + KEY_LASTS)
    assert timedelta(0) < KEY_LASTS < timedelta(days=1), "a provider keeps it for a day"


# --- which credits ------------------------------------------------------------------------------

SHARES: Table = {
    "all of it, all of them": (1_000, 89_00, 89_00, 0, 1_000),
    "half of it, half of them": (1_000, 89_00, 44_50, 0, 500),
    "the second half takes the rest": (1_000, 89_00, 89_00, 500, 500),
    "rounded down": (1_000, 3_00, 1_00, 0, 333),
    "and what rounding left comes with the last part": (1_000, 3_00, 3_00, 666, 334),
    "a cent of a lot takes none": (1_000, 89_00, 1, 0, 0),
    "what was spent before is looked for again": (1_000, 89_00, 89_00, 200, 800),
    "no more than a failed one took already": (1_000, 89_00, 44_50, 500, 0),
    "never less than none": (1_000, 89_00, 10_00, 500, 0),
    "nothing was seeded": (0, 89_00, 89_00, 0, 0),
}


@pytest.mark.parametrize(("seeded", "paid", "refunded", "before", "credits"), cases(SHARES))
def test_credits_go_back_in_proportion(seeded: int, paid: int, refunded: int, before: int, credits: int) -> None:
    found = credits_to_reverse(seeded=seeded, paid_minor=paid, refunded_minor=refunded, reversed_before=before)
    assert found == credits


@st.composite
def refunds_in_parts(draw: st.DrawFn) -> tuple[int, list[int]]:
    """What was paid, and parts of it that go back."""
    parts = draw(st.lists(st.integers(1, 100_000), min_size=1, max_size=12))
    return sum(parts) + draw(st.integers(0, 100_000)), parts


def taken_back(seeded: int, free: int, paid: int, parts: list[int]) -> list[tuple[int, int]]:
    """What each refund takes of what is free, and what it has to leave."""
    taken: list[tuple[int, int]] = []
    for refunded in accumulate(parts):
        before = sum(part for part, _ in taken)
        owed = credits_to_reverse(seeded=seeded, paid_minor=paid, refunded_minor=refunded, reversed_before=before)
        part = min(owed, free - before)
        taken.append((part, owed - part))
    return taken


@given(seeded=st.integers(0, 10**9), spent=st.integers(0, 10**9), money=refunds_in_parts())
def test_it_does_not_matter_into_how_many_parts_a_refund_is_split(
    seeded: int, spent: int, money: tuple[int, list[int]]
) -> None:
    paid, parts = money
    free = max(seeded - spent, 0)
    in_parts = taken_back(seeded, free, paid, parts)
    ((at_once, left_at_once),) = taken_back(seeded, free, paid, [sum(parts)])
    assert sum(part for part, _ in in_parts) == at_once
    assert in_parts[-1][1] == left_at_once


@given(seeded=st.integers(0, 10**9), spent=st.integers(0, 10**9), money=refunds_in_parts())
def test_parts_never_exceed_the_whole(seeded: int, spent: int, money: tuple[int, list[int]]) -> None:
    paid, parts = money
    in_parts = taken_back(seeded, max(seeded - spent, 0), paid, parts)
    assert all(part >= 0 and left >= 0 for part, left in in_parts)
    assert sum(part for part, _ in in_parts) <= seeded * sum(parts) // paid <= seeded
    if sum(parts) == paid:
        assert sum(part for part, _ in in_parts) + in_parts[-1][1] == seeded
