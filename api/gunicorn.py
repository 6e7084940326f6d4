"""How gunicorn runs the API: `gunicorn -c api/gunicorn.py "api.app:create_app()"`.

The application is made in each process after the fork, so no connection is ever shared.
"""

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

MULTIPROC_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"
# The metrics library looks for this when it is first imported. Whoever names a folder looks after it.
_own_folder = None if MULTIPROC_DIR in os.environ else tempfile.mkdtemp(prefix="prepaid-metrics-")
if _own_folder is not None:
    os.environ[MULTIPROC_DIR] = _own_folder

from gunicorn.glogging import Logger  # noqa: E402

from shared.config import get_settings  # noqa: E402
from shared.log import configure  # noqa: E402

_settings = get_settings()
configure(_settings)
logging.getLogger("alembic").setLevel(logging.WARNING)  # asked for the revision at every /readyz


class RootLogger(Logger):
    """What gunicorn has to say goes where everything else goes."""

    def setup(self, cfg: Any) -> None:
        """No handlers of its own."""
        super().setup(cfg)
        for logger in (self.error_log, self.access_log):
            logger.handlers.clear()
            logger.propagate = True


bind = _settings.api_bind
workers = _settings.api_workers
threads = _settings.api_threads
worker_class = "gthread"
proc_name = "prepaid-api"

timeout = 60
graceful_timeout = 30
keepalive = 5
max_requests = 50_000
max_requests_jitter = 5_000
backlog = 1_024
if Path("/dev/shm").is_dir():  # noqa: S108 (a heartbeat file in memory; no disk can stall it)
    worker_tmp_dir = "/dev/shm"  # noqa: S108

limit_request_line = 4_094
limit_request_fields = 64
limit_request_field_size = 8_190

accesslog = None  # the application logs its requests itself, without their queries
errorlog = "-"
logger_class = RootLogger
control_socket_disable = True


def on_exit(_server: Any) -> None:
    """Leave no files behind."""
    if _own_folder is not None:
        shutil.rmtree(_own_folder, ignore_errors=True)
