"""Letters: to a real server over TLS, into files, and what becomes of them when the server is down or says no."""

import shutil
import socketserver
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from shared import mail
from shared.domain import letter as letters
from shared.errors import MailRefused, ProviderDown
from shared.mail import FileMailer, SmtpMailer
from tests.office import Office
from tests.workers.conftest import Worker
from tests.workers.test_operations import write_to

LETTER = letters.confirm_address(
    id="01a2", to="bob@example.com", token="secret-token", expires_at=datetime(2026, 1, 10, tzinfo=UTC)
)
SENDER = "billing@example.com"


@dataclass
class Inbox:
    """What a server has taken, and how it behaves."""

    port: int = 0
    letters: list[bytes] = field(default_factory=list)
    secured: list[bool] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)  # to a command, instead of a yes
    offers_tls: bool = True


class Conversation(socketserver.StreamRequestHandler):
    """The server's side of SMTP, as far as a client needs it."""

    server: Any

    def handle(self) -> None:
        inbox: Inbox = self.server.inbox
        secured = False
        self.say("220 ready")
        while line := self.rfile.readline().decode().strip():
            command = line.split(" ")[0].upper()
            if command in inbox.answers:
                self.say(inbox.answers[command])
            elif command == "EHLO":
                extensions = ["SIZE 1000000"] + ([] if secured or not inbox.offers_tls else ["STARTTLS"])
                extensions += ["AUTH PLAIN"] if secured else []
                self.say("\r\n".join(["250-localhost", *(f"250-{name}" for name in extensions[:-1])]))
                self.say(f"250 {extensions[-1]}")
            elif command == "STARTTLS":
                self.say("220 go on")
                self.rfile.close()
                self.request = self.server.context.wrap_socket(self.request, server_side=True)
                self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)
                secured = True
            elif command == "AUTH":
                self.say("235 welcome")
            elif command == "DATA":
                self.say("354 go on")
                content = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    content += part
                inbox.letters.append(content)
                inbox.secured.append(secured)
                self.say("250 taken")
            elif command == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 ok")

    def finish(self) -> None:
        for stream in (self.rfile, self.wfile, self.request):
            stream.close()

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = False  # so that all have ended when it has
    inbox: Inbox
    context: ssl.SSLContext

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests are about."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key in one file, for 127.0.0.1."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run(made, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "key").read_text() + (folder / "cert").read_text())
    return both


@pytest.fixture
def inbox(certificate: Path) -> Iterator[Inbox]:
    inbox = Inbox()
    with Server(("127.0.0.1", 0), Conversation) as server:
        server.inbox = inbox
        server.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.context.load_cert_chain(certificate)
        inbox.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield inbox
        server.shutdown()
        thread.join()


@pytest.fixture
def mailer(inbox: Inbox, certificate: Path) -> SmtpMailer:
    trusted = ssl.create_default_context(cafile=str(certificate))
    return SmtpMailer(f"smtp://user:p%40ss@127.0.0.1:{inbox.port}", SENDER, context=trusted)


def test_a_letter_is_handed_over_behind_tls(mailer: SmtpMailer, inbox: Inbox) -> None:
    mailer.send(LETTER)
    (content,) = inbox.letters
    assert inbox.secured == [True]
    message = message_from_bytes(content, policy=policy.default)
    assert (message["From"], message["To"], message["Message-ID"]) == (SENDER, LETTER.to, "<01a2@example.com>")
    assert "secret-token" in message.get_content()


def test_to_a_server_without_tls_nothing_is_said(mailer: SmtpMailer, inbox: Inbox) -> None:
    inbox.offers_tls = False
    with pytest.raises(ProviderDown, match="extension"):
        mailer.send(LETTER)
    assert inbox.letters == []


def test_a_server_that_nobody_vouches_for_gets_nothing(inbox: Inbox) -> None:
    with pytest.raises(ProviderDown, match="SSLCertVerificationError"):
        SmtpMailer(f"smtp://127.0.0.1:{inbox.port}", SENDER).send(LETTER)
    assert inbox.letters == []


@pytest.mark.parametrize(
    ("command", "answer", "error"),
    [
        pytest.param("RCPT", "550 no such mailbox", MailRefused, id="no such mailbox"),
        pytest.param("RCPT", "451 come back later", ProviderDown, id="put off"),
        pytest.param("AUTH", "535 who are you", ProviderDown, id="our password is wrong"),
        pytest.param("DATA", "554 no", ProviderDown, id="refused otherwise"),
        pytest.param("EHLO", "421 closing", ProviderDown, id="closing"),
    ],
)
def test_what_a_server_says_is_a_no_or_a_later(
    mailer: SmtpMailer, inbox: Inbox, command: str, answer: str, error: type[Exception]
) -> None:
    inbox.answers[command] = answer
    with pytest.raises(error) as refused:
        mailer.send(LETTER)
    assert "secret-token" not in str(refused.value)


def test_a_server_that_is_not_there_is_asked_later() -> None:
    with pytest.raises(ProviderDown, match="ConnectionRefusedError"):
        SmtpMailer("smtp://127.0.0.1:1", SENDER).send(LETTER)


def test_no_header_can_be_smuggled_in() -> None:
    invitation = letters.invitation(
        id="01a2",
        to="bob@example.com",
        account_name="Ada\nBcc: all@example.com" + "x" * 200,
        role="viewer",
        token="t",
        expires_at=datetime(2026, 1, 10, tzinfo=UTC),
    )
    assert mail.as_message(invitation, SENDER)["Bcc"] is None
    for header in ({"to": "bob@example.com\nBcc: all@example.com"}, {"subject": "a\r\nb"}):
        parts = {name: getattr(invitation, name) for name in ("id", "to", "subject", "text")} | header
        with pytest.raises(ValueError, match=r"linefeed|newline|invalid"):
            mail.as_message(letters.Letter(**parts), SENDER)


def test_without_a_server_letters_are_files_for_their_owner_alone(tmp_path: Path) -> None:
    FileMailer(tmp_path / "mail", SENDER).send(LETTER)
    (kept,) = (tmp_path / "mail").iterdir()
    assert b"secret-token" in kept.read_bytes()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


# --- the task -------------------------------------------------------------------------------------


def test_the_task_sends_one_letter_however_often_it_is_delivered(
    worker: Worker, office: Office, tmp_path: Path
) -> None:
    worker.set(data_dir=tmp_path)
    operation_id = write_to(office, office.sign_up())
    assert worker.perform(operation_id).result == {"letter": "confirm_address"}
    (kept,) = (tmp_path / "mail").iterdir()
    kept.unlink()
    worker.perform(operation_id)
    assert list((tmp_path / "mail").iterdir()) == []


def test_a_server_that_is_down_is_asked_again_and_counts_for_no_attempt(worker: Worker, office: Office) -> None:
    worker.set(smtp_url=SecretStr("smtp://127.0.0.1:1"))
    row = worker.perform(write_to(office, office.sign_up()))
    assert (row.status, row.attempts) == ("pending", 0)
    assert "mail server" in row.last_error


def test_an_address_that_the_server_refuses_ends_the_operation(
    worker: Worker, office: Office, inbox: Inbox, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    worker.set(smtp_url=SecretStr(f"smtp://127.0.0.1:{inbox.port}"))
    inbox.answers["RCPT"] = "550 no such mailbox"
    row = worker.perform(write_to(office, office.sign_up()))
    assert (row.status, row.problem["code"]) == ("failed", "mail_refused")
