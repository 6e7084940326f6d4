"""What a payment is for: certain by its reference alone, and otherwise something for an admin to look at."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shared.domain.invoice import InvoiceStatus, creditor_reference
from shared.domain.matching import (
    MAX_NEAR,
    MAX_SUGGESTIONS,
    Candidate,
    Reason,
    UnappliedReason,
    meant_for,
    near_references,
    references_in,
    settles,
    suggestions,
)
from shared.domain.statement import BankEntry
from tests.statements.samples import entry

OURS = creditor_reference(2025, 17)  # RF84 2025 0000 0017
NEXT = creditor_reference(2025, 18)
DIGITS = OURS.removeprefix("RF")
GAPS = ["", " ", "-", " - ", ".", "\u2013", "/"]

references = st.builds(creditor_reference, st.integers(2000, 2099), st.integers(1, 99_999_999))


def paid_with(text: str, **facts: Any) -> BankEntry:
    return entry(remittance=text, **facts)


def candidate(number: int = 17, **facts: Any) -> Candidate:
    """An open invoice over what `entry` pays, of somebody else."""
    usual = Candidate(
        invoice_id=UUID(int=number),
        reference=creditor_reference(2025, number),
        amount_minor=8_900,
        currency="EUR",
        status=InvoiceStatus.OPEN,
        payer_names=("Grace Hopper",),
    )
    return replace(usual, **facts)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(OURS, id="alone"),
        pytest.param("RF84 2025 0000 0017", id="every four characters"),
        pytest.param("rf84 2025 0000 0017", id="small letters"),
        pytest.param("R F8 42 0250-000 0017", id="odd places"),
        pytest.param("RF84-2025-0000-0017", id="hyphens"),
        pytest.param("RF84\u20132025\u20130000\u20130017", id="dashes"),
        pytest.param("RF84.2025/0000,0017", id="points and slashes"),
        pytest.param("RF84  2025   0000 0017", id="wide gaps"),
        pytest.param("Invoice RF84 2025 0000 0017, thank you", id="in a sentence"),
        pytest.param("InvoiceRF84202500000017thank you", id="grown together"),
        pytest.param("RF84202500000017 15.03.2025", id="a date after it"),
        pytest.param("RF00 RF84202500000017", id="after one that is none"),
        pytest.param("RF84202500000017 RF84 2025 0000 0017", id="twice"),
    ],
)
def test_a_reference_is_found(text: str) -> None:
    assert references_in(paid_with(text)) == [OURS]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(DIGITS, id="without RF"),
        pytest.param("RF85202500000017", id="wrong check digits"),
        pytest.param("RF84202500000018", id="a wrong digit"),
        pytest.param("RF842025000000171", id="a digit more"),
        pytest.param("RF8420250000001", id="a digit less"),
        pytest.param("RF18 5390 0754 70Y", id="of another creditor, with a letter"),
        pytest.param("RF84    202500000017", id="a gap too wide"),
        pytest.param("RF\u0668\u0664202500000017", id="digits of another script"),
    ],
)
def test_what_is_no_reference_of_ours_is_not(text: str) -> None:
    assert references_in(paid_with(text)) == []


def test_another_creditors_reference_of_the_same_shape_stands_in_the_way() -> None:
    told = paid_with(f"RF18539007547034 {OURS}")
    assert references_in(told) == ["RF18539007547034", OURS]
    assert not settles(told, candidate())


def test_references_come_in_their_order_structured_first() -> None:
    assert references_in(paid_with(f"{OURS} and {NEXT}", reference=NEXT)) == [NEXT, OURS]
    assert references_in(paid_with(f"{OURS} and {NEXT}")) == [OURS, NEXT]


@given(reference=references)
def test_other_digits_with_the_same_remainder_are_not_ours(reference: str) -> None:
    check = int(reference[2:4])
    for other in (check - 97, check + 97):
        if 0 <= other <= 99:
            assert references_in(paid_with(f"RF{other:02d}{reference[4:]}")) == []


@given(reference=references, gaps=st.lists(st.sampled_from(GAPS), min_size=15, max_size=15), small=st.booleans())
def test_however_it_is_spaced_a_reference_is_found(reference: str, gaps: list[str], small: bool) -> None:
    spaced = "".join(character + gap for character, gap in zip(reference, [*gaps, ""], strict=True))
    assert references_in(paid_with(f"for {spaced.lower() if small else spaced}.")) == [reference]


@st.composite
def typos(draw: st.DrawFn) -> tuple[str, str]:
    """A reference, and what becomes of it by one error in typing."""
    right = draw(references)
    place = draw(st.integers(0, len(right) - 1))
    wrong = draw(st.sampled_from("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    before, here, after = right[:place], right[place], right[place + 1 :]
    swapped = before + after[:1] + here + after[1:]
    typed = st.sampled_from([before + wrong + after, before + after, before + here + here + after, swapped])
    return right, draw(typed)


@given(typo=typos(), around=st.sampled_from(["{}", "Invoice {} thank you", "{} 15.03.2025", "Nr.{}/Ada"]))
def test_one_error_away_is_near(typo: tuple[str, str], around: str) -> None:
    right, typed = typo
    told = paid_with(around.format(typed))
    found = references_in(told)
    assert right in (near_references(told) if right not in found else found)
    assert near_references(told).isdisjoint(found)
    assert len(near_references(told)) <= 12


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("RF00202500000017", id="other check digits"),
        pytest.param("rf84 2025 0000 0018", id="another digit"),
        pytest.param("RF84-2025-0000-017", id="a digit less"),
        pytest.param("RF84 2025 0000 00177", id="a digit twice"),
        pytest.param("RF84 2O25 0000 0017", id="a letter for a digit"),
        pytest.param("FR84 2025 0000 0017", id="letters swapped"),
        pytest.param("R84 2025 0000 0017", id="a letter less"),
        pytest.param(f"RF84 2025 0000 0071 {NEXT}", id="beside one that is right"),
    ],
)
def test_a_mistyped_reference_is_near(text: str) -> None:
    assert OURS in near_references(paid_with(text))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("RF84 2025 0000 071", id="a swap and a digit less"),
        pytest.param("RF48 2025 0000 0071", id="two swaps"),
        pytest.param(DIGITS, id="both letters less"),
    ],
)
def test_two_errors_away_is_not(text: str) -> None:
    assert OURS not in near_references(paid_with(text))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(OURS, id="a right reference"),
        pytest.param(f"{OURS} {OURS}", id="twice"),
        pytest.param("RF84 2025 0000 001 7", id="right, and shorter up to a gap"),
        pytest.param("Invoice 17 of 2025", id="no reference"),
        pytest.param("RF", id="no digits"),
        pytest.param("RF8419000000000099", id="two digits more"),
        pytest.param("RFRFRFRFRFRFRFRFRF", id="no digits at all"),
    ],
)
def test_nothing_is_near(text: str) -> None:
    assert near_references(paid_with(text)) == set()


def test_near_references_are_bounded() -> None:
    text = " ".join(f"RF00 2025 {number:04d} 0000" for number in range(90))
    assert len(near_references(paid_with(text))) == MAX_NEAR


@given(text=st.text("RFrf0123456789 -./abX", max_size=200))
def test_any_text_can_be_looked_at(text: str) -> None:
    told = paid_with(text, reference=text[:35] or None)
    found = references_in(told)
    assert len(set(found)) == len(found)
    assert near_references(told).isdisjoint(found)
    for reference in (*found, *near_references(told)):
        assert reference == creditor_reference(int(reference[4:8]), int(reference[8:]))


def test_one_right_reference_and_the_right_amount_settle() -> None:
    assert settles(paid_with(f"Invoice {OURS}"), candidate())
    assert settles(paid_with("", reference=OURS), candidate())
    assert settles(paid_with(OURS, payer_name=None), candidate())


@pytest.mark.parametrize(
    ("told", "invoice"),
    [
        pytest.param(paid_with(OURS, amount_minor=8_899), candidate(), id="a cent less"),
        pytest.param(paid_with(OURS, amount_minor=8_901), candidate(), id="a cent more"),
        pytest.param(paid_with(OURS, currency="USD"), candidate(), id="another currency"),
        pytest.param(paid_with(OURS, amount_minor=-8_900), candidate(amount_minor=-8_900), id="money out"),
        pytest.param(paid_with(OURS, amount_minor=0), candidate(amount_minor=0), id="nothing"),
        pytest.param(paid_with(OURS, returned=True), candidate(), id="money that came back"),
        pytest.param(paid_with(OURS), candidate(status=InvoiceStatus.PAID), id="paid already"),
        pytest.param(paid_with(OURS), candidate(status=InvoiceStatus.VOID), id="void"),
        pytest.param(paid_with(NEXT), candidate(), id="another invoice's reference"),
        pytest.param(paid_with(f"{OURS} {NEXT}"), candidate(), id="two references"),
        pytest.param(paid_with(NEXT, reference=OURS), candidate(), id="two references in two places"),
        pytest.param(paid_with("RF85202500000017"), candidate(), id="wrong check digits"),
        pytest.param(paid_with("", payer_name="Grace Hopper"), candidate(), id="a name"),
    ],
)
def test_nothing_else_settles(told: BankEntry, invoice: Candidate) -> None:
    assert not settles(told, invoice)


@pytest.mark.parametrize(
    ("told", "named", "reason", "meant"),
    [
        pytest.param(paid_with(OURS), {}, UnappliedReason.MATCHED, True, id="all fits"),
        pytest.param(paid_with(""), {}, UnappliedReason.UNMATCHED, False, id="nothing is named"),
        pytest.param(paid_with(NEXT), {}, UnappliedReason.UNMATCHED, False, id="no such invoice"),
        pytest.param(paid_with(f"{OURS} {NEXT}"), {}, UnappliedReason.AMBIGUOUS, True, id="a reference beside it"),
        pytest.param(paid_with(OURS, currency="USD"), {}, UnappliedReason.PAYMENT_MISMATCH, True, id="other money"),
        pytest.param(
            paid_with(OURS, currency="USD"),
            {"status": InvoiceStatus.PAID},
            UnappliedReason.INVOICE_NOT_OPEN,
            True,
            id="paid already, and other money",
        ),
        pytest.param(
            paid_with(f"{OURS} {NEXT}", returned=True), {}, UnappliedReason.RETURNED, True, id="money that came back"
        ),
    ],
)
def test_money_says_what_it_is_meant_for_and_why_it_waits(
    told: BankEntry, named: dict[str, Any], reason: UnappliedReason, meant: bool
) -> None:
    invoice = candidate(**named)
    assert meant_for(told, {OURS: invoice}) == (invoice if meant else None, reason)


def test_money_for_two_invoices_is_meant_for_neither() -> None:
    invoices = {OURS: candidate(), NEXT: candidate(18)}
    assert meant_for(paid_with(f"{OURS} {NEXT}"), invoices) == (None, UnappliedReason.AMBIGUOUS)


@pytest.mark.parametrize(
    ("told", "invoice", "score", "reasons"),
    [
        pytest.param(paid_with(OURS), {}, 100, [Reason.REFERENCE, Reason.AMOUNT], id="what settles"),
        pytest.param(
            paid_with(OURS, amount_minor=1), {}, 90, [Reason.REFERENCE, Reason.OTHER_AMOUNT], id="another amount"
        ),
        pytest.param(
            paid_with(OURS, currency="USD"), {}, 85, [Reason.REFERENCE, Reason.OTHER_CURRENCY], id="another currency"
        ),
        pytest.param(
            paid_with(OURS),
            {"status": InvoiceStatus.PAID},
            80,
            [Reason.REFERENCE, Reason.AMOUNT, Reason.ALREADY_PAID],
            id="paid already",
        ),
        pytest.param(
            paid_with(OURS, amount_minor=1),
            {"status": InvoiceStatus.VOID},
            65,
            [Reason.REFERENCE, Reason.OTHER_AMOUNT, Reason.VOID],
            id="void, and another amount",
        ),
        pytest.param(
            paid_with(f"{OURS} {NEXT}"),
            {},
            95,
            [Reason.REFERENCE, Reason.AMOUNT, Reason.SEVERAL_REFERENCES],
            id="one of two references",
        ),
        pytest.param(
            paid_with(OURS, returned=True),
            {},
            90,
            [Reason.REFERENCE, Reason.AMOUNT, Reason.RETURNED],
            id="money that came back",
        ),
        pytest.param(
            paid_with("RF85202500000017"), {}, 70, [Reason.SIMILAR_REFERENCE, Reason.AMOUNT], id="a mistyped reference"
        ),
        pytest.param(
            paid_with("RF85202500000017", payer_name="GRACE HOPPER"),
            {},
            80,
            [Reason.SIMILAR_REFERENCE, Reason.AMOUNT, Reason.PAYER_NAME],
            id="a mistyped reference and the name",
        ),
        pytest.param(
            paid_with("", payer_name="Hopper, Grace"), {}, 55, [Reason.AMOUNT, Reason.PAYER_NAME], id="a name"
        ),
    ],
)
def test_what_is_suggested_and_why(told: BankEntry, invoice: Any, score: int, reasons: list[Reason]) -> None:
    (found,) = suggestions(told, [candidate(**invoice)])
    assert (found.invoice_id, found.score, list(found.reasons)) == (UUID(int=17), score, reasons)


@pytest.mark.parametrize(
    ("told", "invoice"),
    [
        pytest.param(paid_with(""), {}, id="nothing but the amount"),
        pytest.param(paid_with("", payer_name="Grace Hopper", amount_minor=1), {}, id="a name and another amount"),
        pytest.param(paid_with("", payer_name="Grace Hopper", currency="USD"), {}, id="a name and another currency"),
        pytest.param(
            paid_with("", payer_name="Grace Hopper"), {"status": InvoiceStatus.PAID}, id="a name, and paid already"
        ),
        pytest.param(paid_with("", payer_name=None), {"payer_names": ("",)}, id="no name is not like no name"),
        pytest.param(paid_with("", payer_name="..."), {"payer_names": ("--",)}, id="nor are marks"),
        pytest.param(paid_with("RF85202500000017", amount_minor=1), {}, id="a mistyped reference and another amount"),
        pytest.param(
            paid_with("RF85202500000017"), {"status": InvoiceStatus.VOID}, id="a mistyped reference of a void invoice"
        ),
        pytest.param(paid_with(OURS, amount_minor=-8_900), {}, id="money out"),
        pytest.param(paid_with("", payer_name="Grace Hopper", returned=True), {}, id="a name, and it came back"),
    ],
)
def test_what_is_not_suggested(told: BankEntry, invoice: Any) -> None:
    assert suggestions(told, [candidate(**invoice)]) == []


@pytest.mark.parametrize(
    ("payer", "known", "similar"),
    [
        pytest.param("GRACE HOPPER", "Grace Hopper", True, id="capitals"),
        pytest.param("Hopper, Grace", "Grace Hopper", True, id="the other way round"),
        pytest.param("Müller GmbH", "Mueller GmbH", True, id="an umlaut"),
        pytest.param("STRASSE AG", "Straße AG", True, id="sharp s"),
        pytest.param("Grace M. Hopper", "Grace Hopper", True, id="an initial"),
        pytest.param("Grace Hooper", "Grace Hopper", True, id="a letter"),
        pytest.param("Grace Kelly", "Grace Hopper", False, id="a first name alone"),
        pytest.param("Ada Lovelace", "Grace Hopper", False, id="somebody else"),
    ],
)
def test_similar_names(payer: str, known: str, similar: bool) -> None:
    found = suggestions(paid_with("", payer_name=payer), [candidate(payer_names=("Somebody Else", known))])
    assert bool(found) is similar


@given(order=st.permutations(range(1, 16)))
def test_the_best_come_first_in_a_stable_order(order: list[int]) -> None:
    invoices = [candidate(number, payer_names=("Ada Lovelace",)) for number in order]
    found = suggestions(paid_with(creditor_reference(2025, 9)), [*invoices, candidate(99)])
    assert len(found) == MAX_SUGGESTIONS
    assert found[0].invoice_id == UUID(int=9)
    others = [UUID(int=number) for number in range(1, 16) if number != 9]
    assert [each.invoice_id for each in found[1:]] == others[: MAX_SUGGESTIONS - 1]
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
