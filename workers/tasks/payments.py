"""Open invoices, confirm and record payments."""

from shared.domain.operation import OperationKind
from shared.domain.payment import ProviderPayment
from shared.domain.requests import ConfirmPayment, OpenInvoice, RecordPayment
from shared.providers import provider_for
from shared.usecases import confirm_payment, open_invoice, record_payment
from workers.runtime import runtime
from workers.task import operation_task, two_step_operation_task


def ask_provider(request: ConfirmPayment) -> ProviderPayment | None:
    """What the provider knows of the payment. Raises ProviderUnavailable."""
    provider = provider_for(request.provider, runtime().settings, runtime().database)
    return provider.retrieve(request.external_payment_id)


open_invoice_task = operation_task(OperationKind.OPEN_INVOICE, OpenInvoice, open_invoice.open_invoice)
record_payment_task = operation_task(OperationKind.RECORD_PAYMENT, RecordPayment, record_payment.record_payment)
confirm_payment_task = two_step_operation_task(
    OperationKind.CONFIRM_PAYMENT,
    ConfirmPayment,
    record=confirm_payment.record_intent,
    ask=ask_provider,
    complete=confirm_payment.settle_confirmed,
)
