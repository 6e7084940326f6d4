"""The whole system on one machine, left running: for trying the API, and for developing against it."""

import threading

from rich.console import Console
from rich.table import Table

from shared import security
from shared.config import Settings
from shared.db import admins, plans
from shared.db.engine import Database
from shared.db.migrations import run as migrations
from shared.domain.plan import SEED_PLANS
from shared.embedded import servers
from shared.ids import new_id
from workers.stack import Stack, interruptible

ADMIN_EMAIL = "admin@example.com"


def run_up(settings: Settings) -> None:
    """Start everything, print where it is, and stay until Ctrl-C or SIGTERM."""
    console = Console()
    settings = settings.model_copy(update={"environment": "development", "billing_sandbox": True})
    with interruptible(), servers(settings) as settings:
        try:
            password = prepare(settings)
            with Stack(settings, on_ready=lambda name: console.print(f"[dim]{name} is ready[/]")) as stack:
                console.print(_signpost(stack, settings, password))
                stay_until_interrupted(stack)
        except KeyboardInterrupt:
            console.print("stopped")


def prepare(settings: Settings) -> str:
    """Migrate, seed, and give the development admin a new password, which is returned."""
    assert settings.database_url is not None  # noqa: S101 - `servers` fills it in
    migrations.upgrade(settings.database_url)
    database = Database(settings.database_url, application_name="billing-up")
    password = new_id().hex
    with database.transaction() as tx:
        plans.seed(tx, SEED_PLANS)
        admins.create_or_reset(tx, email=ADMIN_EMAIL, password_hash=security.hash_password(password))
    database.dispose()
    return password


def stay_until_interrupted(stack: Stack) -> None:
    """Watch the processes; raises NotReady, with the end of its log, when one ends by itself."""
    interrupted = threading.Event()
    while not interrupted.wait(1):
        stack.check()


def _signpost(stack: Stack, settings: Settings, password: str) -> Table:
    table = Table(show_header=False, box=None)
    table.add_row("API", f"{stack.url}/api/v1")
    table.add_row("Documentation", f"{stack.url}/docs")
    table.add_row("Admin", f"{ADMIN_EMAIL}, password {password}")
    table.add_row("Logs", str(settings.data_dir / "logs"))
    table.add_row("Tour", "README.md, 'Five minutes with curl'; Ctrl-C stops everything")
    return table
