"""The demo: real accounts live a billing life over HTTP, on the whole system as real processes.

It is a customer of the public API and knows nothing else, so it doubles as an example of how to use it.
Some accounts live on the wall clock, beside beat; others on test clocks, where months pass in a
moment. No clock is patched and nothing is waited for that cannot be asked about.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final, TypeVar

import httpx
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from shared.clock import monotonic
from shared.config import Settings
from shared.db import checks
from shared.db.engine import Database
from shared.embedded import servers
from shared.errors import BillingError
from shared.ids import new_id
from workers.local_stripe import LocalStripe
from workers.stack import Stack, interruptible
from workers.up import prepare

T = TypeVar("T")

PATIENCE_SECONDS: Final = 30
PASSWORD: Final = "a long passphrase for the demo"  # noqa: S105 - of accounts that the demo makes for itself
START: Final = "2026-01-31T09:00:00Z"
ZONE: Final = "Europe/Berlin"
STATEMENT_COLUMNS: Final = (
    "iban,booked_on,value_on,amount,currency,payer_name,payer_iban,reference,remittance,transaction_id"
)


class DemoFailed(BillingError):
    """A step did not end as it should."""

    code = "demo_failed"


class Client:
    """One principal's view of the API. A 202 is followed to its end before the call returns."""

    def __init__(self, base_url: str) -> None:
        self._http = httpx.Client(base_url=f"{base_url}/api/v1", timeout=10)

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def sign_up(self, name: str, *, test_clock_id: str | None = None) -> dict[str, Any]:
        """Create an account and sign in as its owner; what the signup operation answered."""
        email = f"{name.lower()}-{new_id().hex[-12:]}@example.com"
        body = {"account_name": name, "email": email, "password": PASSWORD, "time_zone": ZONE}
        if test_clock_id is not None:
            body["test_clock_id"] = test_clock_id
        result = self.post("/signup", body)
        self.log_in("/auth/login", email, PASSWORD)
        return result

    def log_in(self, path: str, email: str, password: str) -> None:
        """Present the credentials, and the access token from then on."""
        tokens = self.post(path, {"email": email, "password": password})
        self._http.headers["Authorization"] = f"Bearer {tokens['access_token']}"

    def get(self, path: str, **params: str) -> dict[str, Any]:
        """The document at `path`."""
        return self._answer(self._http.get(path, params=params))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer; for work that is accepted, the result of its operation."""
        response = self._http.post(path, json=body, headers={"Idempotency-Key": new_id().hex})
        answer = self._answer(response)
        return self._result(response, answer) if response.status_code == httpx.codes.ACCEPTED else answer

    def upload(self, path: str, content: bytes, media_type: str, **params: str) -> dict[str, Any]:
        """The result of the work that a file starts."""
        response = self._http.post(path, content=content, params=params, headers={"Content-Type": media_type})
        return self._result(response, self._answer(response))

    @property
    def headers(self) -> dict[str, str]:
        """What whoever acts for this principal sends."""
        return {"Authorization": self._http.headers["Authorization"]}

    def outcome(self, path: str, body: dict[str, Any]) -> str:
        """How accepted work ends: `succeeded`, or the code of the problem."""
        response = self._http.post(path, json=body, headers={"Idempotency-Key": new_id().hex})
        operation = self._finished(response, self._answer(response))
        return "succeeded" if operation["status"] == "succeeded" else str(operation["problem"]["code"])

    def refused(self, path: str, body: dict[str, Any]) -> str:
        """The problem code with which the API refuses this."""
        response = self._http.post(path, json=body, headers={"Idempotency-Key": new_id().hex})
        if response.is_success:
            raise DemoFailed(f"POST {path} should have been refused, and answered {response.status_code}")
        return str(response.json()["code"])

    def _result(self, response: httpx.Response, accepted: dict[str, Any]) -> dict[str, Any]:
        operation = self._finished(response, accepted)
        if operation["status"] != "succeeded":
            raise DemoFailed(f"{operation['kind']} was refused: {operation['problem']}")
        result: dict[str, Any] = operation["result"]
        return result

    def _finished(self, response: httpx.Response, accepted: dict[str, Any]) -> dict[str, Any]:
        headers = {"X-Poll-Token": accepted["poll_token"]} if accepted.get("poll_token") else {}
        location = httpx.URL(response.headers["Location"])

        def finished() -> dict[str, Any] | None:
            operation = self._answer(
                self._http.get(f"{self._http.base_url.copy_with(path=location.path)}", headers=headers)
            )
            return None if operation["status"] == "pending" else operation

        return eventually(finished, f"operation {accepted['operation_id']} to finish")

    @staticmethod
    def _answer(response: httpx.Response) -> dict[str, Any]:
        if not response.is_success:
            raise DemoFailed(f"{response.request.method} {response.request.url} answered {response.text}")
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer


class Timeline:
    """Prints what happens, step by step, and knows which step it is in."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.step = "setting up"

    @contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        """A group of steps."""
        self._console.print(f"\n[bold]{title}[/]")
        yield

    def says(self, step: str, fact: str = "") -> None:
        """A step is done; the next failure is not its own."""
        self._console.print(f"  [green]✓[/] {step}" + (f" [dim]— {fact}[/]" if fact else ""), soft_wrap=True)

    def begins(self, step: str) -> None:
        """Name the step that is about to be tried."""
        self.step = step


