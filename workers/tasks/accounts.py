"""Sign up, write to those who do or were invited, forget what has run out."""

from shared.clock import utc_now
from shared.domain.letter import Letter
from shared.domain.operation import Operation, OperationKind
from shared.domain.plan import Rules
from shared.domain.requests import SendMail, SignUp
from shared.mail import mailer_for
from shared.messages import Job
from shared.usecases import forget_expired, send_mail, sign_up
from workers.runtime import runtime
from workers.task import Tx, job_task, operation_task, two_step_operation_task


def compose(tx: Tx, operation: Operation, request: SendMail, _rules: Rules) -> Letter | None:
    """What is to be sent, by the settings of this process."""
    return send_mail.compose(tx, operation, request, settings=runtime().settings, now=utc_now())


def send(letter: Letter | None) -> None:
    """Hand the letter over, if there is one. Raises MailRefused, ProviderDown."""
    if letter is not None:
        mailer_for(runtime().settings).send(letter)


sign_up_task = operation_task(OperationKind.SIGN_UP, SignUp, sign_up.sign_up)
send_mail_task = two_step_operation_task(
    OperationKind.SEND_MAIL, SendMail, record=compose, ask=send, complete=send_mail.sent
)
forget_expired_task = job_task(Job.FORGET_EXPIRED, forget_expired.forget_expired)
