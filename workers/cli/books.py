"""Look at the books: state and check."""

from typing import Any, Final

import typer
from msgspec import Struct
from rich.console import Console
from rich.text import Text

from shared.clock import utc_now
from shared.db import checks
from shared.db.checks import CHECKS, Finding
from shared.db.overview import overview
from workers.cli.output import AsJson, console, print_json, table
from workers.cli.session import Session, revision, session

BROKEN: Final = 1
CHECK_TIMEOUT_MS: Final = checks.TIMEOUT_MINUTES * 60_000


def state(*, as_json: AsJson = False) -> None:
    """Show how much there is of everything, what waits, and what is late."""
    with session(statement_timeout_ms=CHECK_TIMEOUT_MS) as here:
        now = utc_now()
        with here.database.transaction() as tx:
            sections = overview(tx, now=now)
        at = revision(here.database)
    if as_json:
        print_json({"at": now, "revision": at, **sections})
        return
    out = console()
    out.print(Text(f"schema {at}, {now:%Y-%m-%d %H:%M:%SZ}", "dim"))
    for name, rows in sections.items():
        out.print(table(name.replace("_", " "), rows))


def check(*, as_json: AsJson = False) -> None:
    """Ask every invariant whether it holds. Exit status 1 when one is broken, with a proposed repair.

    Reads one instant of the database and writes nothing, so it may run at any time. Parked accounts, dead
    operations and the like are warnings: they wait for somebody, and break no rule.
    """
    with session(statement_timeout_ms=CHECK_TIMEOUT_MS) as here:
        verdict = ask_all(here)
    if as_json:
        print_json(verdict.document())
    else:
        verdict.report(console())
    if not verdict.ok:
        raise typer.Exit(BROKEN)


class Verdict(Struct, frozen=True):
    """What the invariants say of a database."""

    findings: list[Finding]
    warnings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether all hold."""
        return not self.findings

    def document(self) -> dict[str, Any]:
        """For machines."""
        return {"ok": self.ok, "checks": len(CHECKS), "findings": self.findings, "warnings": self.warnings}

    def report(self, out: Console) -> None:
        """For people."""
        for finding in self.findings:
            _report_one(out, finding, "broken", "bold red")
        for warning in self.warnings:
            _report_one(out, warning, "warning", "yellow")
        if self.findings:
            out.print(Text(f"{len(self.findings)} of {len(CHECKS)} invariants are broken", "bold red"))
        else:
            out.print(Text(f"all {len(CHECKS)} invariants hold", "bold green"))


def ask_all(here: Session) -> Verdict:
    """Ask every invariant, and what waits for somebody."""
    with here.database.transaction() as tx:
        findings = checks.run_checks(tx, here.settings)
    with here.database.transaction() as tx:
        return Verdict(findings, checks.run_warnings(tx, here.settings))


def _report_one(out: Console, finding: Finding, verdict: str, style: str) -> None:
    out.print(Text.assemble((f"{verdict}: {finding.check}", style), f"  {finding.rule}"))
    shown = len(finding.rows)
    title = "1 row" if finding.found == 1 else f"{finding.found} rows"
    out.print(table(title if shown == finding.found else f"{title}, {shown} of them", finding.rows))
    out.print(Text.assemble(("repair: ", "bold"), finding.repair))
    out.print()
