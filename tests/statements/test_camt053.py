"""What of a bank's XML becomes an entry, in the versions that banks send."""

from datetime import date

import pytest

from shared import statements
from shared.domain.statement import BankEntry, StatementFormat, external_ids
from shared.errors import InvalidStatement
from tests.statements.samples import IBAN, camt053, entry

VERSIONS = pytest.mark.parametrize("version", [pytest.param(2, id="version 2"), pytest.param(8, id="version 8")])


def parse(content: bytes) -> list[BankEntry]:
    return statements.parse(content, StatementFormat.CAMT053)


def changed(content: bytes, old: str, new: str, times: int = 1) -> bytes:
    text = content.decode()
    assert old in text, f"{old} is not in the sample"
    return text.replace(old, new, times).encode()


def without_balances(content: bytes) -> bytes:
    return content.replace(b"OPBD", b"ITBD").replace(b"CLBD", b"ITBD")


@pytest.mark.parametrize("version", range(2, 14))
def test_every_version_that_is_laid_out_alike_is_read(version: int) -> None:
    assert parse(camt053([entry()], version=version)) == [entry()]


@pytest.mark.parametrize(
    ("namespace", "named"),
    [
        pytest.param("urn:iso:std:iso:20022:tech:xsd:camt.053.001.01", "camt.053.001.01", id="before version 2"),
        pytest.param("urn:iso:std:iso:20022:tech:xsd:camt.053.001.14", "camt.053.001.14", id="after version 13"),
        pytest.param("urn:iso:std:iso:20022:tech:xsd:camt.052.001.08", "camt.052.001.08", id="a report within the day"),
        pytest.param("urn:iso:std:iso:20022:tech:xsd:camt.054.001.08", "camt.054.001.08", id="a notification"),
        pytest.param("http://example.com/camt", "//example.com/camt", id="of somebody else"),
    ],
)
def test_another_kind_of_document_is_refused_by_its_name(namespace: str, named: str) -> None:
    content = changed(camt053([entry()]), "urn:iso:std:iso:20022:tech:xsd:camt.053.001.02", namespace)
    with pytest.raises(InvalidStatement, match=named):
        parse(content)


def test_a_document_without_a_namespace_is_refused() -> None:
    content = changed(camt053([entry()]), ' xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.02"', "")
    with pytest.raises(InvalidStatement, match=r"not camt\.053"):
        parse(content)


def test_prefixed_names_are_the_same_names() -> None:
    text = camt053([entry()]).decode().replace("<", "<c:").replace("<c:/", "</c:").replace("<c:?", "<?")
    assert parse(text.replace("xmlns=", "xmlns:c=").encode()) == [entry()]


@pytest.mark.parametrize(
    "foreign",
    ['<x:Ntry xmlns:x="urn:bank"><x:Amt>1</x:Amt></x:Ntry>', '<Ntry xmlns=""><Amt Ccy="EUR">1.00</Amt></Ntry>'],
)
def test_elements_of_other_namespaces_are_passed_over(foreign: str) -> None:
    assert parse(changed(camt053([entry()]), "</Stmt>", f"{foreign}</Stmt>")) == [entry()]


@VERSIONS
@pytest.mark.parametrize("status", ["PDNG", "INFO", "FUTR"])
def test_what_is_not_booked_is_left_out(version: int, status: str) -> None:
    content = camt053([entry(amount_minor=0, transaction_id="T1"), entry(transaction_id="T2")], version=version)
    assert parse(changed(content, "BOOK", status)) == [entry(transaction_id="T2")]


def test_an_entry_without_a_status_is_refused() -> None:
    with pytest.raises(InvalidStatement, match="statement 1, entry 1: there is no status"):
        parse(changed(camt053([entry()]), "<Sts>BOOK</Sts>", ""))


