"""The brokers that the suite may kill, freeze and rob: Valkey, and RabbitMQ where its server is on the machine."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, Protocol

import psutil
import redis
from amqp import Connection as AmqpConnection
from amqp.exceptions import AMQPError

from shared.embedded import Valkey
from shared.errors import NotReady
from workers.demo import eventually
from workers.stack import free_port

RABBITMQ_SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # Debian's other one is for its own service
RABBITMQ_STARTS_WITHIN_SECONDS: Final = 60


class Broker(Protocol):
    """What faults do to a broker."""

    name: str

    @property
    def url(self) -> str:
        """Where it is, from start to start."""

    def start(self) -> None:
        """Start it, and return when it takes messages."""

    def running(self) -> bool:
        """Whether it takes messages."""

    def stop(self) -> None:
        """End it for good."""

    def kill(self) -> None:
        """End it at once."""

    def freeze(self) -> None:
        """Let it answer nobody, and refuse nobody."""

    def thaw(self) -> None:
        """Let it go on."""

    def forget(self) -> None:
        """Lose every message, while it runs."""

    def lose_data(self) -> None:
        """Lose what it keeps on its disk, while it is down."""


class ValkeyBroker:
    """Valkey with an append-only file."""

    name = "valkey"

    @staticmethod
    def installed() -> bool:
        """Whether there is a server to start."""
        return True

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._server = Valkey(folder)

    @property
    def url(self) -> str:
        return self._server.url

    def start(self) -> None:
        self._server.start()
        self._server.wait()

    def running(self) -> bool:
        return self._server.running()

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        os.kill(self._server.pid, signal.SIGKILL)
        eventually(lambda: None if self._server.running() else True, "the broker to be gone")

    def freeze(self) -> None:
        os.kill(self._server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._server.pid, signal.SIGCONT)

    def forget(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def lose_data(self) -> None:
        shutil.rmtree(self._server.folder / "appendonlydir")


class RabbitBroker:
    """A RabbitMQ node of its own, with quorum queues, beside whatever else runs on the machine."""

    name = "rabbitmq"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._port, dist_port, epmd_port = (free_port("127.0.0.1") for _ in range(3))
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"faults-{secrets.token_hex(4)}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(dist_port),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none.sh"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }
        (folder / "plugins").write_text("[].\n")
        self._epmd = subprocess.Popen(
            ["epmd", "-port", str(epmd_port), "-address", "127.0.0.1", "-relaxed_command_check"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._server: subprocess.Popen[bytes] | None = None

    @staticmethod
    def installed() -> bool:
        """Whether there is a server to start."""
        return RABBITMQ_SERVER.exists() and shutil.which("epmd") is not None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    def start(self) -> None:
        with (self._folder / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                [RABBITMQ_SERVER],
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + RABBITMQ_STARTS_WITHIN_SECONDS
        while not self.running():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise NotReady(f"RabbitMQ did not start; see {self._folder}/server.log")
            time.sleep(0.1)

    def stop(self) -> None:
        self.kill()
        self._epmd.kill()
        self._epmd.wait()

    def kill(self) -> None:
        self._send(signal.SIGKILL)
        if self._server is not None:
            self._server.wait()

    def freeze(self) -> None:
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def forget(self) -> None:
        with closing(self._connect()) as connection:
            channel = connection.channel()
            for queue in ("interactive", "periodic"):
                channel.queue_purge(queue)

    def lose_data(self) -> None:
        shutil.rmtree(self._folder / "mnesia")

    def _send(self, number: signal.Signals) -> None:
        if self._server is not None and self._server.poll() is None:
            leader = psutil.Process(self._server.pid)
            for process in (*leader.children(recursive=True), leader):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def running(self) -> bool:
        with suppress(OSError, AMQPError, socket.timeout):
            self._connect().close()
            return True
        return False

    def _connect(self) -> AmqpConnection:
        connection = AmqpConnection(f"127.0.0.1:{self._port}", "guest", "guest", connect_timeout=2)
        connection.connect()
        return connection