def run_demo(settings: Settings) -> int:
    """Run the whole demo; 0 when every step and every check held, 1 with the failing step named."""
    console = Console()
    timeline = Timeline(console)
    demo_settings = settings.model_copy(
        update={
            "environment": "development",
            "billing_sandbox": True,
            "beat_interval_seconds": 1,
            "api_bind": "127.0.0.1:0",
            "data_dir": settings.data_dir / "demo",
            "signups_per_minute": 100,  # all its customers are at one address
            "login_attempts_per_minute": 100,
            "anonymous_requests_per_minute": 1_000,
        }
    )
    started = monotonic()
    try:
        with _stripe(demo_settings) as stripe, _running_system(demo_settings, console, stripe) as (stack, admin):
            _card_customer(stack.url, timeline)
            _stripe_customer(stack.url, admin, stripe, timeline)
            _bank_transfer_customer(stack.url, admin, timeline)
            _bank_statement(stack.url, admin, timeline)
            _expired_trial(stack.url, admin, timeline)
            _month_ends(stack.url, admin, timeline)
            _check(stack.settings, timeline)
    except (BillingError, httpx.HTTPError, KeyError) as error:
        console.print(f"\n[bold red]The demo failed while {timeline.step}:[/] {error!r}")
        return 1
    console.print(
        f"\n[bold green]Done[/] in {monotonic() - started:.0f} s. Next: `make up`, and the tour in README.md."
    )
    return 0


@contextmanager
def _stripe(settings: Settings) -> Iterator[LocalStripe | None]:
    """A Stripe on this machine, where localstripe is installed, as it is for development."""
    if find_spec("localstripe") is None:
        yield None
        return
    logs = settings.data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with LocalStripe(logs) as stripe:
        yield stripe


@contextmanager
def _running_system(settings: Settings, console: Console, stripe: LocalStripe | None) -> Iterator[tuple[Stack, Client]]:
    """The whole system, with a display of its setting up, and an admin who has signed in."""
    email, password = f"admin-{new_id().hex[-12:]}@example.com", secrets.token_urlsafe(16)
    progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console)
    task = progress.add_task("starting PostgreSQL and the broker")
    progress.start()
    try:
        with interruptible(), servers(settings) as running:
            progress.update(task, description="migrating the database")
            prepare(running, email, password)
            progress.update(task, description="starting API, workers, beat and relay")
            paid_by_card = running if stripe is None else stripe.settings(running)
            with Stack(
                paid_by_card, on_ready=lambda name: progress.console.print(f"  [dim]{name} is ready[/]")
            ) as stack:
                progress.stop()
                if stripe is not None:
                    stripe.send_webhooks_to(f"{stack.url}/api/v1/webhooks/stripe")
                admin = Client(stack.url)
                admin.log_in("/admin/auth/login", email, password)
                yield stack, admin
    finally:
        progress.stop()


