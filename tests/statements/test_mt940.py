"""What of SWIFT's lines becomes an entry, in the ways of German banks and of others."""

from collections.abc import Callable
from datetime import date

import pytest

from shared import statements
from shared.domain.statement import BankEntry, StatementFormat
from shared.errors import InvalidStatement
from tests.statements.samples import IBAN, PAYER_IBAN, entry, mt940


def parse(content: bytes) -> list[BankEntry]:
    return statements.parse(content, StatementFormat.MT940)


def changed(content: bytes, old: str, new: str, times: int = 1) -> bytes:
    text = content.decode()
    assert old in text, f"{old} is not in the sample"
    return text.replace(old, new, times).encode()


def details(*lines: str) -> bytes:
    """A statement with one entry and these lines as its field 86."""
    text = mt940([entry()]).decode()
    return "\r\n".join([text[: text.index("\r\n:86:")], *lines, text[text.index(":62F:") :]]).encode()


@pytest.mark.parametrize(
    ("amount_minor", "returned", "mark"),
    [
        pytest.param(8_900, False, "0303C89", id="a credit"),
        pytest.param(-8_900, False, "0303D89", id="a debit"),
        pytest.param(-8_900, True, "0303RC89", id="a credit reversed"),
        pytest.param(8_900, True, "0303RD89", id="a debit reversed"),
    ],
)
def test_direction_and_reversal(amount_minor: int, returned: bool, mark: str) -> None:
    written = entry(amount_minor=amount_minor, returned=returned)
    assert mark in mt940([written]).decode()
    assert parse(mt940([written])) == [written]


def test_a_transfer_of_ours_that_came_back_is_no_payment() -> None:
    (found,) = parse(changed(mt940([entry()]), ":86:166", ":86:159"))
    assert (found.amount_minor, found.returned) == (8_900, True)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param(
            [
                ":86:166?00GUTSCHRIFT?20EREF+KD-4711?21KREF+NONREF?22SVWZ+Invoice",
                " 17?30ABNANL2A?31" + PAYER_IBAN + "?32ADA LOVELACE AND",
                "?33 CHARLES BABBAGE",
            ],
            entry(remittance="Invoice 17", payer_name="ADA LOVELACE AND CHARLES BABBAGE"),
            id="keys of SEPA, broken in the middle",
        ),
        pytest.param(
            [":86:166?00GUTSCHRIFT?20EREF+NOTPROVIDED?21ABWA+SOMEBODY?32ADA"],
            entry(remittance="", payer_name="ADA", payer_iban=None),
            id="no text",
        ),
        pytest.param(
            [":86:051?00UEBERWEISUNG?20RECHNUNG 17?21 VOM 1. MAERZ?3037040044?31532013000?32ADA"],
            entry(remittance="RECHNUNG 17 VOM 1. MAERZ", payer_name="ADA", payer_iban=None),
            id="before SEPA",
        ),
        pytest.param(
            [":86:166?20SVWZ+INVOICE?21 17?60 AND 18?32ADA"],
            entry(remittance="INVOICE 17 AND 18", payer_name="ADA", payer_iban=None),
            id="more text than there is room for",
        ),
        pytest.param(
            [":86:166?20SVWZ+INVOICE IBAN+" + PAYER_IBAN + "?32ADA"],
            entry(remittance="INVOICE", payer_name="ADA"),
            id="the account among the keys",
        ),
        pytest.param(
            [":86:166?20SVWZ+RF18 5390 0754 7034?32ADA"],
            entry(reference="RF18 5390 0754 7034", remittance="", payer_name="ADA", payer_iban=None),
            id="nothing but a creditor reference",
        ),
        pytest.param(
            [":86:/TRTP/SEPA/IBAN/" + PAYER_IBAN + "/NAME/ADA", "/REMI/INVOICE 17"],
            entry(
                remittance=f"/TRTP/SEPA/IBAN/{PAYER_IBAN}/NAME/ADA /REMI/INVOICE 17", payer_name=None, payer_iban=None
            ),
            id="another structure is text",
        ),
        pytest.param(
            [":86:INVOICE 17"], entry(remittance="INVOICE 17", payer_name=None, payer_iban=None), id="no structure"
        ),
        pytest.param([], entry(remittance="", payer_name=None, payer_iban=None), id="no field 86"),
    ],
)
def test_what_field_86_tells(lines: list[str], expected: BankEntry) -> None:
    assert parse(details(*lines)) == [expected]


def test_what_follows_the_closing_balance_is_about_the_statement() -> None:
    assert parse(mt940([entry()]).replace(b"\r\n-", b"\r\n:64:C250331EUR89,00\r\n:86:CALL US\r\n-")) == [entry()]


@pytest.mark.parametrize(
    "account",
    [
        pytest.param(IBAN, id="IBAN"),
        pytest.param(f"{IBAN}EUR", id="IBAN and currency"),
        pytest.param("DE89 3704 0044 0532 0130 00 EUR", id="with spaces"),
        pytest.param("37040044/532013000", id="bank code and account"),
        pytest.param("37040044/0532013000EUR", id="bank code, account and currency"),
    ],
)
def test_our_account(account: str) -> None:
    assert parse(mt940([entry()], iban=account)) == [entry()]


@pytest.mark.parametrize("account", ["532013000", "3704004/532013000", "DE00370400440532013000", "", "EUR"])
def test_an_account_that_makes_no_iban_is_refused(account: str) -> None:
    with pytest.raises(InvalidStatement, match=r"^line 2: .*is no IBAN"):
        parse(mt940([entry()], iban=account))


