"""`pgbench`, which comes with the embedded server: many clients that run one script, prepared, as fast as they can."""

import re
import subprocess
import tempfile

from msgspec import Struct
from sqlalchemy import make_url

from shared.config import Settings
from shared.embedded import postgres_install


class Rate(Struct, frozen=True, kw_only=True):
    """Transactions per second, and the average milliseconds of one."""

    per_second: float
    milliseconds: float


def pgbench(settings: Settings, script: str, *, clients: int, seconds: int) -> Rate:
    """Run the script from so many clients for so long. Raises RuntimeError when it fails."""
    assert settings.database_url is not None  # noqa: S101 - a book has one
    url = make_url(settings.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        done = subprocess.run(
            [
                *(postgres_install() / "bin" / "pgbench", "--no-vacuum", "--protocol=prepared", "--random-seed=1"),
                *(f"--client={clients}", f"--jobs={min(clients, 2)}", f"--time={seconds}", f"--file={file.name}", url),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or "number of failed transactions: 0" not in done.stdout:
        raise RuntimeError(f"pgbench failed:\n{done.stdout}\n{done.stderr}")
    return Rate(
        per_second=float(_found(r"tps = ([\d.]+) \(without", done.stdout)),
        milliseconds=float(_found(r"latency average = ([\d.]+) ms", done.stdout)),
    )


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"pgbench said nothing of {pattern!r}:\n{text}")
    return found[1]
