"""Import bank statements."""

from shared.domain.operation import OperationKind
from shared.domain.requests import ImportBankStatement
from shared.domain.statement import BankEntry
from shared.statements import parse
from shared.usecases import import_bank_statement
from workers.task import two_step_operation_task


def read_file(file: import_bank_statement.StatementFile) -> list[BankEntry]:
    """What the file says. Raises InvalidStatement."""
    return parse(file.content, file.format)


import_bank_statement_task = two_step_operation_task(
    OperationKind.IMPORT_BANK_STATEMENT,
    ImportBankStatement,
    record=import_bank_statement.load_file,
    ask=read_file,
    complete=import_bank_statement.import_entries,
)