@VERSIONS
@pytest.mark.parametrize(
    ("amount_minor", "returned"),
    [
        pytest.param(8_900, False, id="a credit"),
        pytest.param(-8_900, False, id="a debit"),
        pytest.param(-8_900, True, id="a credit reversed"),
        pytest.param(8_900, True, id="a debit reversed"),
    ],
)
def test_direction_and_reversal(version: int, amount_minor: int, returned: bool) -> None:
    written = entry(amount_minor=amount_minor, returned=returned)
    assert parse(camt053([written], version=version)) == [written]


def test_a_payment_of_ours_that_came_back_is_no_payment() -> None:
    content = changed(camt053([entry()]), "<RmtInf>", "<RtrInf><Rsn><Cd>AC04</Cd></Rsn></RtrInf><RmtInf>")
    (found,) = parse(content)
    assert (found.amount_minor, found.returned) == (8_900, True)


@pytest.mark.parametrize("direction", ["", "<CdtDbtInd>BOTH</CdtDbtInd>"])
def test_a_direction_that_is_not_known_is_refused(direction: str) -> None:
    content = without_balances(camt053([entry()])).decode()
    before, ntry = content.split("<Ntry>")
    with pytest.raises(InvalidStatement, match="neither CRDT nor DBIT"):
        parse(f"{before}<Ntry>{ntry.replace('<CdtDbtInd>CRDT</CdtDbtInd>', direction)}".encode())


@VERSIONS
def test_what_was_instructed_in_another_currency_is_not_what_was_booked(version: int) -> None:
    content = camt053([entry()], version=version)
    instructed = (
        '<AmtDtls><InstdAmt><Amt Ccy="USD">96.12</Amt></InstdAmt><TxAmt><Amt Ccy="USD">96.12</Amt></TxAmt></AmtDtls>'
    )
    assert parse(changed(content, "<RltdPties>", f"{instructed}<RltdPties>")) == [entry()]
    assert parse(changed(content, "<TxDtls>", f"<TxDtls>{instructed}")) == [entry()]


@VERSIONS
@pytest.mark.parametrize(
    ("own", "ids"),
    [
        pytest.param(["A", "B"], ["A", "B"], id="ids of their own"),
        pytest.param([None, None], ["BATCH-1/1", "BATCH-1/2"], id="the batch's, numbered"),
        pytest.param(["A", None], ["BATCH-1/1", "BATCH-1/2"], id="an id of one alone is not used"),
        pytest.param(["A", "A"], ["BATCH-1/1", "BATCH-1/2"], id="one id for both is none"),
    ],
)
def test_a_batch_becomes_its_payments(version: int, own: list[str | None], ids: list[str]) -> None:
    batch = [entry(transaction_id=own[0], amount_minor=100), entry(transaction_id=own[1], amount_minor=200)]
    found = parse(camt053([batch, entry(transaction_id="T")], version=version))
    assert [(each.transaction_id, each.amount_minor) for each in found] == [
        (ids[0], 100),
        (ids[1], 200),
        ("T", 8_900),
    ]


def test_a_batch_without_any_id_is_told_apart_by_content() -> None:
    found = parse(changed(camt053([[entry(), entry()]]), "<AcctSvcrRef>BATCH-1</AcctSvcrRef>", ""))
    assert found == [entry(), entry()]
    assert len(set(external_ids(found))) == 2


@VERSIONS
def test_a_batch_that_goes_out(version: int) -> None:
    batch = [entry(amount_minor=-100), entry(amount_minor=-200)]
    assert [each.amount_minor for each in parse(camt053([batch], version=version))] == [-100, -200]


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        pytest.param(">1.00<", ">1.01<", "do not add up", id="another sum"),
        pytest.param('"EUR">1.00<', '"USD">1.00<', "a part of the batch is in USD", id="another currency"),
        pytest.param(
            '<AmtDtls><TxAmt><Amt Ccy="EUR">1.00</Amt></TxAmt></AmtDtls>', "", "there is no amount", id="no amount"
        ),
    ],
)
def test_parts_that_do_not_make_the_batch_are_refused(old: str, new: str, refusal: str) -> None:
    content = camt053([[entry(amount_minor=100), entry(amount_minor=200)]])
    with pytest.raises(InvalidStatement, match=f"statement 1, entry 1: .*{refusal}"):
        parse(changed(content, old, new))


