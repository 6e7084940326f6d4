"""All that moves credits at once, from several processes and many threads: the books are right to the credit.

The turns are numbered; a turn's number says what is done in it, and at which instant, and any thread of any process
takes the next one. So time moves on while all of them work: months are seeded and expire under way.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from multiprocessing import get_context
from random import Random
from typing import Any
from uuid import UUID

from shared.config import Settings
from shared.db import account_state, credits
from shared.db.engine import Database, Tx, with_retries
from shared.db.plans import load_rules
from shared.domain.credits import Source
from shared.domain.lifecycle import Transition
from shared.errors import BillingError
from shared.usecases.advance_due_accounts import advance_due_accounts
from tests.factories import on
from tests.office import Customer, Office

PROCESSES, THREADS = 4, 4
TURNS = 20_000
A_TURN = timedelta(minutes=10)  # between two turns: all of them are more than four months
STARTS_AT = on("2026-01-10")
OTHERS = 12
A_DAY = 86_400

KINDS = {
    "consume": 50,
    "batch": 8,
    "hold": 14,
    "capture": 12,
    "release": 5,
    "adjust": 4,
    "reverse": 5,
    "jobs": 2,
}
REFUSALS = {
    "insufficient_credits",
    "idempotency_key_reused",
    "hold_not_open",
    "already_reversed",
    "not_reversible",
    "invalid_input",  # more is captured than is held
}


@dataclass(frozen=True)
class Told:
    """What a caller was told took effect: `key` as it stands in the ledger, or of a hold; `fresh` unless replayed."""

    kind: str
    account_id: UUID
    key: str
    amount: int
    fresh: bool = True
    hold_id: UUID | None = None


@dataclass
class Record:
    """What one process saw."""

    told: list[Told] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    surfaced: list[str] = field(default_factory=list)


class Turns:
    """Numbers that all processes take from; those who take begin together."""

    def __init__(self) -> None:
        spawning = get_context("spawn")
        self.taken = spawning.Value("q", 0)
        self.together = spawning.Barrier(PROCESSES * THREADS)

    def take(self) -> int:
        with self.taken.get_lock():
            turn: int = self.taken.value
            self.taken.value += 1
        return turn

    def end(self) -> None:
        """Leave no turn to anybody."""
        self.taken.value = TURNS


@dataclass(frozen=True)
class Caller:
    """Asks as the API does: one statement that is a transaction, and what is due is applied in another one."""

    database: Database
    settings: Settings
    account_id: UUID
    id: UUID
    source: Source = Source.USER

    def ask(self, call: str, /, **params: Any) -> Any:
        return self.database.ask(
            f"SELECT asker.account_id, answer.* FROM (SELECT %(of)s::uuid AS account_id, %(by)s::uuid AS id) AS asker"
            f" CROSS JOIN LATERAL {call} AS answer",
            of=self.account_id,
            by=self.id,
            **params,
        )

    def catch_up(self, account_id: UUID, *, now: datetime) -> None:
        with self.database.transaction() as tx:
            account_state.catch_up(tx, account_id, load_rules(tx, self.settings), now=now)


class Player:
    """What a process does in its turns, with a database of its own."""

    def __init__(self, database: Database, settings: Settings, people: Sequence[Customer], admin_id: UUID) -> None:
        self.database, self.settings, self.people, self.admin_id = database, settings, people, admin_id
        self.record = Record()
        self.holds: deque[tuple[Customer, UUID, int]] = deque(maxlen=16)

    def play(self, turns: Turns) -> None:
        turns.together.wait(timeout=60)
        while (turn := turns.take()) < TURNS:
            random = Random(turn)
            (kind,) = random.choices(list(KINDS), list(KINDS.values()))
            self.record.turns[kind] += 1
            try:
                getattr(self, kind)(random, turn, STARTS_AT + turn * A_TURN)
            except BillingError as refusal:
                self.record.refused[refusal.code] += 1
            except Exception as error:  # noqa: BLE001 (whatever surfaces is to be reported)
                self.record.surfaced.append(f"{kind}: {type(error).__name__}: {error}")
                turns.end()

    def one_of(self, random: Random) -> Customer:
        """The first one half of the time."""
        return random.choice([self.people[0], random.choice(self.people)])

    def caller(self, who: Customer) -> Caller:
        return Caller(self.database, self.settings, who.account_id, who.user_id)

    def at_work(self, who: Customer, work: Callable[[credits.AccountAsker], Any]) -> Any:
        """As a worker does it: in a transaction, with retries."""

        def run() -> Any:
            with self.database.transaction() as tx:
                return work(credits.of_account(tx, who.account_id, self.rules, asker_id=who.user_id))

        return with_retries(run)

    def rules(self, tx: Tx) -> Any:
        return load_rules(tx, self.settings)

    def tell(self, kind: str, who: Customer, key: str, amount: int, *, replayed: bool, **more: Any) -> None:
        self.record.told.append(Told(kind, who.account_id, key, amount, fresh=not replayed, **more))

    def item(self, random: Random, turn: int) -> credits.Item:
        """A key that a few turns share, mostly with the same amount."""
        key = f"call {turn // 4}"
        return credits.Item(key=key, amount=1 + turn // 4 % 12 + (random.random() < 0.1))

    def consume(self, random: Random, turn: int, now: datetime) -> None:
        who, item = self.one_of(random), self.item(random, turn)
        done = credits.consume(self.caller(who), item.amount, key=item.key, reason=None, now=now)
        self.tell("consume", who, f"consume:{item.key}", item.amount, replayed=done.replayed)

    def batch(self, random: Random, turn: int, now: datetime) -> None:
        """Of the turn's key and those around it; sometimes one that nobody can pay."""
        who = self.one_of(random)
        items = [self.item(random, max(turn + 4 * step, 0)) for step in range(-2, random.randint(0, 6))]
        items = list({item.key: item for item in items}.values())
        if random.random() < 0.2:
            items.append(credits.Item(key=f"too much {turn}", amount=1_000_000))
        whole = random.random() < 0.4
        done = self.at_work(who, lambda asker: credits.consume_batch(asker, items, all_or_nothing=whole, now=now))
        for item, outcome in zip(items, done.items, strict=True):
            if outcome.refusal is not None:
                self.record.refused[outcome.refusal.code] += 1
            elif done.written or outcome.replayed:
                self.tell("batch", who, f"consume:{item.key}", item.amount, replayed=outcome.replayed)
        if not done.written:
            self.record.turns["batch refused as a whole"] += 1

    def hold(self, random: Random, turn: int, now: datetime) -> None:
        who, key, amount = self.one_of(random), f"hold {turn // 4}", 1 + turn // 4 % 12
        ttl_seconds = random.choice([3_600, A_DAY, 3 * A_DAY])
        placed = credits.place_hold(self.caller(who), amount, key=key, ttl_seconds=ttl_seconds, now=now)
        self.tell("hold", who, key, amount, replayed=placed.replayed, hold_id=placed.hold.id)
        self.holds.append((who, placed.hold.id, amount))

    def capture(self, random: Random, _: int, now: datetime) -> None:
        if self.holds:
            who, hold_id, amount = random.choice(list(self.holds))
            part = random.choice([amount, amount, amount // 2 + 1, amount + 1])
            done = credits.capture_hold(self.caller(who), hold_id, part, now=now)
            self.tell("capture", who, f"capture:{hold_id}", part, replayed=done.replayed, hold_id=hold_id)

    def release(self, random: Random, _: int, now: datetime) -> None:
        if self.holds:
            who, hold_id, amount = random.choice(list(self.holds))
            placed = credits.release_hold(self.caller(who), hold_id, now=now)
            self.tell("release", who, f"hold {hold_id}", amount, replayed=placed.replayed, hold_id=hold_id)

    def adjust(self, random: Random, turn: int, now: datetime) -> None:
        """Gives to the first one, and gives and takes elsewhere; some of what is given expires."""
        who, name = self.one_of(random), turn // 16
        amount = 40 if who is self.people[0] else (40, -15)[name % 2]
        expires_at = STARTS_AT + name * 16 * A_TURN + timedelta(days=9) if amount > 0 and name % 4 < 2 else None
        terms: dict[str, Any] = {"admin_id": self.admin_id, "reason": "goodwill", "expires_at": expires_at}
        self.at_work(who, lambda asker: credits.adjust(asker, amount, key=f"{name}", now=now, **terms))
        self.tell("adjust", who, f"adjust:{name}", amount, replayed=False)

    def reverse(self, random: Random, _: int, now: datetime) -> None:
        """One of the newest rows."""
        who, back = self.one_of(random), random.randrange(20)

        def work(asker: credits.AccountAsker) -> tuple[int, credits.Reversal]:
            newest = asker.tx.scalar("SELECT ledger_seq FROM accounts WHERE id = %(id)s", id=who.account_id)
            seq = max(newest - back, 1)
            return seq, credits.reverse(asker, seq, admin_id=self.admin_id, reason="it failed", now=now)

        seq, reversal = self.at_work(who, work)
        self.tell("reverse", who, f"{seq}", reversal.reversed_credits, replayed=False)

    def jobs(self, _: Random, __: int, now: datetime) -> None:
        """Every beat job that moves accounts or frees holds, until nothing is due."""

        def advance(transition: Transition) -> int:
            with self.database.transaction() as tx:
                return advance_due_accounts(tx, self.rules(tx), transition, as_of=now, limit=3)

        def release() -> int:
            with self.database.transaction() as tx:
                return credits.release_due_holds(tx, as_of=now, limit=100)

        for transition in Transition:
            while taken := with_retries(lambda transition=transition: advance(transition)):  # type: ignore[misc]
                self.record.turns["accounts that a job took up"] += taken
        self.record.turns["accounts whose holds a job freed"] += with_retries(release)


_turns: Turns


def share(turns: Turns) -> None:
    """What all processes have in common, as each one of them starts."""
    global _turns  # noqa: PLW0603 (the only way into a process of a pool)
    _turns = turns


def play(settings: Settings, people: Sequence[Customer], admin_id: UUID) -> Record:
    """A process: its threads take turns until there are none left."""
    assert settings.database_url is not None
    database = Database(settings.database_url, pool_size=THREADS, application_name="race")
    try:
        player = Player(database, settings, people, admin_id)
        with ThreadPoolExecutor(THREADS) as threads:
            for thread in [threads.submit(player.play, _turns) for _ in range(THREADS)]:
                thread.result()
        return player.record
    finally:
        database.dispose()


def race(office: Office, people: Sequence[Customer]) -> Record:
    """All turns, by all processes; what they saw together."""
    whole = Record()
    with ProcessPoolExecutor(
        PROCESSES, mp_context=get_context("spawn"), initializer=share, initargs=(Turns(),)
    ) as processes:
        for one in [processes.submit(play, office.settings, people, office.admin_id) for _ in range(PROCESSES)]:
            record = one.result()
            whole.told += record.told
            whole.turns += record.turns
            whole.refused += record.refused
            whole.surfaced += record.surfaced
    office.now = STARTS_AT + TURNS * A_TURN
    return whole


def people_of(office: Office) -> list[Customer]:
    """The first is the one whom everybody uses. Some carry over what they do not spend."""
    office.change("""
        UPDATE plans SET credits_per_month = 300, credit_rollover = 'cap', credit_rollover_cap = 60 WHERE slug = 'free'
    """)
    office.change("UPDATE plans SET credits_per_month = 2000 WHERE slug = 'enterprise'")
    people = [office.sign_up() for _ in range(1 + OTHERS)]
    for number, who in enumerate(people):
        office.assign(who, "free" if number % 2 else "enterprise")
    return people


def deadlocks(office: Office) -> int:
    found = office.row("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return int(found.deadlocks)


def test_whatever_is_done_at_once_the_books_are_right_to_the_credit(office: Office) -> None:
    people = people_of(office)
    first_seqs = {who.account_id: office.state(who).account.ledger_seq for who in people}
    before = deadlocks(office)
    record = race(office, people)

    assert record.surfaced == []
    assert deadlocks(office) == before, "locks are taken in one order"
    assert set(record.refused) <= REFUSALS
    assert office.rows("SELECT parked_reason FROM accounts WHERE parked_at IS NOT NULL") == []
    assert office.findings() == []

    everything_happened(office, record)
    postings = posted(office, first_seqs)
    what_was_told_took_effect_once(record, postings)
    what_was_reversed_was_reversed_once(record, postings)
    holds_ended_as_was_told(office, record)


def everything_happened(office: Office, record: Record) -> None:
    """No turn was idle throughout, and none of what may be refused always was."""
    assert sum(record.turns[kind] for kind in KINDS) == TURNS
    assert set(record.refused) == REFUSALS
    assert record.turns["batch refused as a whole"] > 0
    assert record.turns["accounts that a job took up"] > 0
    assert record.turns["accounts whose holds a job freed"] > 0
    fresh = Counter(told.kind for told in record.told if told.fresh)
    again = Counter(told.kind for told in record.told if not told.fresh)
    assert set(fresh) == set(KINDS) - {"jobs"}
    assert set(again) == {"consume", "batch", "hold", "capture", "release"}
    signs = office.rows("SELECT DISTINCT kind, sign(amount)::int AS sign FROM credit_transactions")
    assert {(row.kind, row.sign) for row in signs} == {
        ("seed", 1),
        ("consume", -1),
        ("expire", -1),
        ("adjust", 1),
        ("adjust", -1),
        ("reverse", 1),
        ("reverse", -1),
    }
    ends = office.rows("SELECT DISTINCT status FROM holds WHERE status <> 'open'")
    assert {row.status for row in ends} == {"captured", "released", "expired"}
    months = office.rows("SELECT count(*) AS seeds FROM credit_grants WHERE source = 'seed' GROUP BY account_id")
    assert min(row.seeds for row in months) >= 2 + 4, "the trial's, the plan's first, and one for each month that began"
    assert {row.kind for row in office.rows("SELECT kind FROM events")} >= {"credits.low", "credits.exhausted"}


@dataclass
class Posting:
    """The rows of the ledger that share an account and a key."""

    kind: str
    seqs: list[int] = field(default_factory=list)
    amount: int = 0


Postings = dict[tuple[UUID, str], Posting]


def posted(office: Office, first_seqs: dict[UUID, int]) -> Postings:
    """The ledger of the race, by account and key."""
    postings: Postings = {}
    for row in office.rows("SELECT account_id, seq, kind, idempotency_key, amount FROM credit_transactions"):
        if row.seq > first_seqs[row.account_id]:
            posting = postings.setdefault((row.account_id, row.idempotency_key), Posting(row.kind))
            posting.seqs.append(row.seq)
            posting.amount += row.amount
    return postings


def what_was_told_took_effect_once(record: Record, postings: Postings) -> None:
    """The ledger has every key that some caller was told of, with that amount, and no other key."""
    told = {
        (one.account_id, one.key, one.amount if one.kind == "adjust" else -one.amount)
        for one in record.told
        if one.kind in {"consume", "batch", "capture", "adjust"}
    }
    assert told == {
        (account_id, key, posting.amount)
        for (account_id, key), posting in postings.items()
        if posting.kind in {"consume", "adjust"}
    }
    fresh = Counter(
        (one.account_id, one.key) for one in record.told if one.fresh and one.kind in {"consume", "batch", "capture"}
    )
    assert set(fresh) == {(account_id, key) for account_id, key, _ in told if not key.startswith("adjust:")}
    assert set(fresh.values()) == {1}, "every key took effect for one caller"
    callers = Counter((one.account_id, one.key) for one in record.told if one.kind in {"consume", "batch"})
    assert sum(number > 1 for number in callers.values()) > 100, "many keys had several callers"


def what_was_reversed_was_reversed_once(record: Record, postings: Postings) -> None:
    """Each reversal that some caller was told of is one posting, over that amount."""
    key_of = {(account_id, seq): key for (account_id, key), posting in postings.items() for seq in posting.seqs}
    told: dict[tuple[UUID, str], list[int]] = defaultdict(list)
    for one in record.told:
        if one.kind == "reverse" and (one.account_id, int(one.key)) in key_of:
            told[one.account_id, f"reverse:{key_of[one.account_id, int(one.key)]}"].append(one.amount)
    assert told == {
        (account_id, key): [posting.amount]
        for (account_id, key), posting in postings.items()
        if posting.kind == "reverse" and (account_id, key.removeprefix("reverse:")) in postings
    }


def holds_ended_as_was_told(office: Office, record: Record) -> None:
    """A key placed one hold, and each hold ended in the way that some caller was told, and in no other."""
    stored = {row.id: row for row in office.rows("SELECT id, status, amount, captured_amount FROM holds")}
    placed = [one for one in record.told if one.kind == "hold"]
    assert len({(one.account_id, one.key, one.hold_id) for one in placed}) == len(stored)
    assert sum(one.fresh for one in placed) == len(stored)
    captured = {one.hold_id: one.amount for one in record.told if one.kind == "capture"}
    assert captured == {row.id: row.captured_amount for row in stored.values() if row.status == "captured"}
    released = Counter(one.hold_id for one in record.told if one.kind == "release" and one.fresh)
    assert released == Counter(row.id for row in stored.values() if row.status == "released")
    again = {one.hold_id for one in record.told if one.kind == "release" and not one.fresh}
    assert {stored[hold_id].status for hold_id in again if hold_id} == {"released", "expired"}
