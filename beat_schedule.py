"""When the beat jobs tick: `celery -A beat_schedule beat`.

A tick carries no obligation: each job sweeps whatever is due, so a lost tick, a doubled one or a
second beat changes nothing. A tick that nobody took by the time of the next one is dropped. So there is
nothing to remember from one start to the next, and nothing to ask the wall clock: it may be set back an hour.
"""

from datetime import datetime, timedelta

from celery.schedules import schedule

from shared.broker import make_celery
from shared.clock import monotonic, utc_now
from shared.config import get_settings
from shared.messages import Job, Queue

settings = get_settings()
app = make_celery(settings)
_started_at, _started = utc_now(), monotonic()


def steady_now() -> datetime:
    """An instant that goes forward as time does, whatever happens to the machine's clock."""
    return _started_at + timedelta(seconds=monotonic() - _started)


app.conf.beat_scheduler = "celery.beat:Scheduler"  # keeps no file
app.conf.beat_schedule = {
    str(job): {
        "task": job.task_name,
        "schedule": schedule(settings.beat_interval_seconds, nowfun=steady_now, app=app),
        "options": {"queue": str(Queue.PERIODIC), "expires": settings.beat_interval_seconds},
    }
    for job in Job
}