def _card_customer(url: str, timeline: Timeline) -> None:
    with timeline.chapter("Ada signs up, spends credits and pays by card (wall clock)"):
        ada = Client(url)
        timeline.begins("Ada signs up")
        signed_up = ada.sign_up("Ada")
        _expect(signed_up["plan"], "free-trial")
        timeline.says(
            "signed up", f"accepted with 202, done by a worker: {signed_up['credits']} trial credits for 14 days"
        )

        timeline.begins("Ada consumes credits")
        ada.post("/credits/consume", {"amount": 120, "reason": "a call to a model"})
        balance = ada.get("/credits")
        _expect(balance["available_credits"], 1_880)
        timeline.says("consumed 120 credits", f"{balance['available_credits']} available")

        timeline.begins("Ada holds and captures credits")
        hold = ada.post("/credits/holds", {"amount": 50})
        ada.post(f"/credits/holds/{hold['id']}/capture", {"amount": 30})
        _expect(ada.get("/credits")["available_credits"], 1_850)
        timeline.says("held 50 before a call, captured 30 after it", "the other 20 are free again")

        timeline.begins("Ada pays by card")
        invoice = ada.post("/invoices", {"plan": "starter", "payment_method": "sandbox"})
        _pay(ada, invoice["invoice_id"])
        _expect(ada.get("/account")["status"], "active")
        timeline.says("paid USD 89.00 for Starter", "the provider was asked, the invoice is paid, the plan is active")
        _expect(ada.get("/credits")["available_credits"], 2_850)
        timeline.says("1,000 credits seeded", "and the trial's credits keep their own expiry")

        timeline.begins("beat releases a hold that expired")
        hold = ada.post("/credits/holds", {"amount": 10, "ttl_seconds": 1})
        eventually(
            lambda: ada.get(f"/credits/holds/{hold['id']}")["status"] == "expired" or None, "beat to release the hold"
        )
        timeline.says("a hold of one second expired", "a beat job released it, nobody asked")


def _stripe_customer(url: str, admin: Client, stripe: LocalStripe | None, timeline: Timeline) -> None:
    with timeline.chapter("Eve pays by card at Stripe, and leaves the card for renewals (test clock)"):
        if stripe is None:
            timeline.says("skipped", "localstripe, a Stripe on this machine, comes with requirements/dev.txt")
            return
        timeline.begins("Eve checks out")
        clock = admin.post("/admin/test-clocks", {"name": "Eve's", "now_at": START})
        eve = Client(url)
        eve.sign_up("Eve", test_clock_id=clock["id"])
        invoice_id = eve.post("/invoices", {"plan": "starter", "payment_method": "stripe"})["invoice_id"]
        begun = eve.post(f"/invoices/{invoice_id}/checkout", {"save_payment_method": True})
        timeline.says("checked out", f"her browser gets a client secret for {begun['external_payment_id']}")

        timeline.begins("Eve's payment is told by webhook")
        stripe.customer_pays(begun["external_payment_id"])
        eventually(lambda: _is_paid(eve, invoice_id), "Stripe's webhook to settle the invoice")
        timeline.says(
            "paid", "the card never came here; Stripe's signed webhook had it confirmed, nobody asked for that"
        )

        timeline.begins("Eve's saved card pays the renewal")
        admin.post(f"/admin/test-clocks/{clock['id']}/advance", {"to": "2026-03-01T00:00:00Z"})
        renewal = next(item for item in eve.get("/invoices")["items"] if item["id"] != invoice_id)
        eventually(lambda: _is_paid(eve, renewal["id"]), "a worker to charge the saved card")
        _expect(eve.get("/account")["status"], "active")
        timeline.says("renewed on 28 February", "a worker charged the saved card, without Eve")


