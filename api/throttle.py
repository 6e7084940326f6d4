"""Throttling: whoever asks has a budget of requests a minute, and no route and nobody is without one.

Who asks is the account, for its users and API keys together; the admin; or the network address, for whoever presents
nothing. Which account a credential is of, only the database can say: a process remembers it, so that from then on a
flood is refused before it costs a question to the database. A credential that turned out to be nobody's counts for the
network address once, and from then on for itself. docs/rules.md, "Throttling".
"""

import hashlib
from datetime import datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from math import ceil
from threading import Lock
from typing import Final
from uuid import UUID

import structlog
from flask import Flask, Response, current_app, g, request
from msgspec import Struct
from msgspec.structs import replace

from api import metrics
from api.access import API_KEY_HEADER, PUBLIC, Needs
from api.network import network_of_request
from api.problems import HTTP_PROBLEMS, RefusedRequest
from api.windows import Budget, Verdict, Windows
from shared.clock import utc_now
from shared.config import Settings

EXTENSION: Final = "billing-throttle"
EXEMPT: Final = frozenset({"health.live", "health.ready", "metrics.metrics"})
HEADERS: Final = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
MAX_REMEMBERED: Final = 20_000  # some 10 MB
FAILED_CREDENTIAL: Final = "failed_credential"
SLACK_SHARE: Final = 50  # a process may be one in so many of an account's requests ahead of what others know

log = structlog.get_logger(__name__)


class Throttle(StrEnum):
    """What a request to a route counts for: whoever asks, unless the route says otherwise.

    All others are budgets of the network address, whatever credential comes along.
    """

    CALLER = "caller"
    LOGIN = "login"
    SIGNUP = "signup"
    REFRESH = "refresh"
    VERIFICATION = "verification"
    WEBHOOK = "webhook"


class Asked(Struct):
    """What is known of a request in progress."""

    network: str
    credential: bytes | None = None
    payers: tuple[Budget, ...] = ()  # as remembered, or as the database said
    identified: bool = False
    verdict: Verdict | None = None


class Memory:
    """What a process remembers: who pays for a credential, and which networks may try no further ones for now."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._payers: dict[bytes, tuple[Budget, ...]] = {}
        self._barred: dict[str, tuple[Verdict, datetime]] = {}

    def payers(self, credential: bytes) -> tuple[Budget, ...]:
        """The budgets that a credential draws on; none of one that is not known."""
        return self._payers.get(credential, ())

    def remember(self, credential: bytes, payers: tuple[Budget, ...]) -> None:
        """The database has said whose it is, or nobody's. Of too many, those that came first are forgotten."""
        with self._lock:
            self._payers[credential] = payers
            while len(self._payers) > MAX_REMEMBERED:
                del self._payers[next(iter(self._payers))]

    def bar(self, network: str, verdict: Verdict, *, now: datetime) -> None:
        """No credential that is not known to be somebody's is looked up for this network, until its budget has room."""
        with self._lock:
            self._barred = {name: barred for name, barred in self._barred.items() if barred[1] > now}
            self._barred[network] = (verdict, now + timedelta(seconds=verdict.reset_seconds))

    def barred(self, network: str, *, now: datetime) -> Verdict | None:
        """The refusal that still holds."""
        verdict, until = self._barred.get(network, (None, now))
        if verdict is None or until <= now:
            return None
        return replace(verdict, taken=False, reset_seconds=max(1, ceil((until - now).total_seconds())))


