"""Open invoices, confirm, record and apply payments."""

from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.payment import ProviderPayment
from shared.domain.requests import ApplyPayment, ChargeInvoice, ConfirmPayment, OpenInvoice, RecordPayment
from shared.errors import ProviderDown, ProviderUnavailable
from shared.messages import Job
from shared.providers import Provider, provider_for
from shared.usecases import (
    apply_payment,
    ask_providers,
    charge_invoice,
    confirm_payment,
    open_invoice,
    payment_refused,
    record_payment,
)
from workers.runtime import runtime
from workers.task import job_task, operation_task, two_step_operation_task


def ask_provider(request: ConfirmPayment) -> ProviderPayment | None:
    """What the provider knows of the payment. Raises ProviderUnavailable."""
    return _provider(request.provider).retrieve(request.external_payment_id)


def charge(attempt: charge_invoice.Attempt | None) -> charge_invoice.Answer | None:
    """What the provider makes of the attempt; a provider that is not set up (any more) is one that cannot be asked."""
    if attempt is None:
        return None
    try:
        payment = _provider(attempt.provider).charge(attempt.request)
    except ProviderUnavailable as error:
        raise ProviderDown(error.detail) from error
    return charge_invoice.Answer(provider=attempt.provider, payment=payment)


def _provider(method: PaymentMethod) -> Provider:
    return provider_for(method, runtime().settings, runtime().database)


open_invoice_task = operation_task(OperationKind.OPEN_INVOICE, OpenInvoice, open_invoice.open_invoice)
record_payment_task = operation_task(OperationKind.RECORD_PAYMENT, RecordPayment, record_payment.record_payment)
apply_payment_task = operation_task(OperationKind.APPLY_PAYMENT, ApplyPayment, apply_payment.apply_payment)
confirm_payment_task = two_step_operation_task(
    OperationKind.CONFIRM_PAYMENT,
    ConfirmPayment,
    record=confirm_payment.record_intent,
    ask=ask_provider,
    complete=confirm_payment.settle_confirmed,
    refused=payment_refused.payment_refused,
)
charge_invoice_task = two_step_operation_task(
    OperationKind.CHARGE_INVOICE,
    ChargeInvoice,
    record=charge_invoice.record_attempt,
    ask=charge,
    complete=charge_invoice.settle_charged,
    refused=payment_refused.payment_refused,
)
ask_providers_task = job_task(Job.ASK_PROVIDERS, ask_providers.ask_providers)
