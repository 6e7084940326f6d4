"""Stripe, through its official library: which objects stand for our words, and which failures for which outcome.

A payment is a PaymentIntent of cards, created with the ids of account and invoice in its metadata. Amounts are
Stripe's on the wire and ours inside. What the provider answered is a value or ProviderRefused; everything that left
us without an answer is ProviderDown, among it whatever cannot be read: a proxy's page is never taken for a no.

The library is not asked to repeat anything: operations are repeated as a whole, with the same idempotency keys.
It keeps a session for each thread, so one provider serves all threads of a process. The child of a fork must not use
its parent's connections; `shared.providers.provider_for` sees to that.

Source: docs/rules.md, "Payments", and docs/adr/0021-stripe-as-a-provider.md.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import msgspec
import stripe
import structlog
from msgspec import Struct
from pydantic import SecretStr

from shared.domain.payment import (
    ChargeRequest,
    Checkout,
    CheckoutRequest,
    ProviderEvent,
    ProviderEventKind,
    ProviderPayment,
    ProviderRefund,
    ProviderStatus,
    RefundRequest,
)
from shared.errors import ProviderDown, ProviderRefused, ProviderUnavailable, WebhookInvalid

if TYPE_CHECKING:  # at run time it would load what every request of the API may hold
    from stripe.params import PaymentIntentCreateParams

PAYMENT_ID: Final = re.compile(r"pi_\w{1,250}", re.ASCII)
REFUND_ID: Final = re.compile(r"\w{1,250}", re.ASCII)  # `re_…`, and `pyr_…` for some methods
CONNECT_SECONDS_MAX: Final = 3.0
SIGNATURE_SECONDS_MAX: Final = 300
PAGE: Final = 100

# Stripe's smallest unit is ISO 4217's, but for these: https://docs.stripe.com/currencies. So many of Stripe's make
# one of ours; below 1 it is the other way round.
UNITS: Final[Mapping[str, tuple[int, int]]] = {"ISK": (100, 1), "UGX": (100, 1), "MGA": (1, 100)}

# Refusals that are about this installation and not about what was asked: nobody's answer, and an operator's to repair.
INSTALLATION: Final = frozenset(
    {
        "account_invalid",
        "api_key_expired",
        "livemode_mismatch",
        "parameter_unknown",
        "platform_api_key_expired",
        "secret_key_required",
        "testmode_charges_only",
        "tls_version_unsupported",
    }
)

# What tells us to ask about a payment or a refund. All else is none of our business, be it new or not.
EVENT_KINDS: Final[Mapping[str, ProviderEventKind]] = {
    "payment_intent.succeeded": ProviderEventKind.PAYMENT,
    "payment_intent.payment_failed": ProviderEventKind.PAYMENT,
    "payment_intent.canceled": ProviderEventKind.PAYMENT,
    "charge.refunded": ProviderEventKind.REFUND,
    "charge.refund.updated": ProviderEventKind.REFUND,
    "refund.created": ProviderEventKind.REFUND,
    "refund.updated": ProviderEventKind.REFUND,
    "refund.failed": ProviderEventKind.REFUND,
}
REFUND_STATUSES: Final[Mapping[str, ProviderStatus]] = {
    "succeeded": ProviderStatus.SUCCEEDED,
    "failed": ProviderStatus.FAILED,
    "canceled": ProviderStatus.FAILED,
}
NEEDS_CUSTOMER: Final = "authentication_required"
MISSING: Final = "resource_missing"

# Bodies hold secrets of checkouts and addresses of customers. The library logs them, and reports on its host.
logging.getLogger("stripe").setLevel(logging.WARNING)
stripe.enable_telemetry = False

log = structlog.get_logger(__name__)


class PaymentError(Struct):
    """Why a try to pay came to nothing."""

    code: str | None = None
    decline_code: str | None = None


class Intent(Struct):
    """A PaymentIntent, as far as we read it."""

    id: str
    status: str
    amount: int
    currency: str
    amount_received: int | None = None
    client_secret: str | None = None
    customer: str | None = None
    payment_method: str | None = None
    last_payment_error: PaymentError | None = None
    metadata: dict[str, Any] | None = None


class Decline(PaymentError):
    """The `error` of an answer to a charge."""

    payment_intent: Intent | None = None


class Refund(Struct):
    """A Refund, as far as we read it."""

    id: str
    amount: int
    currency: str
    status: str | None = None
    payment_intent: str | None = None
    failure_reason: str | None = None


class Customer(Struct):
    """A Customer, as far as we read it."""

    id: str


class EventData(Struct):
    """What an event is about."""

    object: dict[str, Any]


class Event(Struct):
    """An Event, as far as we read it."""

    id: str
    type: str
    created: int
    data: EventData


Answer = TypeVar("Answer", bound=Struct)


class StripeProvider:
    """One Stripe account; methods as the protocol says.

    timeout_seconds: longest silence while an answer is waited for; connecting takes 3 seconds more at most.
    """

    def __init__(
        self, *, secret_key: SecretStr, webhook_secret: SecretStr | None, api_base: str, timeout_seconds: float
    ) -> None:
        self._webhook_secret = webhook_secret
        self._api = stripe.StripeClient(
            secret_key.get_secret_value(),
            base_addresses={"api": api_base},
            max_network_retries=0,
            http_client=stripe.RequestsClient(timeout=(min(timeout_seconds, CONNECT_SECONDS_MAX), timeout_seconds)),
        ).v1

    def retrieve(self, external_payment_id: str) -> ProviderPayment | None:
        """As the protocol says. What cannot be the id of a PaymentIntent is not asked for."""
        intent = self._intent(external_payment_id)
        return None if intent is None else _payment(intent)

    def customer(self, account_id: UUID, name: str, email: str) -> str:
        """As the protocol says. Name and email come second: a key stands for one request, and they may change."""
        with _translated():
            created = self._api.customers.create(
                {"metadata": {"account_id": str(account_id)}}, {"idempotency_key": f"customer:{account_id}"}
            )
            ref = _read(Customer, created).id
            self._api.customers.update(ref, {"name": name, "email": email})
        return ref

    def checkout(self, request: CheckoutRequest) -> Checkout:
        """As the protocol says. After a cancelled payment, which is final at Stripe, a new one is made."""
        key = f"checkout:{request.invoice_id}"
        if request.continues is not None:
            begun = self._intent(request.continues)
            if begun is not None and _made_for(begun.metadata) == (request.account_id, request.invoice_id):
                if begun.status != "canceled":
                    return _checkout(begun)
                key = f"{key}:after:{begun.id}"
        params = _params(request)
        if request.save_payment_method:
            params["setup_future_usage"] = "off_session"
        with _translated():
            created = self._api.payment_intents.create(params, {"idempotency_key": key})
        return _checkout(_read(Intent, created))

    def charge(self, request: ChargeRequest) -> ProviderPayment:
        """As the protocol says. A card that wants its owner to authenticate is declined, for nobody is there."""
        params = _params(request)
        params |= {"payment_method": request.payment_method_ref, "confirm": True, "off_session": True}
        with _translated():
            try:
                created = self._api.payment_intents.create(params, {"idempotency_key": request.idempotency_key})
            except stripe.CardError as declined:
                return _declined(declined)
        intent = _read(Intent, created)
        if intent.status == "requires_action":
            return _failed(intent, NEEDS_CUSTOMER)
        return _payment(intent)

    def refund(self, request: RefundRequest) -> ProviderRefund:
        """As the protocol says."""
        with _translated():
            created = self._api.refunds.create(
                {
                    "payment_intent": request.external_payment_id,
                    "amount": _to_stripe(request.amount_minor, request.currency),
                },
                {"idempotency_key": request.idempotency_key},
            )
        return _refund(_read(Refund, created))

    def retrieve_refund(self, refund_id: str) -> ProviderRefund | None:
        """As the protocol says."""
        if not REFUND_ID.fullmatch(refund_id):
            return None
        with _translated():
            try:
                found = self._api.refunds.retrieve(refund_id)
            except stripe.InvalidRequestError as error:
                _require_missing(error)
                return None
        return _refund(_read(Refund, found))

    def refunds_of(self, external_payment_id: str) -> list[ProviderRefund]:
        """As the protocol says."""
        if not PAYMENT_ID.fullmatch(external_payment_id):
            return []
        with _translated():
            try:
                page = self._api.refunds.list({"payment_intent": external_payment_id, "limit": PAGE})
                return [_refund(_read(Refund, found)) for found in page.auto_paging_iter()]
            except stripe.InvalidRequestError as error:
                _require_missing(error)
                return []

    def verify_webhook(self, body: bytes, headers: Mapping[str, str]) -> ProviderEvent:
        """As the protocol says. Raises ProviderUnavailable when STRIPE_WEBHOOK_SECRET is not set.

        A signature from the future is genuine all the same: it says that our clock is late.
        """
        if self._webhook_secret is None:
            raise ProviderUnavailable("STRIPE_WEBHOOK_SECRET is not set, so nothing can be verified", provider="stripe")
        signature = next((value for name, value in headers.items() if name.lower() == "stripe-signature"), "")
        if not signature:
            raise WebhookInvalid("the signature is not valid: there is none")
        try:
            stripe.WebhookSignature.verify_header(
                body, signature, self._webhook_secret.get_secret_value(), SIGNATURE_SECONDS_MAX
            )
        except stripe.SignatureVerificationError as error:
            raise WebhookInvalid(f"the signature is not valid: {error.user_message}") from None
        except (UnicodeError, TypeError):  # the library compares and joins what it takes for ASCII
            raise WebhookInvalid("the signature is not valid: neither body nor header may hold such bytes") from None
        try:
            return _event(msgspec.json.decode(body, type=Event))
        except (msgspec.DecodeError, OverflowError, OSError, ValueError):
            raise WebhookInvalid("the body is no event") from None

    def _intent(self, external_payment_id: str) -> Intent | None:
        if not PAYMENT_ID.fullmatch(external_payment_id):
            return None
        with _translated():
            try:
                found = self._api.payment_intents.retrieve(external_payment_id)
            except stripe.InvalidRequestError as error:
                _require_missing(error)
                return None
        return _read(Intent, found)


@contextmanager
def _translated() -> Iterator[None]:
    """Failures of a call to Stripe, as ours. They cite codes and ids, never a body or a header."""
    try:
        yield
    except (stripe.InvalidRequestError, stripe.IdempotencyError, stripe.CardError) as error:
        if error.code in INSTALLATION or (error.http_status == HTTPStatus.NOT_FOUND and error.code != MISSING):
            raise ProviderDown(f"Stripe could not be asked: {_facts(error)}") from None
        reason = error.code or (error.error.type if error.error else None) or "unknown"
        log.warning("provider_refused", reason=reason, status=error.http_status, request_id=error.request_id)
        raise ProviderRefused(f"Stripe refuses this: {reason}", provider="stripe", reason=reason) from None
    except stripe.StripeError as error:
        raise ProviderDown(f"Stripe could not be asked: {_facts(error)}") from None
    except (AttributeError, KeyError, UnicodeDecodeError) as error:  # the library reads an answer of another shape
        raise ProviderDown(f"Stripe's answer cannot be read: {type(error).__name__}") from None


def _require_missing(error: stripe.InvalidRequestError) -> None:
    """Raises ProviderDown unless Stripe says that it has no such object: a bare 404 may come from any proxy."""
    if error.code != MISSING:
        raise ProviderDown(f"Stripe could not be asked: {_facts(error)}")


def _facts(error: stripe.StripeError) -> str:
    cause = type(error.__cause__ or error).__name__
    return f"{cause}, HTTP status {error.http_status}, code {error.code}, request {error.request_id}"


def _read(kind: type[Answer], found: object) -> Answer:
    """An answer of the library's as far as we know it. Raises ProviderDown."""
    try:
        return msgspec.convert(found.to_dict() if isinstance(found, stripe.StripeObject) else found, kind)
    except msgspec.ValidationError as error:
        raise ProviderDown(f"Stripe's answer cannot be read: {error}") from None


