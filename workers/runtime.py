"""What a process of ours holds: its settings and its database, made on first use and never across a fork."""

import gc
import os
from functools import lru_cache

from shared.config import Settings, get_settings
from shared.db.engine import ActAs, Database


class Runtime:
    """The settings and the pool of this process."""

    def __init__(self, settings: Settings) -> None:
        if settings.database_url is None:
            raise ValueError("DATABASE_URL is not set and no embedded database was started")
        self.settings = settings
        self.database = Database(
            settings.database_url, act_as=ActAs.WORKER, pool_size=2, application_name="billing-worker"
        )
        collect_garbage_seldom()


def collect_garbage_seldom() -> None:
    """A batch makes some hundred thousand values that hold no cycles; searching them for some costs a tenth of it."""
    gc.freeze()
    gc.set_threshold(200_000, 10, 10)


@lru_cache(maxsize=1)
def _runtime_of(_pid: int) -> Runtime:
    return Runtime(get_settings())


def runtime() -> Runtime:
    """This process's runtime; a forked child gets one of its own and leaves its parent's alone."""
    return _runtime_of(os.getpid())
