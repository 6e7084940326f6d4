"""Pages of a list: an opaque cursor that says where the next page begins."""

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Row

from api.schemas import Page
from shared.domain.timeline import TimelineEntry
from shared.errors import InvalidInput

NEWEST_ID: Final = UUID(int=2**128 - 1)  # no id is greater
OLDEST_ID: Final = UUID(int=0)
NEWEST_SEQ: Final = 2**63 - 1
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Item = TypeVar("Item", bound=BaseModel)


class Place(NamedTuple):
    """Where an entry stands in a timeline: its instant, and how many entries of that instant come before it."""

    microseconds: int
    earlier: int


def id_before(cursor: str | None) -> UUID:
    """The id below which the page begins. Raises InvalidInput."""
    return NEWEST_ID if cursor is None else UUID(bytes=_decoded(cursor, length=16))


def id_after(cursor: str | None) -> UUID:
    """The id above which a page begins that shows the oldest first. Raises InvalidInput."""
    return OLDEST_ID if cursor is None else UUID(bytes=_decoded(cursor, length=16))


def seq_before(cursor: str | None) -> int:
    """The number below which the page begins. Raises InvalidInput."""
    return NEWEST_SEQ if cursor is None else int.from_bytes(_decoded(cursor, length=8)) & NEWEST_SEQ


def page(
    kind: type[Page[Item]],
    rows: Sequence[Row[Any]],
    document: Callable[[Row[Any]], Item],
    *,
    limit: int,
    key: str = "id",
) -> Page[Item]:
    """The first `limit` of `rows`, of which one more was asked for to know whether there are more."""
    shown = rows[:limit]
    more = len(rows) > limit
    return kind(
        items=[document(row) for row in shown],
        next_cursor=_encoded(getattr(shown[-1], key)) if more else None,
    )


def timeline_page(
    entries: Iterable[TimelineEntry], *, cursor: str | None, limit: int
) -> tuple[list[TimelineEntry], str | None]:
    """The first `limit` entries after the cursor, and what leads to those that follow. Raises InvalidInput."""
    after = None if cursor is None else _place(_decoded(cursor, length=12))
    ahead = ((place, entry) for place, entry in _placed(entries) if after is None or place > after)
    found = list(islice(ahead, limit + 1))
    shown = found[:limit]
    return [entry for _, entry in shown], _encoded(shown[-1][0]) if len(found) > limit else None


def _placed(entries: Iterable[TimelineEntry]) -> Iterator[tuple[Place, TimelineEntry]]:
    for at, together in groupby(entries, key=attrgetter("at")):
        microseconds = (at - EPOCH) // timedelta(microseconds=1)
        for earlier, entry in enumerate(together):
            yield Place(microseconds, earlier), entry


def _place(content: bytes) -> Place:
    return Place(int.from_bytes(content[:8]), int.from_bytes(content[8:]))


def _encoded(position: UUID | int | Place) -> str:
    match position:
        case UUID():
            content = position.bytes
        case Place():
            content = position.microseconds.to_bytes(8) + position.earlier.to_bytes(4)
        case _:
            content = position.to_bytes(8)
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(cursor: str, *, length: int) -> bytes:
    try:
        content = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars="-_", validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if len(content) != length:
        raise InvalidInput("this cursor comes from no page of this list")
    return content
