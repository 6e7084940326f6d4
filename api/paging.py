"""Pages of a list: an opaque cursor that says where the next page begins."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Row

from api.schemas import Page
from shared.errors import InvalidInput

NEWEST_ID: Final = UUID(int=2**128 - 1)  # no id is greater
NEWEST_SEQ: Final = 2**63 - 1

Item = TypeVar("Item", bound=BaseModel)


def id_before(cursor: str | None) -> UUID:
    """The id below which the page begins. Raises InvalidInput."""
    return NEWEST_ID if cursor is None else UUID(bytes=_decoded(cursor, length=16))


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


def _encoded(position: UUID | int) -> str:
    content = position.bytes if isinstance(position, UUID) else position.to_bytes(8)
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(cursor: str, *, length: int) -> bytes:
    try:
        content = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars="-_", validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if len(content) != length:
        raise InvalidInput("this cursor comes from no page of this list")
    return content