class Throttler:
    """The budgets of an application: their limits, where they are counted, and what this process remembers."""

    def __init__(self, settings: Settings) -> None:
        self.windows = Windows(settings)
        self.memory = Memory()
        self.api_key_limit = settings.api_key_requests_per_minute
        self.admin_limit = settings.admin_requests_per_minute
        self.warns_of_proxy = settings.trusted_proxies == 0
        self._limits = {
            "anonymous": settings.anonymous_requests_per_minute,
            "preflight": settings.preflights_per_minute,
            FAILED_CREDENTIAL: settings.failed_credentials_per_minute,
            Throttle.LOGIN: settings.login_attempts_per_minute,
            Throttle.SIGNUP: settings.signups_per_minute,
            Throttle.REFRESH: settings.refreshes_per_minute,
            Throttle.VERIFICATION: settings.verifications_per_minute,
            Throttle.WEBHOOK: settings.webhooks_per_minute,
        }

    def of_network(self, name: str, network: str) -> Budget:
        """A budget of a network address."""
        return Budget(name=str(name), key=f"{{{network}}}:{name}", limit=self._limits[name])

    def of_account(self, account_id: UUID, limit: int | None, api_key_id: UUID | None) -> tuple[Budget, ...]:
        """The budget of an account, and the one of its key if keys have one. limit: None without a plan."""
        account = _with_slack("account", f"{{{account_id}}}:account", limit or self._limits["anonymous"])
        if api_key_id is None or self.api_key_limit is None:
            return (account,)
        return (_with_slack("api_key", f"{{{account_id}}}:{api_key_id}", self.api_key_limit), account)

    def of_nobody(self, credential: bytes) -> Budget:
        """The budget of a credential that is nobody's, so that who goes on using it shuts nobody else out."""
        key = f"{{{credential.hex()}}}:{FAILED_CREDENTIAL}"
        return Budget(name=FAILED_CREDENTIAL, key=key, limit=self._limits[FAILED_CREDENTIAL])

    def of_admin(self, admin_id: UUID) -> Budget:
        """The budget of an admin."""
        return Budget(name="admin", key=f"{{{admin_id}}}:admin", limit=self.admin_limit)


