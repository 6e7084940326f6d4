"""Where the time goes: each statement of a rollover, what it takes on either side, and what Python does between."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from msgspec import Struct
from sqlalchemy import Row

from bench.lab import Lab
from shared.clock import monotonic
from shared.config import Settings
from shared.db import account_state
from shared.db.account_state import Change
from shared.db.engine import S, Tx
from shared.db.plans import load_rules
from shared.domain import lifecycle
from shared.domain.lifecycle import Transition
from workers.runtime import collect_garbage_seldom


class Cost(Struct, kw_only=True):
    """Seconds that passed, and those of them in which this process computed."""

    wall: float = 0.0
    python: float = 0.0


Costs = defaultdict[str, Cost]


@contextmanager
def counted(costs: Costs, name: str) -> Iterator[None]:
    """Add what the block costs to `name`."""
    wall, python = monotonic(), time.process_time()
    yield
    costs[name].wall += monotonic() - wall
    costs[name].python += time.process_time() - python


class CountingTx(Tx):
    """A transaction that notes what each of its statements costs."""

    def __init__(self, tx: Tx, costs: Costs) -> None:
        super().__init__(tx.connection)
        self._costs = costs

    def rows(self, sql: str, **params: Any) -> Sequence[Row[Any]]:
        """As `Tx` does, and counted."""
        with counted(self._costs, _title(sql)):
            return super().rows(sql, **params)

    def execute(self, sql: str, **params: Any) -> int:
        """As `Tx` does, and counted."""
        with counted(self._costs, _title(sql)):
            return super().execute(sql, **params)

    def structs(self, kind: type[S], sql: str, **params: Any) -> list[S]:
        """As `Tx` does, and counted."""
        with counted(self._costs, f"SELECT {kind.__name__}"):
            return super().structs(kind, sql, **params)

    def copy(self, sql: str, types: Mapping[str, str], rows: Iterable[tuple[Any, ...]]) -> None:
        """As `Tx` does, and counted."""
        with counted(self._costs, _title(sql)):
            super().copy(sql, types, rows)


def measure(lab: Lab, settings: Settings, *, as_of: datetime) -> dict[str, Cost]:
    """Roll every account in this process; the cost of each part."""
    costs: Costs = defaultdict(Cost)
    collect_garbage_seldom()
    with lab.opened(settings) as database:
        claimed = True
        while claimed:
            with database.transaction() as plain:
                rules = load_rules(plain, settings)
                tx = CountingTx(plain, costs)
                ids = account_state.claim_due(tx, Transition.RENEWAL, as_of=as_of, limit=settings.batch_size)
                with counted(costs, "load, in all"):
                    states = account_state.load(tx, ids, as_of=as_of) if ids else []
                with counted(costs, "decide"):
                    changes = [Change(one, lifecycle.advance(one, rules, as_of=as_of)) for one in states]
                with counted(costs, "write, in all"):
                    account_state.write(tx, changes, rules)
                claimed = bool(ids)
    return dict(costs)


def _title(sql: str) -> str:
    return " ".join(sql.split()[:3]).removesuffix(" t").removesuffix(" (id,")
