"""The documents say what the code says: settings, verbs, names that are cited, and a tour that runs as written."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.main import get_command

from bench import report, soak_report, spending_report
from shared.config import PROJECT_DIR, Settings, written
from shared.db.checks import CHECKS
from shared.embedded import servers
from tests.faults.faults import FAULTS
from tests.faults.outcomes import story
from workers.cli import app
from workers.stack import Stack
from workers.up import ADMIN_EMAIL, prepare

README = (PROJECT_DIR / "README.md").read_text()
ARCHITECTURE = (PROJECT_DIR / "ARCHITECTURE.md").read_text()
SECURITY = (PROJECT_DIR / "SECURITY.md").read_text()
TESTS = {
    name
    for path in sorted((PROJECT_DIR / "tests").rglob("test_*.py"))
    for name in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)
}
RULES = (PROJECT_DIR / "docs" / "rules.md").read_text()
DOCUMENTS = {path.relative_to(PROJECT_DIR).as_posix(): path for path in sorted(PROJECT_DIR.glob("docs/**/*.md"))} | {
    path.name: path for path in sorted(PROJECT_DIR.glob("*.md"))
}
CODE_FOLDERS = ("api", "shared", "workers", "tests")
SOURCES = [path for folder in CODE_FOLDERS for path in sorted((PROJECT_DIR / folder).rglob("*.py"))] + [
    PROJECT_DIR / name for name in ("beat_schedule.py", "pyproject.toml", "Makefile", "docker-compose.yml")
]
CODE = "\n".join(path.read_text() for path in SOURCES if path != Path(__file__))
WORDS = frozenset(re.findall(r"\w+", CODE)) | {name.upper() for name in Settings.model_fields}
SCHEMA = "\n".join(path.read_text() for path in (PROJECT_DIR / "shared/db/migrations/versions").glob("0*.py"))
# What a document may name although no file of ours does.
FOREIGN = {"pg_dump", "pg_stat_activity", "pg_stat_archiver", "pg_wal", "synchronous_standby_names"}


def section(document: str, heading: str) -> str:
    """The text below a heading, up to the next one of its rank."""
    match = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", document, flags=re.MULTILINE | re.DOTALL)
    assert match is not None, f"there is no section {heading!r}"
    return match[1]


def table(text: str) -> list[list[str]]:
    """The cells of the first table in a text, without its heading."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def settings_table() -> str:
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{name.upper()}` | {cell(shown(field.default))} | {cell(field.description)} |")
    return "\n".join(rows)


def cell(text: object) -> str:
    """In a cell of a table, where a bar would end it."""
    return str(text).replace("|", r"\|")


def shown(default: object) -> str:
    if default is None:
        return ""
    if isinstance(default, SecretStr):
        return "one for development"
    if isinstance(default, Path):
        return f"`{default.relative_to(PROJECT_DIR)}`"
    return f"`{written(default)}`"


def verbs_table() -> str:
    verbs = re.findall(r"^([a-z]+):.*## (.*)$", (PROJECT_DIR / "Makefile").read_text(), flags=re.MULTILINE)
    return "\n".join(["| verb | what |", "| --- | --- |", *(f"| `make {verb}` | {what} |" for verb, what in verbs)])


def command_names(command: Any, path: str = "") -> Iterator[str]:
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from command_names(child, f"{path}{name} ")
        else:
            yield f"{path}{name}"


def test_the_readme_lists_the_settings_as_they_are() -> None:
    assert settings_table() in section(README, "Settings"), f"put this into README.md:\n{settings_table()}"


def test_the_readme_lists_the_verbs_of_make() -> None:
    assert verbs_table() in section(README, "Verbs of make"), f"put this into README.md:\n{verbs_table()}"


def test_the_readme_lists_the_operators_commands() -> None:
    listed = {re.match(r"`([a-z -]+)", row[0]) for row in table(section(README, "Operator's command line"))}
    assert {match[1].strip() for match in listed if match} == set(command_names(get_command(app)))


def test_every_test_that_the_security_checklist_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", section(SECURITY, "The checklist")))
    assert len(named) > 20
    assert named <= TESTS


def test_what_make_up_calls_the_tour_is_its_heading() -> None:
    (heading,) = re.findall(r"README\.md, '([^']+)'", (PROJECT_DIR / "workers" / "up.py").read_text())
    assert "```sh" in section(README, heading)