def _with_slack(name: str, key: str, limit: int) -> Budget:
    """A budget of somebody who is known, and whose requests are therefore counted ahead of asking."""
    return Budget(name=name, key=key, limit=limit, slack=limit // SLACK_SHARE)


def install(app: Flask, settings: Settings) -> None:
    """Throttle every route of this application but EXEMPT."""
    app.extensions[EXTENSION] = Throttler(settings)
    app.before_request(_before)
    app.after_request(_after)


def charge_account(
    account_id: UUID, requests_per_minute: int | None, *, api_key_id: UUID | None = None, served: bool = False
) -> None:
    """The database has said that the credential of this request is this account's, or a key's of it.

    served: what was asked for is done, so the request counts and is not refused.
    Raises RefusedRequest when the budget is used up.
    """
    _charge(_throttler().of_account(account_id, requests_per_minute, api_key_id), served=served)


def charge_admin(admin_id: UUID) -> None:
    """The database has said that the credential of this request is this admin's. Raises as `charge_account`."""
    _charge((_throttler().of_admin(admin_id),), served=False)


def _charge(payers: tuple[Budget, ...], *, served: bool) -> None:
    asked: Asked | None = g.get("asked")
    if asked is None or asked.credential is None:
        return  # the route counts for the network address
    asked.identified = True
    if asked.payers != payers:
        _throttler().memory.remember(asked.credential, payers)
    has_paid = [budget.key for budget in asked.payers] == [budget.key for budget in payers]
    asked.payers = payers
    if not has_paid:
        asked.verdict = _count(payers)
        if not served:
            _require(asked.verdict)


def _before() -> None:
    if request.endpoint in EXEMPT:
        return
    throttler = _throttler()
    asked = g.asked = Asked(network=_network(throttler))
    name = _network_budget()
    if name is None:
        asked.credential = _credential()
        asked.payers = throttler.memory.payers(asked.credential)
        if not _is_somebodys(asked.payers):
            asked.verdict = throttler.memory.barred(asked.network, now=utc_now())
            if asked.verdict is not None:
                _require(asked.verdict)
        if not asked.payers:
            return  # the database will say whose it is
    budgets = asked.payers if name is None else (throttler.of_network(name, asked.network),)
    asked.verdict = _count(budgets)
    _require(asked.verdict)


def _network_budget() -> str | None:
    """The network address' budget that this request counts for; None when it counts for whoever asks."""
    if request.method == "OPTIONS":
        return "preflight"
    view = current_app.view_functions.get(request.endpoint or "")
    throttle: Throttle = getattr(view, "throttle", Throttle.CALLER)
    needs: Needs = getattr(view, "needs", PUBLIC)
    if throttle is not Throttle.CALLER:
        return throttle
    presented = API_KEY_HEADER in request.headers or "Authorization" in request.headers
    return None if needs.audiences and presented else "anonymous"


def _after(response: Response) -> Response:
    asked: Asked | None = g.get("asked")
    if asked is None:
        return response
    if asked.credential is not None and not asked.identified:
        _note_unidentified(asked, asked.credential, response.status_code)
    if asked.verdict is not None:
        verdict = asked.verdict
        shown = (verdict.budget.limit, verdict.remaining, verdict.reset_seconds)
        response.headers.extend(zip(HEADERS, map(str, shown), strict=True))
        if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            response.headers.setdefault("Retry-After", str(verdict.reset_seconds))  # a handler may have another reason
    return response


def _note_unidentified(asked: Asked, credential: bytes, status: int) -> None:
    """Whose the credential is was not said: it is nobody's, or the request ended before that."""
    is_paid = bool(asked.payers) and not (_is_somebodys(asked.payers) and status == HTTPStatus.UNAUTHORIZED)
    if is_paid or status == HTTPStatus.TOO_MANY_REQUESTS:
        return
    throttler = _throttler()
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        name = "anonymous"
    else:
        name = FAILED_CREDENTIAL
        throttler.memory.remember(credential, (throttler.of_nobody(credential),))
    verdict = _count((throttler.of_network(name, asked.network),))
    asked.verdict = asked.verdict or verdict
    if not verdict.remaining:
        throttler.memory.bar(asked.network, verdict, now=utc_now())


def _is_somebodys(payers: tuple[Budget, ...]) -> bool:
    return bool(payers) and payers[0].name != FAILED_CREDENTIAL


def _count(budgets: tuple[Budget, ...]) -> Verdict:
    verdict = _throttler().windows.take(budgets, now=utc_now())
    if not verdict.shared:
        metrics.throttle_fallback.inc()
    return verdict


def _require(verdict: Verdict) -> None:
    if verdict.taken:
        return
    metrics.throttled.labels(verdict.budget.name).inc()
    structlog.contextvars.bind_contextvars(throttled=verdict.budget.key)
    raise RefusedRequest(
        HTTPStatus.TOO_MANY_REQUESTS,
        *HTTP_PROBLEMS[HTTPStatus.TOO_MANY_REQUESTS],
        budget=verdict.budget.name,
        requests_per_minute=verdict.budget.limit,
        retry_after_seconds=verdict.reset_seconds,
    )


def _network(throttler: Throttler) -> str:
    if throttler.warns_of_proxy and "X-Forwarded-For" in request.headers:
        throttler.warns_of_proxy = False  # once is enough
        log.warning("forwarded_for_ignored", hint="behind a proxy set TRUSTED_PROXIES: its clients share one budget")
    return network_of_request()


def _credential() -> bytes:
    """A name for what is presented, as it is: whether it is worth anything is not for this module to say."""
    presented = "\n".join(request.headers.get(name, "") for name in (API_KEY_HEADER, "Authorization"))
    return hashlib.sha256(presented.encode()).digest()


def counts_alone() -> bool:
    """Whether this process counts requests by itself, because Redis did not answer a moment ago."""
    return _throttler().windows.alone(now=utc_now())


def _throttler() -> Throttler:
    found: Throttler = current_app.extensions[EXTENSION]
    return found
