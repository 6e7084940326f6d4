"""Let time pass on a test clock."""

from shared.domain.operation import OperationKind
from shared.domain.requests import AdvanceTestClock
from shared.usecases import advance_test_clock
from workers.task import operation_task

advance_test_clock_task = operation_task(
    OperationKind.ADVANCE_TEST_CLOCK, AdvanceTestClock, advance_test_clock.advance_test_clock
)