def test_every_record_is_listed() -> None:
    records = {path.relative_to(PROJECT_DIR).as_posix() for path in (PROJECT_DIR / "docs" / "adr").glob("*.md")}
    assert set(re.findall(r"\((docs/adr/\S+)\)", section(ARCHITECTURE, "Decisions"))) == records


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in SOURCES if "docs/" in path.read_text()])
def test_what_a_docstring_cites_exists(path: Path) -> None:
    text = path.read_text()
    headings = set(re.findall(r"^## (.+)$", RULES, flags=re.MULTILINE))
    for cited in re.findall(r"docs/rules\.md, ((?:\"[A-Z][\w ]+\"(?: and )?)+)", text):
        assert set(re.findall(r'"([^"]+)"', cited)) <= headings
    for number in re.findall(r"docs/adr/(\d{4})", text):
        assert list((PROJECT_DIR / "docs" / "adr").glob(f"{number}-*.md"))


def test_every_invariant_names_constraints_checks_and_tests_that_exist() -> None:
    checks = {check.name for check in CHECKS}
    named = set()
    for invariant, _, constraints, queries, tests in table(section(ARCHITECTURE, "Invariants")):
        assert re.findall(r"`(\w+)`", queries), f"{invariant} has no check"
        assert set(re.findall(r"`(\w+)`", constraints)) <= set(re.findall(r"\w+", SCHEMA))
        assert set(re.findall(r"`(\w+)`", queries)) <= checks
        assert re.findall(r"`([^`]+)`", tests), f"{invariant} has no test"
        named |= set(re.findall(r"`(\w+)`", queries))
    assert named == checks


def test_invariants_are_numbered_in_order() -> None:
    rows = table(section(ARCHITECTURE, "Invariants"))
    assert [row[0] for row in rows] == [f"I{number}" for number in range(1, len(rows) + 1)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_names_exists(name: str) -> None:
    text = re.sub(r"```.*?```", "", DOCUMENTS[name].read_text(), flags=re.DOTALL)
    for cited in set(re.findall(r"`([^`\n]+)`", text)) - FOREIGN:
        if re.fullmatch(r"_?[a-z][a-z0-9]*(_[a-z0-9]+)+|[A-Z]+(_[A-Z]+)+", cited):
            assert cited in WORDS, f"`{cited}` is nowhere in the code"
        elif re.fullmatch(rf"({'|'.join(CODE_FOLDERS)}|docs)/[\w./-]+", cited):
            assert (PROJECT_DIR / cited).exists(), f"`{cited}` is not there"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_documents_lead_somewhere(name: str) -> None:
    document = DOCUMENTS[name]
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), f"{target} is not there"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.processes
@pytest.mark.xdist_group("processes")
@pytest.mark.skipif(shutil.which("curl") is None, reason="the tour uses curl")
def test_the_tour_runs_as_it_is_written(tmp_path: Path) -> None:
    password = "the password that make up printed"
    tour = "\n".join(re.findall(r"```sh\n(.*?)```", section(README, "Five minutes with curl"), flags=re.DOTALL))
    assert password in tour
    before_each_call = section(README, "Before each AI call")
    (key,) = re.findall(r"```sh\n(.*?)```", before_each_call, flags=re.DOTALL)
    (snippet,) = re.findall(r"```python\n(.*?)```", before_each_call, flags=re.DOTALL)
    wanted = Settings(data_dir=tmp_path, api_bind="127.0.0.1:0", billing_sandbox=True)
    with servers(wanted, postgres_options=("fsync=off",)) as settings:
        prepare(settings, ADMIN_EMAIL, password)
        with Stack(settings) as stack:
            script = f"{tour}\n{key}\npython3 - <<'SNIPPET'\n{snippet}\nSNIPPET\n"
            script = script.replace("http://127.0.0.1:8000", stack.url)
            ran = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script], check=False, capture_output=True, text=True, timeout=60
            )
    assert ran.returncode == 0, ran.stderr
    assert "Idempotent-Replayed: true" in ran.stdout
    assert '"code": "insufficient_credits"' in ran.stdout
    assert '"status": "active"' in ran.stdout
    assert '"next_plan": "growth"' in ran.stdout
    assert "answered for 228 credits" in ran.stdout
    assert "credits left" in ran.stdout


def test_the_readme_shows_what_the_suite_of_faults_found() -> None:
    found = table(section(README, "What it survives"))
    assert [row[0] for row in found] == [story(fault) for fault in FAULTS], "write it anew, as ADR 0028 says"
    assert all("done once" in cell for _, *cells in found for cell in cells)


def test_the_readme_shows_what_was_measured() -> None:
    assert report.markdown(report.load()) in README
    assert spending_report.markdown(spending_report.load()) in README
    assert soak_report.markdown(soak_report.load()) in README
