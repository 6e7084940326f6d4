"""Temporary entry."""

import signal
import sys
import threading

from shared.config import get_settings
from workers.demo import run_demo
from workers.relay import Relay
from workers.runtime import runtime

if sys.argv[1] == "relay":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Relay(runtime().settings, runtime().database).run(stop)
else:
    sys.exit(run_demo(get_settings()))