def _is_paid(customer: Client, invoice_id: str) -> bool | None:
    return customer.get(f"/invoices/{invoice_id}")["status"] == "paid" or None


def _bank_transfer_customer(url: str, admin: Client, timeline: Timeline) -> None:
    with timeline.chapter("Bob pays by bank transfer, an admin approves (wall clock)"):
        bob = Client(url)
        timeline.begins("Bob orders by bank transfer")
        bob.sign_up("Bob")
        opened = bob.post("/invoices", {"plan": "growth", "payment_method": "bank_transfer"})
        invoice = bob.get(f"/invoices/{opened['invoice_id']}")
        timeline.says(f"invoice {invoice['number']} over USD 139.00", f"creditor reference {invoice['reference']}")

        timeline.begins("Bob submits the transfer")
        submitted = bob.post(
            "/bank-transfers", {"invoice_id": opened["invoice_id"], "payer_name": "Bob", "note": "sent today"}
        )
        pending = admin.get("/admin/bank-transfers", status="pending")["items"]
        _expect(submitted["bank_transfer_id"] in {item["id"] for item in pending}, expected=True)
        timeline.says("submitted", "an admin sees it among the pending ones")

        timeline.begins("an admin approves the transfer")
        decision = f"/admin/bank-transfers/{submitted['bank_transfer_id']}"
        admin.post(
            f"{decision}/approve",
            {
                "amount_minor": invoice["amount_minor"],
                "currency": invoice["currency"],
                "value_on": "2026-02-02",
                "bank_transaction_id": f"BANK-{new_id().hex[-12:]}",
            },
        )
        _expect(bob.get("/account")["status"], "active")
        timeline.says("approved", "the account is active on Growth with 2,000 more credits")


def _bank_statement(url: str, admin: Client, timeline: Timeline) -> None:
    with timeline.chapter("Fay's transfer stands on the bank's statement (wall clock)"):
        timeline.begins("Fay announces a transfer")
        fay = Client(url)
        fay.sign_up("Fay")
        opened = fay.post("/invoices", {"plan": "starter", "payment_method": "bank_transfer"})
        invoice = fay.get(f"/invoices/{opened['invoice_id']}")
        fay.post("/bank-transfers", {"invoice_id": invoice["id"], "payer_name": "Fay"})
        timeline.says(f"announced USD 89.00 with the reference {invoice['reference']}")

        timeline.begins("an admin hands the statement in")
        iban, day = invoice["payment_instructions"]["iban"], "2026-02-03"
        entries = (
            f"{iban},{day},{day},89.00,USD,Fay,,{invoice['reference']},,{new_id().hex}",
            f"{iban},{day},{day},42.00,USD,Somebody,,,thank you,{new_id().hex}",
            f"{iban},{day},{day},-4.50,USD,,,,account fee,{new_id().hex}",
        )
        statement = "\n".join((STATEMENT_COLUMNS, *entries)).encode()
        imported = admin.upload("/admin/bank-statements", statement, "text/csv", format="csv")
        _expect((imported["new"], imported["settling"], imported["unapplied"]), (3, 1, 1))
        eventually(lambda: _is_paid(fay, invoice["id"]), "the statement to settle the invoice")
        _expect(fay.get("/account")["status"], "active")
        timeline.says("statement imported", "Fay's invoice is paid and her transfer approved, nobody typed anything")
        timeline.says("USD 42.00 of somebody wait on the list of unapplied money", "until an admin has decided")
        again = admin.upload("/admin/bank-statements", statement, "text/csv", format="csv")
        _expect((again["new"], again["settling"]), (0, 0))
        timeline.says("the same file again changes nothing")


