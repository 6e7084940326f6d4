"""When the beat jobs tick: `celery -A beat_schedule beat`.

A tick carries no obligation: each job sweeps whatever is due, so a lost tick, a doubled one or a
second beat changes nothing. A tick that nobody took by the time of the next one is dropped.
"""

from shared.broker import make_celery
from shared.config import get_settings
from shared.messages import Job, Queue

settings = get_settings()
app = make_celery(settings)
app.conf.beat_schedule = {
    str(job): {
        "task": job.task_name,
        "schedule": float(settings.beat_interval_seconds),
        "options": {"queue": str(Queue.PERIODIC), "expires": settings.beat_interval_seconds},
    }
    for job in Job
}