def _params(request: CheckoutRequest | ChargeRequest) -> "PaymentIntentCreateParams":
    params: PaymentIntentCreateParams = {
        "amount": _to_stripe(request.amount_minor, request.currency),
        "currency": request.currency.lower(),
        "description": f"Invoice {request.invoice_number}",
        "metadata": {"account_id": str(request.account_id), "invoice_id": str(request.invoice_id)},
        "allowed_payment_method_types": ["card"],
    }
    if request.customer_ref is not None:
        params["customer"] = request.customer_ref
    return params


def _payment(intent: Intent) -> ProviderPayment:
    account_id, invoice_id = _made_for(intent.metadata)
    status = _status(intent)
    received = intent.amount_received
    if received is None:
        received = intent.amount if status is ProviderStatus.SUCCEEDED else 0
    error = intent.last_payment_error
    failed = status is ProviderStatus.FAILED and error is not None
    return ProviderPayment(
        external_payment_id=intent.id,
        status=status,
        amount_minor=_from_stripe(received, intent.currency),
        currency=intent.currency.upper(),
        account_id=account_id,
        invoice_id=invoice_id,
        decline_code=_decline_code(error) if failed else None,
        customer_ref=intent.customer,
        payment_method_ref=intent.payment_method,
    )


def _status(intent: Intent) -> ProviderStatus:
    """A status that is new to us is pending: it can still become anything."""
    match intent.status:
        case "succeeded":
            return ProviderStatus.SUCCEEDED
        case "canceled":
            return ProviderStatus.FAILED
        case "requires_payment_method" if intent.last_payment_error is not None:
            return ProviderStatus.FAILED
        case _:
            return ProviderStatus.PENDING


