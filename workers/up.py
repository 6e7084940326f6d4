"""The whole system on one machine, left running: for trying the API, and for developing against it."""

import secrets
import threading
from typing import Final

from rich.console import Console
from rich.table import Table

from shared import security
from shared.config import Settings
from shared.db import admins, plans
from shared.db.engine import Database
from shared.db.migrations import run as migrations
from shared.domain.plan import SEED_PLANS
from shared.embedded import servers
from shared.errors import NotReady
from shared.ids import new_id
from workers.stack import Stack, interruptible

ADMIN_EMAIL: Final = "admin@example.com"


def run_up(settings: Settings) -> None:
    """Start everything, print where it is, and stay until Ctrl-C or SIGTERM."""
    console = Console()
    settings = settings.model_copy(update={"environment": "development", "billing_sandbox": True})
    with interruptible(), servers(settings) as running:
        try:
            password = secrets.token_urlsafe(16)
            prepare(running, ADMIN_EMAIL, password)
            with Stack(running, on_ready=lambda name: console.print(f"[dim]{name} is ready[/]")) as stack:
                console.print(_signpost(stack, running, password))
                stay_until_interrupted(stack)
        except KeyboardInterrupt:
            console.print("stopped")


def prepare(settings: Settings, admin_email: str, admin_password: str) -> None:
    """Migrate, seed the plans, and let this admin sign in with this password."""
    if settings.database_url is None:
        raise NotReady("no database was started")
    migrations.upgrade(settings.database_url)
    database = Database(settings.database_url, application_name="billing-prepare")
    password_hash = security.hash_password(settings, admin_password)
    with database.transaction() as tx:
        plans.seed(tx, SEED_PLANS)
        if not admins.set_password(tx, email=admin_email, password_hash=password_hash):
            admins.create(tx, admin_id=new_id(), email=admin_email, password_hash=password_hash)
    database.dispose()


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
