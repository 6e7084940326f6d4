"""The compiled requirement files: pinned, hashed, free of addresses, and one set of versions."""

import re
import tomllib

import pytest
from packaging.version import Version

from shared.config import PROJECT_DIR

FILES = ("prod", "dev", "lock")
PROJECT = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())


def pins(name: str) -> dict[str, str]:
    """Version by package."""
    text = (PROJECT_DIR / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, flags=re.MULTILINE))


def names(ranges: list[object]) -> set[str]:
    """Packages that a list of ranges asks for."""
    return {re.split(r"[\[<>=!~]", text)[0] for text in ranges if isinstance(text, str)}


@pytest.mark.parametrize("name", FILES)
def test_every_package_is_pinned_by_version_and_hash(name: str) -> None:
    text = (PROJECT_DIR / "requirements" / f"{name}.txt").read_text()
    blocks = re.split(r"\n(?=[a-z])", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE).strip())
    assert len(blocks) == len(pins(name))
    for block in blocks:
        assert re.match(r"[a-z0-9-]+==\S+( ; [^\\]+)? \\\n +--hash=sha256:[0-9a-f]{64}\b", block)


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_an_index_or_a_path(name: str) -> None:
    text = (PROJECT_DIR / "requirements" / f"{name}.txt").read_text()
    assert not re.search(r"://|--index|--extra|--find-links|--trusted|^ *(# +)?/|@ ", text, flags=re.MULTILINE)


def test_development_runs_on_the_versions_of_production() -> None:
    assert pins("prod").items() <= pins("dev").items()


def test_what_is_asked_for_is_pinned() -> None:
    groups = PROJECT["dependency-groups"]
    assert names(PROJECT["project"]["dependencies"]) <= pins("prod").keys()
    assert names(groups["dev"]) | names(groups["embedded"]) <= pins("dev").keys()
    assert names(groups["lock"]) <= pins("lock").keys()


def test_production_carries_neither_servers_nor_test_tools() -> None:
    servers = names(PROJECT["dependency-groups"]["embedded"])
    assert pins("prod").keys().isdisjoint(servers | {"hypothesis", "mypy", "pytest", "ruff"})


ADVISORIES = tomllib.loads((PROJECT_DIR / "requirements" / "advisories.toml").read_text())


@pytest.mark.parametrize("package", ADVISORIES)
def test_no_pin_is_one_that_an_advisory_names(package: str) -> None:
    pinned = [Version(pins(name)[package]) for name in FILES if package in pins(name)]
    assert pinned, "an advisory is kept for what is pinned"
    for fixed_in, ids in ADVISORIES[package].items():
        assert min(pinned) >= Version(fixed_in), ids