def _declined(error: stripe.CardError) -> ProviderPayment:
    body = error.json_body if isinstance(error.json_body, dict) else {}
    decline = _read(Decline, body.get("error"))
    if decline.payment_intent is None:
        raise ProviderDown("Stripe's answer cannot be read: a decline without its payment")
    return _failed(decline.payment_intent, _decline_code(decline))


def _failed(intent: Intent, decline_code: str | None) -> ProviderPayment:
    found = _payment(intent)
    return msgspec.structs.replace(found, status=ProviderStatus.FAILED, amount_minor=0, decline_code=decline_code)


def _decline_code(error: PaymentError | None) -> str | None:
    """The bank's reason; `code` alone says no more than `card_declined`, where there is a reason."""
    return None if error is None else error.decline_code or error.code


def _checkout(intent: Intent) -> Checkout:
    if intent.client_secret is None:
        raise ProviderDown("Stripe's answer cannot be read: a payment without its client secret")
    return Checkout(external_payment_id=intent.id, client_secret=intent.client_secret, status=_status(intent))


def _refund(refund: Refund) -> ProviderRefund:
    status = REFUND_STATUSES.get(refund.status or "", ProviderStatus.PENDING)
    return ProviderRefund(
        refund_id=refund.id,
        status=status,
        amount_minor=_from_stripe(refund.amount, refund.currency),
        currency=refund.currency.upper(),
        external_payment_id=refund.payment_intent,
        reason=(refund.failure_reason or refund.status) if status is ProviderStatus.FAILED else None,
    )


