"""Give money back, and follow what becomes of it at the provider."""

from shared.clock import utc_now
from shared.domain.invoice import PaymentMethod
from shared.domain.operation import OperationKind
from shared.domain.payment import ProviderRefund
from shared.domain.requests import FollowRefunds, RefundPayment
from shared.errors import ProviderDown, ProviderRefused, ProviderUnavailable
from shared.providers import Provider, provider_for
from shared.usecases import follow_refunds, refund_payment
from workers.runtime import runtime
from workers.task import two_step_operation_task


def give_back(intent: refund_payment.Intent) -> ProviderRefund | ProviderRefused | None:
    """What the provider makes of it; None when there is nobody to ask (any more)."""
    if intent.request is None:
        return None
    return refund_payment.give_back(_provider(intent.provider), intent.request, intent, now=utc_now())


def ask_for_refunds(request: FollowRefunds) -> list[ProviderRefund]:
    """All refunds of the payment that the provider knows."""
    return _provider(request.provider).refunds_of(request.external_payment_id)


def _provider(method: PaymentMethod) -> Provider:
    """A provider that is not set up (any more) is one that cannot be asked."""
    try:
        return provider_for(method, runtime().settings, runtime().database)
    except ProviderUnavailable as error:
        raise ProviderDown(error.detail) from error


refund_payment_task = two_step_operation_task(
    OperationKind.REFUND_PAYMENT,
    RefundPayment,
    record=refund_payment.record_refund,
    ask=give_back,
    complete=refund_payment.complete_refund,
)
follow_refunds_task = two_step_operation_task(
    OperationKind.FOLLOW_REFUNDS,
    FollowRefunds,
    record=follow_refunds.note_question,
    ask=ask_for_refunds,
    complete=follow_refunds.follow_refunds,
)
