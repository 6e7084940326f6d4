"""Alerts and dashboard ask for what `/metrics` really exports, and each alert has a page whose commands exist."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command

from shared.config import PROJECT_DIR, Settings
from shared.db import job_runs
from shared.db.engine import Database
from shared.domain.operation import OperationKind, OperationStatus
from shared.messages import Job, Queue
from tests.api.conftest import Api, Engine
from tests.api.routes import BODIES
from tests.db.world import populate
from workers.cli import app as command_line

DEPLOY = PROJECT_DIR / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
ALERTS: list[dict[str, Any]] = [rule for group in RULES for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SERVICES = yaml.safe_load((PROJECT_DIR / "docker-compose.yml").read_text())["services"]
RUNBOOKS = PROJECT_DIR / "docs" / "runbooks"
PAGES = sorted(path for path in RUNBOOKS.glob("*.md") if path.name != "README.md")

by_name = pytest.mark.parametrize("alert", [pytest.param(rule, id=rule["alert"]) for rule in ALERTS])

# The part of PromQL's vocabulary that is used here.
WORDS = {
    *("absent", "abs", "histogram_quantile", "max", "min", "rate", "sum", "vector"),
    *("and", "or", "unless", "on", "by"),
}
# What a label may say, where it is not free.
SAYS: dict[str, set[str]] = {
    "kind": set(OperationKind),
    "status": {*OperationStatus, "5.."},
    "job": {*Job, job_runs.RELAY},
    "queue": set(Queue),
    "waits_for": {"provider", "release"},
    "route": {"/readyz", "/metrics"},
}

Asked = tuple[str, str, set[str]]  # an expression's name, where it stands, its labels


def expressions() -> dict[str, str]:
    """Every expression of alerts and dashboard, by where it stands."""
    found = {rule["alert"]: rule["expr"] for rule in ALERTS}
    for panel in PANELS:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


def metrics_of(expression: str) -> dict[str, set[str]]:
    """The metrics that an expression reads, with the labels that it selects by. A tokenizer, and no parser."""
    found: dict[str, set[str]] = {}
    bare = re.sub(r"\b(by|on)\s*\(([^)]*)\)", r"\1", expression)
    for name, _, selector in re.findall(r"([A-Za-z_:][\w:]*)(\{([^}]*)\})?", bare.replace("[5m]", "")):
        if name in WORDS:
            continue
        found.setdefault(name, set()).update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", selector))
    return found


def grouping_of(expression: str) -> set[str]:
    return {
        label.strip()
        for _, labels in re.findall(r"\b(by|on)\s*\(([^)]*)\)", expression)
        for label in labels.split(",")
        if label.strip()
    }


def values_of(expression: str) -> Iterator[tuple[str, str]]:
    for label, text in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"([^\"]*)\"", expression):
        for value in text.split("|"):
            yield label, value


@pytest.fixture
def exported(api: Api, engine: Engine, database: Database, settings: Settings, customer: Api) -> dict[str, set[str]]:
    """Every sample that a busy system exports, with its labels."""
    with database.transaction() as tx:
        populate(tx, settings)
        for job in (*Job, job_runs.RELAY):
            job_runs.record(tx, job, finished_at=tx.now(), duration_ms=3, items=1)
    customer.post("/invoices", BODIES["POST /invoices"])
    engine.execute_sql("UPDATE operations SET last_error = 'ProviderDown: no' WHERE status = 'pending'")
    throttled_somebody(api)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(api.client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def throttled_somebody(api: Api) -> None:
    """A budget that is used up leaves its label behind."""
    from api.metrics import throttled  # noqa: PLC0415 (counted as the throttle counts, without a minute of requests)

    throttled.labels("login").inc(0)


@pytest.mark.usefixtures("broker_url")
def test_every_metric_that_is_asked_for_is_exported_with_its_labels(exported: dict[str, set[str]]) -> None:
    asked = expressions()
    assert len(asked) > 40
    unknown = {
        (where, name, label)
        for where, expression in asked.items()
        for name, labels in metrics_of(expression).items()
        for label in labels or {""}
        if name not in exported or (label and label not in exported[name])
    }
    assert unknown == set()
    grouped = {
        (where, label)
        for where, expression in asked.items()
        for label in grouping_of(expression)
        if not any(label in exported[name] for name in metrics_of(expression))
    }
    assert grouped == set()


@pytest.mark.usefixtures("broker_url")
def test_every_metric_that_is_exported_is_looked_at(exported: dict[str, set[str]]) -> None:
    looked_at = {name for expression in expressions().values() for name in metrics_of(expression)}
    assert {name for name in exported if name.startswith("billing_")} == looked_at


def test_a_misspelt_metric_and_a_misspelt_label_would_be_seen() -> None:
    assert metrics_of(
        'max by (kind) (billing_x{stauts="dead"}) > 0 or absent(billing_y) and on () rate(z[5m]) > 1'
    ) == {
        "billing_x": {"stauts"},
        "billing_y": set(),
        "z": set(),
    }
    assert grouping_of("max by (kind, job) (billing_x) unless on (queue) y") == {"kind", "job", "queue"}


@pytest.mark.parametrize("where", expressions())
def test_labels_are_compared_with_what_they_may_say(where: str) -> None:
    expression = expressions()[where]
    assert expression.count("(") == expression.count(")")
    assert [(label, value) for label, value in values_of(expression) if value not in SAYS[label]] == []


# --- alerts -----------------------------------------------------------------------------------


@by_name
def test_an_alert_says_how_bad_how_long_and_what_to_do(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"Billing[A-Z]\w+", alert["alert"])
    assert re.fullmatch(r"\d+[smh]", alert["for"])
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"].keys() == {"summary", "runbook_url"}
    assert alert["annotations"]["summary"].endswith(".")
    named = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
    assert named <= grouping_of(alert["expr"]), "a label that the expression keeps"
    page = PROJECT_DIR / alert["annotations"]["runbook_url"]
    assert f"Alert `{alert['alert']}`, {alert['labels']['severity']}." in page.read_text()


def test_each_alert_has_a_page_and_each_page_an_alert() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    assert {PROJECT_DIR / rule["annotations"]["runbook_url"] for rule in ALERTS} == set(PAGES)
    index = (RUNBOOKS / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| \[.*\]\(([\w-]+\.md)\) \|$", index, flags=re.MULTILINE)
    assert {(name, severity, page) for name, severity, page in rows} == {
        (rule["alert"], rule["labels"]["severity"], Path(rule["annotations"]["runbook_url"]).name) for rule in ALERTS
    }


def test_prometheus_reads_the_file_of_alerts() -> None:
    configured = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert configured["rule_files"] == ["alerts.yml"]
    (scraped,) = configured["scrape_configs"]
    assert scraped["metrics_path"] == "/metrics"


# --- run-books --------------------------------------------------------------------------------

SECTIONS = ["What it means", "What customers notice", "Look", "Do", "When it is over"]
TOOLS = {"curl", "date", "timedatectl", "celery", "docker"}
COMPOSE = {"ps", "logs", "exec", "up", "images"}


def commands_of(page: Path) -> list[list[str]]:
    """What a page says to type: the lines of its blocks, and what it names on the way."""
    text = page.read_text()
    blocks = [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    inline = re.findall(r"`((?:python -m workers|docker compose|celery|curl) [^`]+)`", " ".join(text.split()))
    return [shlex.split(line) for line in [*blocks, *inline]]


def refused(command: Any, words: list[str]) -> str | None:
    """Why the operator's command line would not take these words, or None."""
    below = getattr(command, "commands", None)
    if below is not None:
        return refused(below[words[0]], words[1:]) if words and words[0] in below else str(words)
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    if command.name == "run" and words[0] not in set(Job):
        return words[0]
    return next((word for word in words if word.startswith("--") and word not in options), None)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