@pytest.mark.parametrize(
    ("references", "ids"),
    [
        pytest.param(["A", "B"], ["2025-03-03/A", "2025-03-03/B"], id="of the bank"),
        pytest.param(["A", "A"], [None, None], id="the same for both"),
        pytest.param([None, None], [None, None], id="NONREF"),
        pytest.param(["0000", "0001"], [None, "2025-03-03/0001"], id="nothing but zeros"),
    ],
)
def test_the_banks_reference_is_an_id_if_it_is_one(references: list[str | None], ids: list[str | None]) -> None:
    found = parse(mt940([entry(transaction_id=each) for each in references]))
    assert [each.transaction_id for each in found] == ids


@pytest.mark.parametrize(
    ("days", "booked_on", "value_on"),
    [
        pytest.param("2503030304", date(2025, 3, 4), date(2025, 3, 3), id="booked a day later"),
        pytest.param("250303", date(2025, 3, 3), date(2025, 3, 3), id="no booking day"),
        pytest.param("2412310102", date(2025, 1, 2), date(2024, 12, 31), id="booked in the next year"),
        pytest.param("2501021230", date(2024, 12, 30), date(2025, 1, 2), id="booked in the year before"),
        pytest.param("2502300228", date(2025, 2, 28), date(2025, 2, 28), id="30 February of banks"),
    ],
)
def test_dates(days: str, booked_on: date, value_on: date) -> None:
    (found,) = parse(changed(mt940([entry()]), ":61:2503030303", f":61:{days}"))
    assert (found.booked_on, found.value_on) == (booked_on, value_on)


@pytest.mark.parametrize("opening_minor", [0, 123_456, -5_000])
def test_entries_lead_from_balance_to_balance(opening_minor: int) -> None:
    entries = [entry(), entry(amount_minor=-100)]
    assert parse(mt940(entries, opening_minor=opening_minor)) == entries


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        pytest.param("C89,00N", "C98,00N", "line 1: .*is not complete", id="an amount differs"),
        pytest.param("62F:C250331EUR89,00", "62F:D250331EUR89,00", "line 1: .*is not complete", id="a sign differs"),
        pytest.param("62F:C250331EUR", "62F:C250331USD", "opens in EUR and closes in USD", id="another currency"),
        pytest.param(":62F:C250331EUR89,00", "", "line 1: .*0 fields :62F: or :62M:", id="no closing balance"),
        pytest.param(":60F:C250331EUR0,00", "", "line 1: .*0 fields :60F: or :60M:", id="no opening balance"),
        pytest.param(":62F:", ":62M:C250331EUR89,00\r\n:62F:", "line 1: .*2 fields", id="two closing balances"),
        pytest.param(":25:", ":21:", "line 1: .*0 fields :25:", id="no account"),
        pytest.param("//NONREF", "/" * 1_000, "line 5: .*longer than", id="an entry without end"),
        pytest.param("NTRFNONREF//NONREF", "", "line 5: .*no single entry", id="no type"),
        pytest.param("C89,00N", "X89,00N", "line 5: .*does not fit", id="no mark"),
        pytest.param("C89,00N", "EC89,00N", "line 5: .*does not fit", id="only expected"),
        pytest.param(":61:2503030303", ":61:2513030303", "line 5: .*does not fit", id="a month that is none"),
        pytest.param("C89,00N", "C8,9,0N", "line 5: .*does not fit", id="an amount that is none"),
        pytest.param("C89,00N", "C89,001N", "line 5: .*has 2 decimals", id="less than a cent"),
        pytest.param("C250331EUR89,00", "CEUR89,00", "line 9: .*does not fit", id="a balance that is none"),
        pytest.param(":60F:C250331EUR", ":60F:C250331XXX", "line 4: .*no ISO 4217 currency", id="no currency"),
        pytest.param(":20:STARTUMSE", ":21:X", "line 1: .*begins with :20:", id="no beginning"),
        pytest.param("\r\n:61:", "\r\n:\r\n61:", "line 4: .*is no balance", id="an entry in disguise"),
    ],
)
def test_a_statement_that_does_not_fit_is_refused_with_its_place(old: str, new: str, refusal: str) -> None:
    with pytest.raises(InvalidStatement, match=refusal):
        parse(changed(mt940([entry()]), old, new))


def test_the_parts_of_a_long_statement_are_statements() -> None:
    first = changed(mt940([entry()]), ":62F:", ":62M:")
    second = changed(mt940([entry(amount_minor=5)], opening_minor=8_900), ":60F:", ":60M:")
    assert parse(first + b"\r\n" + second) == [entry(), entry(amount_minor=5)]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda text: "{1:F01BANKDEFFXXXX0000000000}{2:I940X}{4:\r\n" + text + "}", id="blocks of SWIFT"),
        pytest.param(lambda text: "ABNANL2A\r\n940\r\nABNANL2A\r\n" + text, id="lines before the first field"),
        pytest.param(lambda text: "\r\n" + text.replace("\r\n", "\n") + "\n", id="line feeds alone"),
        pytest.param(lambda text: "\ufeff" + text, id="a byte order mark"),
    ],
)
def test_what_surrounds_a_statement(wrap: Callable[[str], str]) -> None:
    assert parse(wrap(mt940([entry()]).decode()).encode()) == [entry()]


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1"])
def test_both_encodings_of_german_banks(encoding: str) -> None:
    written = entry(payer_name="Jürgen Groß", remittance="für März")
    assert parse(mt940([written]).decode().encode(encoding)) == [written]


def test_other_encodings_are_refused() -> None:
    with pytest.raises(InvalidStatement, match=r"line 7: .*neither UTF-8 nor ISO 8859-1"):
        parse(mt940([entry()]).replace(b"Invoice", b"\x84voice"))
