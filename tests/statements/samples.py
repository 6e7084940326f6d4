"""Statements as banks write them, made from entries: the public formats, with the habits of German banks."""

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import date
from textwrap import wrap
from typing import Any, Final
from xml.sax.saxutils import escape

from msgspec.structs import replace

from shared.domain.money import to_decimal
from shared.domain.statement import BankEntry, StatementFormat
from shared.statements.csv_table import COLUMNS

IBAN: Final = "DE89370400440532013000"
PAYER_IBAN: Final = "NL91ABNA0417164300"

Booked = BankEntry | Sequence[BankEntry]  # a sequence is one booking for several payments


def entry(**facts: Any) -> BankEntry:
    """A payment of 89.00 EUR; `facts` replace what it is."""
    booked_on = facts.get("booked_on", date(2025, 3, 3))
    usual = BankEntry(
        iban=IBAN,
        amount_minor=8_900,
        currency="EUR",
        booked_on=booked_on,
        value_on=booked_on,
        payer_name="Ada Lovelace",
        payer_iban=PAYER_IBAN,
        remittance="Invoice 17, thank you",
    )
    return replace(usual, **facts)


def told_by(kind: StatementFormat, told: BankEntry) -> BankEntry:
    """What remains of an entry in a statement of a format."""
    if kind is StatementFormat.CSV:
        return replace(told, returned=False)
    if kind is StatementFormat.MT940:
        return replace(
            told,
            transaction_id=told.transaction_id and f"{told.booked_on}/{told.transaction_id}",
            remittance="" if told.reference else told.remittance,
        )
    return told


def camt053(
    entries: Sequence[Booked], *, version: int = 2, iban: str = IBAN, opening_minor: int = 0, currency: str = "EUR"
) -> bytes:
    """One statement, with an element on each line. A booking for several payments has the id `BATCH-` and its place."""
    closing_minor = opening_minor + sum(each.amount_minor for booked in entries for each in _each(booked))
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<Document xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.{version:02d}">',
        "<BkToCstmrStmt>",
        "<GrpHdr><MsgId>MSG-1</MsgId><CreDtTm>2025-03-31T18:00:00+02:00</CreDtTm></GrpHdr>",
        "<Stmt>",
        "<Id>STMT-1</Id>",
        "<CreDtTm>2025-03-31T18:00:00+02:00</CreDtTm>",
        f"<Acct><Id><IBAN>{iban}</IBAN></Id><Ccy>{currency}</Ccy></Acct>",
        *_camt_balance("OPBD", opening_minor, currency),
        *_camt_balance("CLBD", closing_minor, currency),
        *(line for place, booked in enumerate(entries, 1) for line in _ntry(booked, version, place)),
        "</Stmt>",
        "</BkToCstmrStmt>",
        "</Document>",
    ]
    return "\n".join(lines).encode()


def mt940(entries: Sequence[BankEntry], *, iban: str = IBAN, opening_minor: int = 0, currency: str = "EUR") -> bytes:
    """One statement, with field 86 in German structure and SEPA keys."""
    closing_minor = opening_minor + sum(each.amount_minor for each in entries)
    lines = [
        ":20:STARTUMSE",
        f":25:{iban}",
        ":28C:00012/001",
        _mt_balance("60F", opening_minor, currency),
        *(line for each in entries for line in _mt_entry(each)),
        _mt_balance("62F", closing_minor, currency),
        "-",
    ]
    return "\r\n".join(lines).encode()


def csv_table(entries: Sequence[BankEntry], *, delimiter: str = ";", bom: bool = False) -> bytes:
    """The table that docs/statements.md describes."""
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter=delimiter)
    table.writerow(COLUMNS)
    for each in entries:
        facts = {"amount": str(to_decimal(each.amount_minor, each.currency))}
        table.writerow([facts.get(column) or getattr(each, column, None) for column in COLUMNS])
    return text.getvalue().encode("utf-8-sig" if bom else "utf-8")


def _each(booked: Booked) -> Sequence[BankEntry]:
    return [booked] if isinstance(booked, BankEntry) else booked


def _written(amount_minor: int, currency: str) -> str:
    return str(to_decimal(abs(amount_minor), currency))


def _camt_amount(amount_minor: int, currency: str) -> list[str]:
    return [
        f'<Amt Ccy="{currency}">{_written(amount_minor, currency)}</Amt>',
        f"<CdtDbtInd>{'DBIT' if amount_minor < 0 else 'CRDT'}</CdtDbtInd>",
    ]


def _camt_balance(kind: str, amount_minor: int, currency: str) -> list[str]:
    return [
        f"<Bal><Tp><CdOrPrtry><Cd>{kind}</Cd></CdOrPrtry></Tp>",
        *_camt_amount(amount_minor, currency),
        "<Dt><Dt>2025-03-31</Dt></Dt></Bal>",
    ]


