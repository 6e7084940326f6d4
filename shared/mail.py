"""Mail: how a letter leaves. A server takes it, or, for development, a file keeps it.

A letter may be sent more than once, when the answer of the server gets lost; its Message-ID stays the same.
"""

import smtplib
import ssl
from email.message import EmailMessage
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from shared.config import Settings
from shared.domain.letter import Letter
from shared.errors import MailRefused, ProviderDown

TIMEOUT_SECONDS: Final = 10
SUBMISSION_PORT: Final = 587
SUBMISSION_OVER_TLS_PORT: Final = 465


class Mailer(Protocol):
    """Whoever can send a letter."""

    def send(self, letter: Letter) -> None:
        """Hand it over. Raises MailRefused when it never will be taken, ProviderDown when it may be later."""


class SmtpMailer:
    """Hands letters to a server, over TLS always: from the start, or by STARTTLS before anything is said."""

    def __init__(self, url: str, sender: str, *, context: ssl.SSLContext | None = None) -> None:
        """url: `smtps://user:password@host:port` or `smtp://…`. context: which servers are believed; those of the
        system unless stated."""
        parts = urlsplit(url)
        self._over_tls = parts.scheme == "smtps"
        self._host = parts.hostname or ""
        self._port = parts.port or (SUBMISSION_OVER_TLS_PORT if self._over_tls else SUBMISSION_PORT)
        self._user = unquote(parts.username or "")
        self._password = unquote(parts.password or "")
        self._sender = sender
        self._context = context or ssl.create_default_context()

    def send(self, letter: Letter) -> None:
        """As `Mailer` says."""
        try:
            with self._connected() as server:
                if self._user:
                    server.login(self._user, self._password)
                server.send_message(as_message(letter, self._sender))
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            if all(500 <= code < 600 for code in codes):
                raise MailRefused("the mail server does not take letters to this address") from None
            raise ProviderDown(f"the mail server put the letter off: {codes}") from error
        except smtplib.SMTPNotSupportedError as error:  # STARTTLS, or an address that is not ASCII
            raise ProviderDown(f"the mail server lacks an extension: {error}") from error
        except (smtplib.SMTPException, OSError) as error:
            raise ProviderDown(f"the mail server cannot be reached or refuses: {type(error).__name__}") from error

    def _connected(self) -> smtplib.SMTP:
        if self._over_tls:
            return smtplib.SMTP_SSL(self._host, self._port, timeout=TIMEOUT_SECONDS, context=self._context)
        server = smtplib.SMTP(self._host, self._port, timeout=TIMEOUT_SECONDS)
        try:
            server.starttls(context=self._context)
        except (smtplib.SMTPException, OSError):
            server.close()
            raise
        return server


class FileMailer:
    """Keeps letters as files, one for each, which only their owner reads: for development."""

    def __init__(self, folder: Path, sender: str) -> None:
        self._folder = folder
        self._sender = sender

    def send(self, letter: Letter) -> None:
        """As `Mailer` says."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{letter.id}.eml"
        path.touch(mode=0o600)
        path.write_bytes(bytes(as_message(letter, self._sender)))


def mailer_for(settings: Settings) -> Mailer:
    """By SMTP_URL; without one into files below DATA_DIR."""
    if settings.smtp_url is None:
        return FileMailer(settings.data_dir / "mail", settings.mail_from)
    return SmtpMailer(settings.smtp_url.get_secret_value(), settings.mail_from)


def as_message(letter: Letter, sender: str) -> EmailMessage:
    """The letter with the headers that mail needs. No header can be smuggled in: the library refuses line breaks."""
    message = EmailMessage()
    message["From"] = sender
    message["To"] = letter.to
    message["Subject"] = letter.subject
    message["Message-ID"] = f"<{letter.id}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(letter.text)
    return message
