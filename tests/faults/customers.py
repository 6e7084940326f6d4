"""A load of customers who live their lives over HTTP while faults happen, and who know what must be true at the end.

Each does what a careful client does: it sends a key with whatever it asks for, and asks again under the same key until
it is answered. What it was promised, and what its account must look like in the end, follow from its life alone: no
fault changes either.
"""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

import httpx
from msgspec import Struct

from shared.clock import monotonic
from shared.db.engine import Tx
from shared.ids import new_id

PASSWORD: Final = "a long passphrase for the faults"
AGAIN: Final = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
SUCCEEDED: Final = frozenset({"succeeded"})
TRIAL: Final = 2_000
PLANS: Final = {"starter": 1_000, "growth": 2_000, "scale": 4_000}


class Unanswered(AssertionError):
    """Nobody answered until the customer's patience ended."""


class Promise(Struct, frozen=True, kw_only=True):
    """An operation that was answered with 202. ends: how it may end, `succeeded` or the code of a problem."""

    operation_id: UUID
    what: str
    ends: frozenset[str]


class Patient:
    """A client that asks until it is answered, or until the instant of `monotonic` at which it gives up."""

    def __init__(self, base_url: str, *, give_up_at: float) -> None:
        self._http = httpx.Client(base_url=f"{base_url}/api/v1", timeout=20)
        self._give_up_at = give_up_at
        self.promises: list[Promise] = []

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def log_in(self, path: str, email: str) -> None:
        """Present the credentials, and the access token from then on."""
        tokens = self.ask("POST", path, {"email": email, "password": PASSWORD}).json()
        self._http.headers["Authorization"] = f"Bearer {tokens['access_token']}"

    def get(self, path: str) -> Any:
        """The document at `path`."""
        return self.ask("GET", path).json()

    def do(self, path: str, body: dict[str, Any]) -> Any:
        """What is answered at once."""
        return self.ask("POST", path, body, key=new_id().hex).json()

    def begin(self, path: str, body: dict[str, Any], *, ends: frozenset[str] = SUCCEEDED) -> Callable[[], Any]:
        """Ask for work, and write the promise down; what is returned waits for the operation's end."""
        answer = self.ask("POST", path, body, key=new_id().hex)
        if answer.status_code != HTTPStatus.ACCEPTED:
            raise AssertionError(f"POST {path} was answered {answer.status_code}: {answer.text}")
        accepted = answer.json()
        promise = Promise(operation_id=UUID(accepted["operation_id"]), what=f"POST {path}", ends=ends)
        self.promises.append(promise)
        headers = {"X-Poll-Token": accepted["poll_token"]} if accepted.get("poll_token") else {}
        return lambda: self._end(promise, headers)

    def accomplish(self, path: str, body: dict[str, Any], *, ends: frozenset[str] = SUCCEEDED) -> Any:
        """Ask for work, and return its operation when it has ended."""
        return self.begin(path, body, ends=ends)()

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """The answer, however often it takes to get one. Raises Unanswered, and AssertionError for one that is none."""
        headers = dict(headers or {}) | ({"Idempotency-Key": key} if key is not None else {})
        last = ""
        while monotonic() < self._give_up_at:
            try:
                answer = self._http.request(method, path, json=body, headers=headers)
            except httpx.TransportError as error:
                last = repr(error)
            else:
                if answer.is_success:
                    return answer
                last = f"{answer.status_code} {answer.text}"
                if answer.status_code not in AGAIN:
                    raise AssertionError(f"{method} {path} was answered {last}")
            threading.Event().wait(random.uniform(0.05, 0.3))
        raise Unanswered(f"{method} {path}: {last}")

    def _end(self, promise: Promise, headers: dict[str, str]) -> Any:
        wait_seconds = 0.02
        while True:
            operation = self.ask("GET", f"/operations/{promise.operation_id}", headers=headers).json()
            if operation["status"] != "pending":
                return operation
            if monotonic() > self._give_up_at:
                raise Unanswered(f"{promise.what}: operation {promise.operation_id} is pending")
            threading.Event().wait(wait_seconds)
            wait_seconds = min(0.5, 1.5 * wait_seconds)