@VERSIONS
@pytest.mark.parametrize("opening_minor", [0, 123_456, -5_000])
def test_entries_lead_from_balance_to_balance(version: int, opening_minor: int) -> None:
    entries = [entry(transaction_id="T1"), entry(transaction_id="T2", amount_minor=-100)]
    assert parse(camt053(entries, version=version, opening_minor=opening_minor)) == entries


def test_a_statement_that_lacks_an_entry_gives_nothing() -> None:
    text = camt053([entry(transaction_id="T1"), entry(transaction_id="T2")]).decode()
    cut = text[: text.rindex("<Ntry>")] + text[text.rindex("</Ntry>") + len("</Ntry>") :]
    with pytest.raises(InvalidStatement, match=r"^statement 1: .*is not complete"):
        parse(cut.encode())


def test_the_closing_balance_of_the_last_day_opens_as_well() -> None:
    content = changed(camt053([entry()], opening_minor=100), "OPBD", "PRCD")
    assert parse(content) == [entry()]
    with pytest.raises(InvalidStatement, match="is not complete"):
        parse(changed(content, ">1.00<", ">1.01<"))


def test_without_both_balances_there_is_nothing_to_check() -> None:
    assert parse(changed(camt053([entry()]), "OPBD", "ITBD").replace(b"89.00", b"90.00")) == [entry(amount_minor=9_000)]


def test_balances_that_contradict_are_refused() -> None:
    bal = (
        "<Bal><Tp><CdOrPrtry><Cd>CLBD</Cd></CdOrPrtry></Tp>" + '<Amt Ccy="EUR">1</Amt><CdtDbtInd>CRDT</CdtDbtInd></Bal>'
    )
    with pytest.raises(InvalidStatement, match="two balances CLBD"):
        parse(changed(camt053([entry()]), "<Bal>", f"{bal}<Bal>"))


def test_balances_in_another_currency_than_the_entries_are_refused() -> None:
    content = camt053([entry()]).decode()
    before, ntry = content.split("<Ntry>")
    with pytest.raises(InvalidStatement, match="EUR and USD"):
        parse(f"{before}<Ntry>{ntry.replace('EUR', 'USD')}".encode())


def test_a_document_may_hold_several_statements() -> None:
    first = camt053([entry(transaction_id="T1")]).decode()
    second = camt053([entry(transaction_id="T2")]).decode()
    body = second[second.index("<Stmt>") : second.index("</BkToCstmrStmt>")]
    assert [each.transaction_id for each in parse(changed(first.encode(), "</Stmt>", f"</Stmt>{body}"))] == ["T1", "T2"]
    (repeated,) = parse(changed(second.encode(), "</Stmt>", f"</Stmt>{body}"))
    assert repeated.transaction_id == "T2"


def test_a_document_without_statements_is_refused() -> None:
    with pytest.raises(InvalidStatement, match="no statement"):
        parse(camt053([]).replace(b"Stmt>", b"Rpt>"))


def test_references_beyond_the_first_are_part_of_the_text() -> None:
    more = "<Strd><CdtrRefInf><Ref>RF2</Ref></CdtrRefInf><AddtlRmtInf>and more</AddtlRmtInf></Strd></RmtInf>"
    (found,) = parse(changed(camt053([entry(reference="RF1", remittance="text")]), "</RmtInf>", more))
    assert (found.reference, found.remittance) == ("RF1", "text and more RF2")


@pytest.mark.parametrize(
    ("remittance", "told"), [pytest.param("", "CASH DEPOSIT", id="no text"), pytest.param("text", "text", id="a text")]
)
def test_the_banks_words_stand_in_for_a_text_that_is_missing(remittance: str, told: str) -> None:
    content = changed(
        camt053([entry(remittance=remittance)]), "</Ntry>", "<AddtlNtryInf>CASH DEPOSIT</AddtlNtryInf></Ntry>"
    )
    assert parse(content)[0].remittance == told