def _expired_trial(url: str, admin: Client, timeline: Timeline) -> None:
    with timeline.chapter("Cleo never pays (test clock)"):
        timeline.begins("a trial expires")
        clock = admin.post("/admin/test-clocks", {"name": "Cleo's", "now_at": START})
        cleo = Client(url)
        cleo.sign_up("Cleo", test_clock_id=clock["id"])
        ends_at = cleo.get("/subscription")["trial_ends_at"]
        timeline.says(f"signed up on a clock that stands at {START}", f"trial until {ends_at}")
        admin.post(f"/admin/test-clocks/{clock['id']}/advance", {"to": "2026-02-14T09:00:00Z"})
        account = cleo.get("/account")
        _expect(account["status"], "suspended")
        timeline.says("fourteen days pass", f"suspended, reason {account['status_reason']}")
        _expect(cleo.refused("/credits/consume", {"amount": 1}), "account_suspended")
        timeline.says("consuming is refused", "reading and paying are not")


def _month_ends(url: str, admin: Client, timeline: Timeline) -> None:
    with timeline.chapter("Dan renews across month ends (test clock, Berlin time)"):
        timeline.begins("Dan starts on 31 January")
        clock = admin.post("/admin/test-clocks", {"name": "Dan's", "now_at": START})
        dan = Client(url)
        dan.sign_up("Dan", test_clock_id=clock["id"])
        _pay(dan, dan.post("/invoices", {"plan": "scale", "payment_method": "sandbox"})["invoice_id"])
        timeline.says("paid for Scale on 31 January, 10:00 in Berlin")

        for advance_to, now_is in (("2026-02-28T10:00:00Z", "28 February"), ("2026-03-31T10:00:00Z", "31 March")):
            timeline.begins(f"Dan renews on {now_is}")
            admin.post(f"/admin/test-clocks/{clock['id']}/advance", {"to": advance_to})
            _expect(dan.get("/account")["status"], "past_due")
            owed = next(item for item in dan.get("/invoices")["items"] if item["status"] == "open")
            _pay(dan, owed["id"])
            _expect(dan.get("/account")["status"], "active")
            timeline.says(f"renewed on {now_is}", "invoice opened at the boundary and paid within grace: same dates")
        periods = dan.get("/subscription")["periods"]
        _expect(
            [period["starts_at"] for period in sorted(periods, key=lambda period: str(period["starts_at"]))],
            ["2026-01-31T09:00:00Z", "2026-02-28T09:00:00Z", "2026-03-31T08:00:00Z"],
        )
        timeline.says("31 Jan → 28 Feb → 31 Mar, always 10:00 in Berlin", "each period opens where the last one ended")


def _check(settings: Settings, timeline: Timeline) -> None:
    with timeline.chapter("The books"):
        timeline.begins("checking every invariant")
        database = Database(str(settings.database_url), application_name="billing-demo")
        with database.transaction() as tx:
            findings = checks.run_checks(tx)
        database.dispose()
        _expect(findings, [])
        timeline.says(f"all {len(checks.CHECKS)} invariants hold", "`python -m workers check` asks the same questions")


def _pay(customer: Client, invoice_id: str) -> None:
    charge = customer.post("/sandbox/payments", {"invoice_id": invoice_id, "outcome": "succeeded"})
    customer.post(
        "/payments",
        {
            "invoice_id": invoice_id,
            "provider": "sandbox",
            "external_payment_id": charge["external_payment_id"],
        },
    )


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise DemoFailed(f"expected {expected!r}, found {found!r}")


def eventually(ask: Callable[[], T | None], what: str) -> T:
    """What `ask` answers as soon as it is not None; asked ever less often, since requests are counted."""
    deadline = monotonic() + PATIENCE_SECONDS
    wait_seconds = 0.05
    while (answer := ask()) is None:
        if monotonic() > deadline:
            raise DemoFailed(f"waited {PATIENCE_SECONDS} s in vain for {what}")
        time.sleep(wait_seconds)
        wait_seconds = min(1.0, 1.5 * wait_seconds)
    return answer
