"""Sign up."""

from shared.domain.operation import OperationKind
from shared.domain.requests import SignUp
from shared.usecases import sign_up
from workers.task import operation_task

sign_up_task = operation_task(OperationKind.SIGN_UP, SignUp, sign_up.sign_up)
