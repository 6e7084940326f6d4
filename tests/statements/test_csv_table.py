"""The table that an operator fills: exactly these columns, and every cell understood."""

from datetime import date

import pytest

from shared import statements
from shared.config import PROJECT_DIR
from shared.domain.statement import BankEntry, StatementFormat
from shared.errors import InvalidStatement
from shared.statements.csv_table import COLUMNS
from tests.statements.samples import IBAN, csv_table, entry

HEADER = ";".join(COLUMNS)


def parse(content: bytes) -> list[BankEntry]:
    return statements.parse(content, StatementFormat.CSV)


def row(**cells: str) -> str:
    usual = {"iban": IBAN, "booked_on": "2025-03-03", "value_on": "2025-03-03", "amount": "89.00", "currency": "EUR"}
    return ";".join((usual | cells).get(column, "") for column in COLUMNS)


def table(*rows: str, header: str = HEADER) -> bytes:
    return "\n".join([header, *rows]).encode()


def test_a_row_needs_no_more_than_account_days_and_amount() -> None:
    assert parse(table(row())) == [entry(payer_name=None, payer_iban=None, remittance="")]


def test_the_columns_may_stand_in_any_order() -> None:
    lines = csv_table([entry()]).decode().splitlines()
    turned = "\n".join(";".join(reversed(line.split(";"))) for line in lines)
    assert parse(turned.encode()) == [entry()]


@pytest.mark.parametrize(
    ("amount", "minor"), [("89", 8_900), ("89.5", 8_950), ("-89.00", -8_900), ("0.01", 1), (" 89.00 ", 8_900)]
)
def test_amounts(amount: str, minor: int) -> None:
    assert parse(table(row(amount=amount)))[0].amount_minor == minor


def test_quoted_cells_may_hold_delimiters_and_lines() -> None:
    (found,) = parse(table(row(remittance='"Invoice; 17\n""thank you"""', payer_name="Ada")))
    assert (found.remittance, found.payer_name) == ('Invoice; 17 "thank you"', "Ada")


def test_blank_lines_are_no_rows() -> None:
    assert len(parse(table(row(), "", row(), ""))) == 2


@pytest.mark.parametrize(
    ("cells", "refusal"),
    [
        pytest.param({"iban": ""}, "is no IBAN", id="no account"),
        pytest.param({"iban": "DE00370400440532013000"}, "is no IBAN", id="an account that is none"),
        pytest.param({"payer_iban": "532013000"}, "correct payer_iban", id="a payer's account that is none"),
        pytest.param({"amount": ""}, "is no amount", id="no amount"),
        pytest.param({"amount": "1,089.00"}, "is no amount", id="a comma"),
        pytest.param({"amount": "--89"}, "is no amount", id="two signs"),
        pytest.param({"amount": "NaN"}, "is no amount", id="no number"),
        pytest.param({"amount": "0.001"}, "has 2 decimals", id="less than a cent"),
        pytest.param({"amount": "1" + "0" * 14}, "more than is accepted", id="too much"),
        pytest.param({"currency": "eur"}, "no ISO 4217 currency", id="a currency in small letters"),
        pytest.param({"currency": ""}, "no ISO 4217 currency", id="no currency"),
        pytest.param({"booked_on": "03.03.2025"}, "is no date", id="a date in another way"),
        pytest.param({"value_on": ""}, "is no date", id="no date"),
        pytest.param({"transaction_id": "T" * 141}, "longer than an id", id="a long id"),
        pytest.param({"reference": "R" * 36}, "longer than an id", id="a long reference"),
        pytest.param({"remittance": "a;b"}, "11 values do not fit 10 columns", id="a delimiter without quotes"),
        pytest.param({"remittance": '"a'}, "check the quotes", id="a quote without an end"),
        pytest.param({"remittance": '"a"b'}, "check the quotes", id="text after a quote"),
        pytest.param({"remittance": "a" * 200_000}, "check the quotes", id="a cell without an end"),
    ],
)
def test_a_cell_that_does_not_fit_is_refused_with_its_line(cells: dict[str, str], refusal: str) -> None:
    with pytest.raises(InvalidStatement, match=f"^line 3: .*{refusal}"):
        parse(table(row(), row(**cells)))


@pytest.mark.parametrize(
    ("header", "refusal"),
    [
        pytest.param(HEADER.replace(";amount", ""), "the header lacks amount", id="a column less"),
        pytest.param(f"{HEADER};balance", "'balance' is no column", id="a column more"),
        pytest.param(f"{HEADER};amount", "the column amount is there 2 times", id="a column twice"),
        pytest.param(HEADER.replace(";", "\t"), "the header lacks", id="another delimiter"),
        pytest.param(HEADER.upper(), "the header lacks", id="capitals"),
        pytest.param(row(), "the header lacks", id="no header"),
    ],
)
def test_another_header_is_refused(header: str, refusal: str) -> None:
    with pytest.raises(InvalidStatement, match=f"^line 1: .*{refusal}"):
        parse(table(row(), header=header))


def test_another_encoding_is_refused_with_its_line() -> None:
    with pytest.raises(InvalidStatement, match=r"^line 2: .*not UTF-8"):
        parse(table(row(payer_name="Jürgen")).decode().encode("iso-8859-1"))


def test_the_documented_example_is_read() -> None:
    text = (PROJECT_DIR / "docs" / "statements.md").read_text()
    example = text.split("```csv\n")[1].split("```")[0]
    first, second = parse(example.encode())
    assert example.startswith(",".join(COLUMNS))
    assert (first.amount_minor, first.currency, first.booked_on) == (13_900, "USD", date(2026, 3, 2))
    assert second.amount_minor < 0