@dataclass
class Books:
    """What an account must look like: what a life adds up to, and what the database holds."""

    status: str = "trial"
    plan: str = "free-trial"
    seeded: list[int] = field(default_factory=lambda: [TRIAL])
    consumed: int = 0
    adjusted: int = 0
    payments: list[int] = field(default_factory=list)
    periods: int = 1
    open_holds: int = 0

    def pays(self, plan: str, price_minor: int) -> None:
        """A paid period begins, with its credits."""
        self.status, self.plan = "active", plan
        self.seeded = sorted([*self.seeded, PLANS[plan]])
        self.payments = sorted([*self.payments, price_minor])
        self.periods += 1


READ_BOOKS: Final = """
    SELECT a.status,
           (SELECT p.slug FROM subscriptions s JOIN plans p ON p.id = s.plan_id WHERE s.account_id = a.id
            ORDER BY s.id DESC LIMIT 1) AS plan,
           ARRAY(SELECT t.amount FROM credit_transactions t WHERE t.account_id = a.id AND t.kind = 'seed'
                 ORDER BY t.amount) AS seeded,
           (SELECT coalesce(-sum(t.amount), 0)::bigint FROM credit_transactions t
            WHERE t.account_id = a.id AND t.kind = 'consume') AS consumed,
           (SELECT coalesce(sum(t.amount), 0)::bigint FROM credit_transactions t
            WHERE t.account_id = a.id AND t.kind IN ('adjust', 'reverse')) AS adjusted,
           ARRAY(SELECT p.amount_minor FROM payments p WHERE p.account_id = a.id AND p.status = 'succeeded'
                 ORDER BY p.amount_minor) AS payments,
           (SELECT count(*)::int FROM subscription_periods p WHERE p.account_id = a.id) AS periods,
           (SELECT count(*)::int FROM holds h WHERE h.account_id = a.id AND h.status = 'open') AS open_holds
    FROM accounts a WHERE a.id = %(account_id)s
"""


def read_books(tx: Tx, account_id: UUID) -> Books:
    """An account's, as they are."""
    row = tx.one(READ_BOOKS, account_id=account_id)
    return Books(**row._asdict())


class Customer:
    """Somebody with an account, whose life is a function below."""

    def __init__(self, base_url: str, admin: Patient, dice: random.Random, *, give_up_at: float) -> None:
        self.client = Patient(base_url, give_up_at=give_up_at)
        self.admin = admin
        self.dice = dice
        self.books = Books()
        self.account_id: UUID | None = None
        self.life = ""

    def sign_up(self, **terms: Any) -> None:
        """Make an account, and sign in to it."""
        email = f"{new_id().hex}@example.com"
        signup = {"account_name": "Ada", "email": email, "password": PASSWORD, **terms}
        operation = self.client.accomplish("/signup", signup)
        self.account_id = UUID(operation["result"]["account_id"])
        self.client.log_in("/auth/login", email)

    def consume(self, times: int) -> None:
        """Take a few credits, a few times."""
        for _ in range(times):
            amount = self.dice.randint(1, 20)
            self.client.do("/credits/consume", {"amount": amount})
            self.books.consumed += amount

    def hold(self) -> None:
        """Reserve credits, and take some of them or none."""
        amount = self.dice.randint(2, 20)
        hold = self.client.do("/credits/holds", {"amount": amount})
        if self.dice.random() < 0.5:
            taken = self.dice.randint(1, amount)
            self.client.do(f"/credits/holds/{hold['id']}/capture", {"amount": taken})
            self.books.consumed += taken
        else:
            self.client.do(f"/credits/holds/{hold['id']}/release", {})

    def order(self, plan: str, payment_method: str) -> Any:
        """Check out: the invoice."""
        operation = self.client.accomplish("/invoices", {"plan": plan, "payment_method": payment_method})
        return self.client.get(f"/invoices/{operation['result']['invoice_id']}")

    def pay(self, invoice: Any, plan: str) -> None:
        """Pay at the sandbox, and have it confirmed twice at once, as browsers and back ends do."""
        charge = self.client.do("/sandbox/payments", {"invoice_id": invoice["id"], "outcome": "succeeded"})
        paid = {
            "invoice_id": invoice["id"],
            "provider": "sandbox",
            "external_payment_id": charge["external_payment_id"],
        }
        for wait in [self.client.begin("/payments", paid) for _ in range(2)]:
            wait()
        self.books.pays(plan, invoice["amount_minor"])