def test_a_page_is_complete_and_its_commands_exist(page: Path) -> None:
    assert re.findall(r"^## (.+)$", page.read_text(), flags=re.MULTILINE) == SECTIONS
    typed = commands_of(page)
    assert len(typed) > 1
    for words in typed:
        if words[:3] == ["python", "-m", "workers"]:
            assert refused(get_command(command_line), words[3:]) is None, shlex.join(words)
            continue
        assert words[0] in TOOLS, shlex.join(words)
        if words[:2] == ["docker", "compose"]:
            assert words[2] in COMPOSE
            assert [word for word in words[3:] if word in SERVICES], shlex.join(words)


def test_a_command_that_does_not_exist_would_be_seen() -> None:
    root = get_command(command_line)
    assert refused(root, ["check", "--json"]) is None
    assert refused(root, ["run", "roll-renewals"]) is None
    assert refused(root, ["run", "roll-over"])
    assert refused(root, ["mend"])
    assert refused(root, ["operations", "mend"])
    assert refused(root, ["operations", "list", "--loud"])


# --- the dashboard ----------------------------------------------------------------------------


def test_the_dashboard_holds_together() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource"]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("panel", [pytest.param(panel, id=panel["title"]) for panel in PANELS])
def test_a_panel_has_a_title_a_unit_and_something_to_show(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["fieldConfig"]["defaults"]["unit"] in {"none", "s", "reqps"}
    assert [target for target in panel["targets"] if not (target["expr"] and target["legendFormat"])] == []
    for target in panel["targets"]:
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert named <= grouping_of(target["expr"])
