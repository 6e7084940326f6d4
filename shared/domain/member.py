"""Members of an account: what they are to it, and who may make whom what.

Source: docs/rules.md, "Identity".
"""

from collections.abc import Iterable
from datetime import timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from msgspec import Struct

from shared.errors import LastOwner, NotFound, RoleAboveOwn

INVITATION_LASTS: Final = timedelta(days=7)


class Role(StrEnum):
    """What a user is to the account."""

    OWNER = "owner"
    ADMIN = "admin"
    EDITOR = "editor"
    VIEWER = "viewer"
    DEVELOPER = "developer"


RANK: Final[dict[Role, int]] = {Role.OWNER: 4, Role.ADMIN: 3, Role.EDITOR: 2, Role.DEVELOPER: 2, Role.VIEWER: 1}


class Member(Struct, frozen=True):
    """A user of the account who is not removed."""

    id: UUID
    role: Role


class Members:
    """All members of an account, as they are while nobody else can change them."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._roles = {member.id: member.role for member in members}

    def role_of(self, user_id: UUID) -> Role:
        """Raises NotFound."""
        if user_id not in self._roles:
            raise NotFound("no such member")
        return self._roles[user_id]

    def require_may_give(self, by: UUID, role: Role) -> None:
        """Raises RoleAboveOwn, and NotFound when `by` is a member no more."""
        own = self.role_of(by)
        if role not in roles_within(own):
            raise RoleAboveOwn(f"as {own} one neither gives nor takes the role {role}", role=str(role))

    def require_may_change(self, by: UUID, user_id: UUID, role: Role | None) -> None:
        """Whether `by` may give a member this role, or remove it (None). Raises NotFound, RoleAboveOwn, LastOwner."""
        present = self.role_of(user_id)
        self.require_may_give(by, present)
        if role is not None:
            self.require_may_give(by, role)
        owners = [member for member, held in self._roles.items() if held is Role.OWNER]
        if owners == [user_id] and role is not Role.OWNER:
            raise LastOwner("an account keeps an owner; make somebody else one first")


def roles_within(role: Role) -> list[Role]:
    """The roles that somebody with this one may give and take: none above it."""
    return [other for other in Role if RANK[other] <= RANK[role]]