def spends(ada: Customer) -> None:
    """Lives on trial credits."""
    ada.sign_up()
    for _ in range(4):
        ada.consume(3)
        ada.hold()


def pays_by_card(ada: Customer) -> None:
    """Tries, pays, goes on spending."""
    ada.sign_up()
    ada.consume(3)
    plan = ada.dice.choice(["starter", "growth", "scale"])
    ada.pay(ada.order(plan, "sandbox"), plan)
    ada.hold()
    ada.consume(3)


def pays_by_transfer(ada: Customer) -> None:
    """Transfers money; one admin approves it while another one rejects it."""
    ada.sign_up()
    invoice = ada.order("growth", "bank_transfer")
    operation = ada.client.accomplish("/bank-transfers", {"invoice_id": invoice["id"], "payer_name": "Ada"})
    decisions = f"/admin/bank-transfers/{operation['result']['bank_transfer_id']}"
    received = {
        "amount_minor": invoice["amount_minor"],
        "currency": invoice["currency"],
        "value_on": "2026-02-02",
        "bank_transaction_id": f"BANK-{new_id().hex}",
    }
    waits = [
        ada.admin.begin(f"{decisions}/approve", received, ends=SUCCEEDED | {"already_rejected"}),
        ada.admin.begin(f"{decisions}/reject", {"reason": "no such money"}, ends=SUCCEEDED | {"already_approved"}),
    ]
    ada.consume(2)
    approval, rejection = [wait()["status"] for wait in waits]
    if (approval == "succeeded") == (rejection == "succeeded"):
        raise AssertionError(f"one decision wins: the approval {approval}, the rejection {rejection}")
    if approval == "succeeded":
        ada.books.pays("growth", invoice["amount_minor"])


def is_given_credits(ada: Customer) -> None:
    """Gets a gift from an admin, who takes a mistake back."""
    ada.sign_up()
    gift = ada.dice.randint(100, 500)
    given = ada.admin.accomplish(
        f"/admin/accounts/{ada.account_id}/credits", {"amount": gift, "reason": "an outage of ours"}
    )
    ada.books.adjusted += gift
    if ada.dice.random() < 0.5:
        seq = max(row["seq"] for row in ada.client.get("/credits/transactions")["items"])
        path = f"/admin/accounts/{ada.account_id}/credits/transactions/{seq}/reverse"
        ada.admin.accomplish(path, {"reason": "the wrong account"})
        ada.books.adjusted -= gift
    ada.consume(4)
    assert given["status"] == "succeeded"


def lives_a_quarter(ada: Customer) -> None:
    """Pays on 31 January, and renews on time twice, on a test clock."""
    clock = ada.admin.do("/admin/test-clocks", {"name": "Ada's", "now_at": "2026-01-31T09:00:00Z"})
    ada.sign_up(test_clock_id=clock["id"])
    ada.pay(ada.order("scale", "sandbox"), "scale")
    for month_end in ("2026-02-28T09:00:00Z", "2026-03-31T09:00:00Z"):
        ada.admin.accomplish(f"/admin/test-clocks/{clock['id']}/advance", {"to": month_end})
        (owed,) = (item for item in ada.client.get("/invoices")["items"] if item["status"] == "open")
        ada.pay(owed, "scale")
    boundaries = sorted(datetime.fromisoformat(p["starts_at"]) for p in ada.client.get("/subscription")["periods"])
    if [at.strftime("%m-%d") for at in boundaries] != ["01-31", "02-28", "03-31"]:
        raise AssertionError(f"periods begin at {boundaries}")
    ada.books.periods = 3  # the trial's had no length: it was paid for at the instant at which it began


def is_alive(ada: Customer) -> None:
    """Signs up."""
    ada.sign_up()