def test_a_booking_without_details_is_an_entry() -> None:
    text = camt053([entry(transaction_id="T1")]).decode()
    bare = text[: text.index("<NtryDtls>")] + text[text.index("</NtryDtls>") + len("</NtryDtls>") :]
    expected = entry(transaction_id="T1", payer_name=None, payer_iban=None, remittance="")
    assert parse(bare.encode()) == [expected]


@pytest.mark.parametrize(
    ("booked", "value", "days"),
    [
        pytest.param("<Dt>2025-03-02</Dt>", "<Dt>2025-03-03</Dt>", (2, 3), id="dates"),
        pytest.param("<DtTm>2025-03-02T23:30:00-05:00</DtTm>", "<Dt>2025-03-03+01:00</Dt>", (2, 3), id="local days"),
        pytest.param("", "<Dt>2025-03-03</Dt>", (3, 3), id="no booking date"),
        pytest.param("<Dt>2025-03-02</Dt>", "", (2, 2), id="no value date"),
    ],
)
def test_dates(booked: str, value: str, days: tuple[int, int]) -> None:
    content = changed(camt053([entry()]), "<BookgDt><Dt>2025-03-03</Dt></BookgDt>", f"<BookgDt>{booked}</BookgDt>")
    (found,) = parse(changed(content, "<ValDt><Dt>2025-03-03</Dt></ValDt>", f"<ValDt>{value}</ValDt>"))
    assert (found.booked_on, found.value_on) == (date(2025, 3, days[0]), date(2025, 3, days[1]))


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        pytest.param("<Dt>2025-03-03</Dt>", "<Dt>20250303</Dt>", "no date such as", id="a date in another way"),
        pytest.param("<Dt>2025-03-03</Dt>", "<Dt>2025-02-30</Dt>", "no date such as", id="a day that is none"),
        pytest.param(">89.00<", ">89,00<", "no amount such as", id="a comma"),
        pytest.param(">89.00<", ">-89.00<", "no amount such as", id="a sign"),
        pytest.param(">89.00<", ">8.9E1<", "no amount such as", id="an exponent"),
        pytest.param(">89.00<", ">٨٩<", "no amount such as", id="digits of another script"),
        pytest.param(">89.00<", ">89.001<", "has 2 decimals", id="less than a cent"),
        pytest.param('"EUR">89.00<', '"XXX">89.00<', "no ISO 4217 currency", id="no currency"),
        pytest.param(f"<IBAN>{IBAN}</IBAN>", "<IBAN>DE00370400440532013000</IBAN>", "is no IBAN", id="our IBAN"),
        pytest.param(f"<IBAN>{IBAN}</IBAN>", "<Othr><Id>532013000</Id></Othr>", "is no IBAN", id="no IBAN of ours"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(old: str, new: str, refusal: str) -> None:
    with pytest.raises(InvalidStatement, match=f"^statement 1(, entry 1)?: .*{refusal}"):
        parse(changed(without_balances(camt053([entry()])), old, new, times=9))


@pytest.mark.parametrize("account", ["NL00ABNA0417164300", "532013000"])
def test_a_payers_account_that_is_no_iban_is_left_out(account: str) -> None:
    (found,) = parse(camt053([entry(payer_iban=account)]))
    assert found == entry(payer_iban=None)


@pytest.mark.parametrize("bank_id", ["NONREF", "NOTPROVIDED", "Not provided", "000000", "-"])
def test_a_placeholder_is_no_id(bank_id: str) -> None:
    assert parse(camt053([entry(transaction_id=bank_id)])) == [entry()]


def test_an_id_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidStatement, match="longer than an id"):
        parse(camt053([entry(transaction_id="T" * 141)]))
    with pytest.raises(InvalidStatement, match="longer than an id"):
        parse(camt053([entry(reference="R" * 36)]))
