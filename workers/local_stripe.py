"""A Stripe to try things out with, on this machine: `localstripe`, and in front of it what it lacks of Stripe.

`localstripe` is somebody else's server (GPL). It runs as a process of its own, is spoken to over HTTP, and is never
imported. The front stands between it and our provider. It keeps what was asked, can lose or replace an answer, and
makes up for these differences from Stripe, none of which the provider is to know:

- Idempotency keys mean nothing there. The front answers the same key the same, and refuses it for another request.
- Parameters it does not know are errors. The front keeps `description`, `setup_future_usage` and
  `allowed_payment_method_types` to itself.
- Errors are poor: no `resource_missing`, no `card_error`, no `decline_code`, no payment in a decline. The front adds
  them, the decline code by Stripe's table of test cards. There, most of those cards are only declined when they are
  attached to a customer; the front has them declined when they are charged.
- `latest_charge` is an object there, and `amount_received` is missing. The front says what Stripe says.

What remains different: a payment that was declined once stays so, while Stripe lets the customer try another card.
Cards need not belong to the customer that they are charged for. A card that wants its owner's authentication gives
`requires_action` to a charge without the owner, and no decline. More can be given back than was paid. Refunds of a
payment that nobody has tried to pay are a server error. Webhooks are sent once, a second later, for payments only.
It listens on all interfaces, writes every change to /tmp/localstripe.pickle, and needs IPv6.
"""

import json
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlencode

from msgspec import Struct
from pydantic import SecretStr

from shared.config import Settings
from shared.errors import NotReady
from workers.stack import Process, free_port

SECRET_KEY: Final = "sk_test_local"  # noqa: S105 - opens nothing
PUBLISHABLE_KEY: Final = "pk_test_local"
WEBHOOK_SECRET: Final = "whsec_local"  # noqa: S105 - signs nothing but what is made up here

GOOD_CARD: Final = "4242424242424242"
CARD_THAT_ASKS: Final = "4000002760003184"  # the bank wants its owner to authenticate every payment
CARD_DECLINED_WHEN_CHARGED: Final = "4000000000000341"
DECLINES: Final[Mapping[str, str]] = {
    CARD_DECLINED_WHEN_CHARGED: "generic_decline",
    "4000000000000002": "generic_decline",
    "4000000000000069": "expired_card",
    "4000000000000119": "processing_error",
    "4000000000009979": "stolen_card",
    "4000000000009987": "lost_card",
    "4000000000009995": "insufficient_funds",
}
KEPT_FROM_IT: Final = ("description", "setup_future_usage", "allowed_payment_method_types")
LEFTOVER: Final = Path("/tmp/localstripe.pickle")  # noqa: S108 - its choice
ANSWER_LIMIT_SECONDS: Final = 30


class Asked(Struct, frozen=True, kw_only=True):
    """A request that came to the front. `params` are those of the body, in the names of the wire."""

    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def idempotency_key(self) -> str | None:
        """The key that came with it."""
        return self.headers.get("Idempotency-Key")


class Answered(Struct, frozen=True, kw_only=True):
    """An answer to a request; a status of None stands for a connection that is cut instead."""

    status: int | None
    body: bytes = b""
    content_type: str = "application/json"


class Fault(Struct, frozen=True, kw_only=True):
    """What happens to one request: an answer of another origin, or none, after it was done or instead."""

    answer: Answered
    done: bool = False