def _ntry(booked: Booked, version: int, place: int) -> Iterator[str]:
    each = _each(booked)
    batch = len(each) > 1
    bank_id = f"BATCH-{place}" if batch else each[0].transaction_id
    yield "<Ntry>"
    yield from _camt_amount(sum(one.amount_minor for one in each), each[0].currency)
    if each[0].returned:
        yield "<RvslInd>true</RvslInd>"
    yield "<Sts>BOOK</Sts>" if version < 8 else "<Sts><Cd>BOOK</Cd></Sts>"
    yield f"<BookgDt><Dt>{each[0].booked_on}</Dt></BookgDt>"
    yield f"<ValDt><Dt>{each[0].value_on}</Dt></ValDt>"
    if bank_id:
        yield f"<AcctSvcrRef>{escape(bank_id)}</AcctSvcrRef>"
    yield "<BkTxCd><Domn><Cd>PMNT</Cd><Fmly><Cd>RCDT</Cd><SubFmlyCd>ESCT</SubFmlyCd></Fmly></Domn></BkTxCd>"
    yield "<NtryDtls>"
    for one in each:
        yield from _tx_dtls(one, version, batch=batch)
    yield "</NtryDtls>"
    yield "</Ntry>"


def _tx_dtls(one: BankEntry, version: int, *, batch: bool) -> Iterator[str]:
    yield "<TxDtls>"
    own_id = f"<AcctSvcrRef>{escape(one.transaction_id)}</AcctSvcrRef>" if batch and one.transaction_id else ""
    yield f"<Refs>{own_id}<EndToEndId>NOTPROVIDED</EndToEndId></Refs>"
    amount, sign = _camt_amount(one.amount_minor, one.currency)
    yield f"<AmtDtls><TxAmt>{amount}</TxAmt></AmtDtls>" if version < 8 else f"{amount}\n{sign}"
    party = "Dbtr" if (one.amount_minor > 0) is not one.returned else "Cdtr"
    yield "<RltdPties>"
    if one.payer_name:
        named = f"<Nm>{escape(one.payer_name)}</Nm>"
        yield f"<{party}>{named if version < 8 else f'<Pty>{named}</Pty>'}</{party}>"
    if one.payer_iban:
        yield f"<{party}Acct><Id><IBAN>{one.payer_iban}</IBAN></Id></{party}Acct>"
    yield "</RltdPties>"
    yield "<RmtInf>"
    for text in wrap(one.remittance, 140, break_long_words=False, break_on_hyphens=False):
        yield f"<Ustrd>{escape(text)}</Ustrd>"
    if one.reference:
        kind = "<Tp><CdOrPrtry><Cd>SCOR</Cd></CdOrPrtry></Tp>"
        yield f"<Strd><CdtrRefInf>{kind}<Ref>{escape(one.reference)}</Ref></CdtrRefInf></Strd>"
    yield "</RmtInf>"
    yield "</TxDtls>"


def _mt_amount(amount_minor: int, currency: str) -> str:
    whole, _, fraction = _written(amount_minor, currency).partition(".")
    return f"{whole},{fraction}"


def _mt_balance(tag: str, amount_minor: int, currency: str) -> str:
    mark = "D" if amount_minor < 0 else "C"
    return f":{tag}:{mark}250331{currency}{_mt_amount(amount_minor, currency)}"


def _mt_entry(one: BankEntry) -> Iterator[str]:
    mark = "C" if (one.amount_minor > 0) is not one.returned else "D"
    amount = _mt_amount(one.amount_minor, one.currency)
    days = f"{one.value_on:%y%m%d}{one.booked_on:%m%d}"
    yield f":61:{days}{'R' if one.returned else ''}{mark}{amount}NTRFNONREF//{one.transaction_id or 'NONREF'}"
    purpose = ["EREF+NOTPROVIDED", *_cut(f"SVWZ+{one.reference or one.remittance}")]
    assert len(purpose) <= 10
    parts = [":86:166?00GUTSCHRIFT", *(f"?{number}{text}" for number, text in enumerate(purpose, 20))]
    if one.payer_iban:
        parts += ["?30ABNANL2A", f"?31{one.payer_iban}"]
    parts += [f"?{number}{text}" for number, text in enumerate(_cut(one.payer_name or ""), 32)]
    line = ""
    for part in parts:
        if len(line + part) > 65:
            yield line
            line = ""
        line += part
    yield line


def _cut(text: str) -> list[str]:
    """Parts of at most 27 characters. None ends in a space, which would be lost at the end of a line."""
    parts = []
    while text:
        part = text[:27].rstrip()
        parts.append(part)
        text = text[len(part) :]
    return parts