def never_pays(ada: Customer) -> None:
    """Lets the trial run out, on a test clock."""
    clock = ada.admin.do("/admin/test-clocks", {"name": "Ada's", "now_at": "2026-01-31T09:00:00Z"})
    ada.sign_up(test_clock_id=clock["id"])
    ada.consume(2)
    ada.admin.accomplish(f"/admin/test-clocks/{clock['id']}/advance", {"to": "2026-03-01T09:00:00Z"})
    ada.books.status = "suspended"


LIVES: Final[Sequence[Callable[[Customer], None]]] = (
    spends,
    pays_by_card,
    pays_by_transfer,
    is_given_credits,
    lives_a_quarter,
    never_pays,
)


class Load:
    """Customers who live at once, each in a thread of its own: `with Load(...)` lasts until all have lived.

    seed: decides what each does, and in which order the lives begin.
    """

    def __init__(
        self, base_url: str, admin: Patient, *, seed: int, customers: int, give_up_at: float, at_once: int = 6
    ) -> None:
        self._base_url = base_url
        self._admin = admin
        self._give_up_at = give_up_at
        self._dice = random.Random(seed)
        self.customers = [self._customer(LIVES[number % len(LIVES)]) for number in range(customers)]
        self._dice.shuffle(self.customers)
        self._waiting = list(self.customers)
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._live, daemon=True) for _ in range(at_once)]
        self.failures: list[str] = []

    def start(self) -> None:
        """Let them live."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Return when all have lived, or have given up."""
        for thread in self._threads:
            thread.join()
        for client in (self._admin, *(customer.client for customer in self.customers)):
            client.close()

    @property
    def lived(self) -> int:
        """How many have begun their lives."""
        return len(self.customers) - len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether somebody still has something to do."""
        return any(thread.is_alive() for thread in self._threads)

    def promises(self) -> list[Promise]:
        """All that was answered with 202."""
        return [*self._admin.promises, *(p for customer in self.customers for p in customer.client.promises)]

    def wrong_books(self, tx: Tx) -> list[str]:
        """Accounts that do not look as their lives say."""
        wrong = []
        for customer in self.customers:
            if customer.account_id is not None:
                found = read_books(tx, customer.account_id)
                if found != customer.books:
                    wrong.append(f"{customer.life}, account {customer.account_id}: {found}, not {customer.books}")
        return wrong

    def _customer(self, life: Callable[[Customer], None]) -> Customer:
        dice = random.Random(self._dice.random())
        customer = Customer(self._base_url, self._admin, dice, give_up_at=self._give_up_at)
        customer.life = life.__name__
        return customer

    def _next(self) -> Customer | None:
        """Who begins to live now; None when nobody is left."""
        with self._lock:
            return self._waiting.pop() if self._waiting else None

    def _live(self) -> None:
        lives = {life.__name__: life for life in LIVES}
        while (customer := self._next()) is not None:
            try:
                lives[customer.life](customer)
            except Exception as error:  # noqa: BLE001 - told by the test, in the thread that can fail
                self.failures.append(f"{customer.life}: {error!r}")
            finally:
                customer.client.close()


class EndlessLoad(Load):
    """A load whose lives begin one after another, each chosen by the dice, for so many seconds from its start."""

    def __init__(self, base_url: str, admin: Patient, *, seed: int, seconds: float, give_up_at: float) -> None:
        super().__init__(base_url, admin, seed=seed, customers=0, give_up_at=give_up_at)
        self._seconds = seconds
        self._until = 0.0

    def start(self) -> None:
        self._until = monotonic() + self._seconds
        super().start()

    @property
    def is_over(self) -> bool:
        """Whether no more lives begin."""
        return monotonic() > self._until

    def welcome(self) -> Customer:
        """A customer more, who has signed up, and whose books are looked at in the end with all others'."""
        customer = self._one_more(is_alive)
        is_alive(customer)
        return customer

    def _next(self) -> Customer | None:
        return None if self.is_over else self._one_more()

    def _one_more(self, life: Callable[[Customer], None] | None = None) -> Customer:
        with self._lock:
            customer = self._customer(life or self._dice.choice(LIVES))
            self.customers.append(customer)
            return customer