def _event(event: Event) -> ProviderEvent:
    """Raises ValueError for an event about a payment without id, or from no year that there is."""
    about = event.data.object
    kind = EVENT_KINDS.get(event.type, ProviderEventKind.OTHER)
    payment_id, refund_id = None, None
    match kind:
        case ProviderEventKind.PAYMENT:
            payment_id = _text(about, "id")
            if payment_id is None:
                raise ValueError(event.type)
        case ProviderEventKind.REFUND:
            payment_id = _text(about, "payment_intent")
            refund_id = _text(about, "id") if about.get("object") == "refund" else None
            if payment_id is None and refund_id is None:
                kind = ProviderEventKind.OTHER  # of a charge without a PaymentIntent, which is none of ours
        case ProviderEventKind.OTHER:
            pass
    account_id, invoice_id = _made_for(about.get("metadata"))
    return ProviderEvent(
        event_id=event.id,
        type=event.type,
        created_at=datetime.fromtimestamp(event.created, UTC),
        kind=kind,
        external_payment_id=payment_id,
        refund_id=refund_id,
        account_id=account_id,
        invoice_id=invoice_id,
    )


def _text(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    return value if isinstance(value, str) and value else None


def _made_for(metadata: object) -> tuple[UUID | None, UUID | None]:
    """Account and invoice. Others that share the Stripe account may write into metadata what they like."""
    found = metadata if isinstance(metadata, dict) else {}
    return _uuid(found.get("account_id")), _uuid(found.get("invoice_id"))


def _uuid(text: object) -> UUID | None:
    try:
        return UUID(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _to_stripe(amount_minor: int, currency: str) -> int:
    """Raises ProviderRefused for a fraction of Stripe's unit."""
    theirs, ours = UNITS.get(currency, (1, 1))
    amount, rest = divmod(amount_minor * theirs, ours)
    if rest:
        raise ProviderRefused(
            f"Stripe takes no fractions of {currency}", provider="stripe", reason="amount_not_representable"
        )
    return amount


def _from_stripe(amount: int, currency: str) -> int:
    """Raises ProviderDown for a fraction of our unit, which Stripe does not take either."""
    theirs, ours = UNITS.get(currency.upper(), (1, 1))
    amount_minor, rest = divmod(amount * ours, theirs)
    if rest:
        raise ProviderDown(f"Stripe's answer cannot be read: {amount} {currency} has fractions")
    return amount_minor