class LocalStripe:
    """A Stripe account, as a context: empty when it is entered, gone when it is left."""

    def __init__(self, folder: Path) -> None:
        """folder: for its log."""
        self.asked: list[Asked] = []
        self.faults: deque[Fault] = deque()
        self._port = free_port("127.0.0.1")
        self._process = Process(
            "localstripe",
            [sys.executable, "-m", "localstripe", "--port", str(self._port), "--from-scratch"],
            environment=dict(os.environ),
            log=folder / "localstripe.log",
            ready=self._is_ready,
        )
        self._front = _Front(self)
        self._turn = threading.Lock()
        self._answers: dict[str, tuple[Asked, Answered]] = {}
        self._declines: dict[str, str] = {}  # by payment method

    def __enter__(self) -> Self:
        if find_spec("localstripe") is None:
            raise NotReady("install requirements/dev.txt, which brings localstripe")
        try:
            self._process.start()
            self._process.wait()
            threading.Thread(target=self._front.serve_forever, daemon=True).start()
        except BaseException:
            self._process.kill()
            self._front.server_close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._front.shutdown()
        self._front.server_close()
        self._process.kill()  # there is nothing to be saved
        with suppress(OSError):
            LEFTOVER.unlink()

    @property
    def api_base(self) -> str:
        """Where its API is."""
        return f"http://127.0.0.1:{self._front.server_port}"

    def settings(self, settings: Settings) -> Settings:
        """These settings, with this account's keys."""
        return settings.model_copy(
            update={
                "stripe_secret_key": SecretStr(SECRET_KEY),
                "stripe_webhook_secret": SecretStr(WEBHOOK_SECRET),
                "stripe_publishable_key": PUBLISHABLE_KEY,
                "stripe_api_base": self.api_base,
            }
        )

    def send_webhooks_to(self, url: str) -> None:
        """From now on, tell this address about payments, signed with WEBHOOK_SECRET."""
        config = json.dumps({"url": url, "secret": WEBHOOK_SECRET}).encode()
        status, _ = self._request("POST", "/_config/webhooks/ours", config, {"Content-Type": "application/json"})
        if status != HTTPStatus.OK:
            raise NotReady(f"localstripe takes no webhooks: {status}")

    def customer_pays(self, external_payment_id: str, card: str = GOOD_CARD) -> None:
        """The browser's part of a checkout. How it went is for the provider to say.

        card: a number of Stripe's test cards, or one of DECLINES.
        """
        number = {"card[number]": card, "card[exp_month]": "12", "card[exp_year]": "2099", "card[cvc]": "123"}
        method = self._post("/v1/payment_methods", {"type": "card", **number})["id"]
        self._post(f"/v1/payment_intents/{external_payment_id}", {"payment_method": method})
        self._post(f"/v1/payment_intents/{external_payment_id}/confirm", {})

    def customer_authenticates(self, external_payment_id: str, *, succeeds: bool = True) -> None:
        """The answer to the bank's question after a payment with CARD_THAT_ASKS."""
        path = f"/v1/payment_intents/{external_payment_id}"
        secret = self._json("GET", path)["client_secret"]
        self._post(f"{path}/_authenticate", {"client_secret": secret, "success": str(succeeds).lower()})

    def cancel(self, external_payment_id: str) -> None:
        """What somebody may do in Stripe's dashboard: give a payment up for good."""
        self._post(f"/v1/payment_intents/{external_payment_id}/cancel", {})

    def lose_next_answer(self) -> None:
        """Do what is asked next, and cut the connection instead of answering."""
        self.faults.append(Fault(answer=Answered(status=None), done=True))

    def answer_next(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """Answer the next request so, without doing what it asks."""
        self.faults.append(Fault(answer=Answered(status=status, body=body, content_type=content_type)))

    def answer(self, asked: Asked) -> Answered:
        """What the front answers; one request at a time, which is what a key needs."""
        with self._turn:
            self.asked.append(asked)
            fault = self.faults.popleft() if self.faults else None
            if fault is not None and not fault.done:
                return fault.answer
            answer = self._answer_once(asked)
            return answer if fault is None else fault.answer

    def _answer_once(self, asked: Asked) -> Answered:
        key = asked.idempotency_key
        if key is None or asked.method != "POST":
            return self._forward(asked)
        if key in self._answers:
            first, answer = self._answers[key]
            same = (first.path, first.params) == (asked.path, asked.params)
            return answer if same else _refused(HTTPStatus.BAD_REQUEST, type="idempotency_error")
        answer = self._forward(asked)
        if answer.status in {HTTPStatus.OK, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.INTERNAL_SERVER_ERROR}:
            self._answers[key] = (asked, answer)  # Stripe keeps what it did, and not what it could not read
        return answer

    def _forward(self, asked: Asked) -> Answered:
        params = {name: value for name, value in asked.params.items() if name.partition("[")[0] not in KEPT_FROM_IT}
        card = params.get("card[number]", "")
        if card in DECLINES:
            params["card[number]"] = CARD_DECLINED_WHEN_CHARGED
        status, body = self._request(
            asked.method,
            asked.path,
            urlencode(params).encode(),
            {
                "Authorization": asked.headers.get("Authorization", ""),
                "Content-Type": "application/x-www-form-urlencoded",
            },
        )
        try:
            document = json.loads(body)
        except ValueError:
            return Answered(status=status, body=body, content_type="text/plain")
        if card in DECLINES and status == HTTPStatus.OK:
            self._declines[document["id"]] = DECLINES[card]
        return Answered(status=status, body=json.dumps(self._completed(status, document)).encode())

    def _completed(self, status: int, document: dict[str, Any]) -> dict[str, Any]:
        """An answer of localstripe as Stripe would have given it."""
        if document.get("object") == "payment_intent":
            self._complete_payment(document)
        error = document.get("error")
        if status == HTTPStatus.NOT_FOUND and error:
            error["code"] = "resource_missing"
        if status == HTTPStatus.PAYMENT_REQUIRED and error:
            charge = self._json("GET", f"/v1/charges/{error['charge']}")
            error["type"] = "card_error"
            error["decline_code"] = self._declines.get(charge["payment_method"], "generic_decline")
            error["payment_intent"] = self._json("GET", f"/v1/payment_intents/{charge['payment_intent']}")
            self._complete_payment(error["payment_intent"])
        return document

    def _complete_payment(self, payment: dict[str, Any]) -> None:
        payment["amount_received"] = payment["amount"] if payment["status"] == "succeeded" else 0
        if isinstance(payment["latest_charge"], dict):
            payment["latest_charge"] = payment["latest_charge"]["id"]
        error = payment["last_payment_error"]
        if error and error["code"] == "card_declined":
            error["decline_code"] = self._declines.get(payment["payment_method"], "generic_decline")

    def _post(self, path: str, params: Mapping[str, str]) -> dict[str, Any]:
        """As the browser asks: through the front, but not on record and with no faults."""
        answer = self._forward(Asked(method="POST", path=path, params=params, headers=_AUTHORIZED))
        if answer.status not in {HTTPStatus.OK, HTTPStatus.PAYMENT_REQUIRED}:
            raise NotReady(f"localstripe answered {answer.status} to {path}: {answer.body.decode()}")
        return dict(json.loads(answer.body))

    def _json(self, method: str, path: str) -> dict[str, Any]:
        return dict(json.loads(self._request(method, path, b"", _AUTHORIZED)[1]))

    def _request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_LIMIT_SECONDS)
        try:
            connection.request(method, path, body or None, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _is_ready(self) -> bool:
        with suppress(OSError, HTTPException):
            return self._request("GET", "/v1/customers", b"", _AUTHORIZED)[0] == HTTPStatus.OK
        return False


_AUTHORIZED: Final = {"Authorization": f"Bearer {SECRET_KEY}", "Content-Type": "application/x-www-form-urlencoded"}


def _refused(status: HTTPStatus, **members: str) -> Answered:
    return Answered(status=status, body=json.dumps({"error": members}).encode())


class _Front(ThreadingHTTPServer):
    """The front's socket, on loopback."""

    daemon_threads = True
    request_queue_size = 128  # many threads may knock at once, on a busy machine

    def __init__(self, owner: LocalStripe) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner = owner


class _Handler(BaseHTTPRequestHandler):
    """One connection to the front."""

    server: _Front
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        params = dict(parse_qsl(self.rfile.read(length).decode(), keep_blank_values=True))
        asked = Asked(method=self.command, path=self.path, params=params, headers=dict(self.headers.items()))
        try:
            answer = self.server.owner.answer(asked)
        except (OSError, HTTPException):  # localstripe was stopped, or sleeps
            answer = Answered(status=None)
        if answer.status is None:
            self.close_connection = True
            return
        with suppress(OSError):
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing; `asked` knows."""
