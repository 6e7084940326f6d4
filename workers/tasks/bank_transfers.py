"""Submit, approve and reject bank transfers."""

from shared.domain.operation import OperationKind
from shared.domain.requests import ApproveBankTransfer, RejectBankTransfer, SubmitBankTransfer
from shared.usecases import approve_bank_transfer, reject_bank_transfer, submit_bank_transfer
from workers.task import operation_task

submit_bank_transfer_task = operation_task(
    OperationKind.SUBMIT_BANK_TRANSFER, SubmitBankTransfer, submit_bank_transfer.submit_bank_transfer
)
approve_bank_transfer_task = operation_task(
    OperationKind.APPROVE_BANK_TRANSFER, ApproveBankTransfer, approve_bank_transfer.approve_bank_transfer
)
reject_bank_transfer_task = operation_task(
    OperationKind.REJECT_BANK_TRANSFER, RejectBankTransfer, reject_bank_transfer.reject_bank_transfer
)
