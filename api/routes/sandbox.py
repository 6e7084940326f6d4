"""The sandbox: pretend payments and test clocks. These routes exist only where BILLING_SANDBOX=1."""

from http import HTTPStatus

from api import schemas
from api.accept import Accepted, accept
from api.access import ADMIN, Admin, Customer, Permission, customer
from api.routing import ACCEPTED, PREFIX, Answer, Routes
from api.schemas import SandboxOutcome, SandboxPaymentDocument, TestClockDocument
from shared.db import invoices, payments, test_clocks
from shared.db.engine import Tx
from shared.domain.account import Action
from shared.domain.operation import OperationKind
from shared.domain.requests import AdvanceTestClock
from shared.ids import new_id

routes = Routes("sandbox", about="Pretend payments and test clocks; never in production.")


@routes.handle(
    "POST",
    "/sandbox/payments",
    needs=customer(Permission.BILLING_PAY, Action.PAY),
    answer=SandboxPaymentDocument,
    status=HTTPStatus.CREATED,
)
def pay_in_sandbox(tx: Tx, principal: Customer, body: schemas.SandboxOutcomeBody) -> SandboxPaymentDocument:
    """Pay an invoice at the pretend provider, or fail to; have it confirmed at `/payments` then."""
    external_payment_id = f"sandbox_{new_id().hex}"
    payments.create_in_sandbox(
        tx,
        external_payment_id=external_payment_id,
        invoice=invoices.get(tx, principal.account_id, body.invoice_id),
        succeeded=body.outcome is SandboxOutcome.SUCCEEDED,
        saves_card=body.saves_card,
    )
    return SandboxPaymentDocument(external_payment_id=external_payment_id, outcome=body.outcome)


@routes.handle("POST", "/admin/test-clocks", needs=ADMIN, answer=TestClockDocument, status=HTTPStatus.CREATED)
def create_test_clock(tx: Tx, body: schemas.TestClockBody) -> Answer:
    """Make a clock; accounts that sign up on it live in its time."""
    test_clock_id = new_id()
    test_clocks.create(tx, test_clock_id=test_clock_id, name=body.name, now_at=body.now_at)
    document = TestClockDocument.of(test_clocks.get(tx, test_clock_id))
    return Answer(body=document, location=f"{PREFIX}/admin/test-clocks/{test_clock_id}")


@routes.handle("GET", "/admin/test-clocks/<uuid:test_clock_id>", needs=ADMIN, answer=TestClockDocument)
def read_test_clock(tx: Tx, path: schemas.TestClockPath) -> TestClockDocument:
    """Where a clock stands."""
    return TestClockDocument.of(test_clocks.get(tx, path.test_clock_id))


@routes.handle("POST", "/admin/test-clocks/<uuid:test_clock_id>/advance", needs=ADMIN, answer=ACCEPTED)
def advance_test_clock(
    tx: Tx,
    principal: Admin,
    path: schemas.TestClockPath,
    header: schemas.OptionalKey,
    body: schemas.AdvanceBody,
) -> Accepted:
    """Let time pass for the accounts on a clock; forward only."""
    test_clocks.instant(tx, path.test_clock_id)
    return accept(
        tx,
        OperationKind.ADVANCE_TEST_CLOCK,
        AdvanceTestClock(test_clock_id=path.test_clock_id, to=body.to),
        principal=principal,
        account_id=None,
        body=body,
        key=header.idempotency_key,
    )
