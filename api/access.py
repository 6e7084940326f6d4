"""Who may do what: roles and scopes as one table of permissions, and what a route declares it needs."""

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Final
from uuid import UUID

from msgspec import Struct

from shared.db.sessions import Audience
from shared.domain.account import Action
from shared.domain.member import Role
from shared.domain.operation import PrincipalKind
from shared.errors import Forbidden

__all__ = [
    "ADMIN",
    "PERMISSIONS",
    "PUBLIC",
    "REFRESH_TOKEN",
    "Admin",
    "Customer",
    "Needs",
    "Permission",
    "Principal",
    "Role",
    "Scope",
    "customer",
    "forbidden",
]

API_KEY_HEADER: Final = "X-API-Key"


class Permission(StrEnum):
    """What a route may ask for. Those that SCOPES names can be given to an API key too."""

    BILLING_READ = "billing:read"
    BILLING_PAY = "billing:pay"
    CREDITS_READ = "credits:read"
    CREDITS_CONSUME = "credits:consume"
    SITES_READ = "sites:read"
    SITES_WRITE = "sites:write"
    API_KEYS_READ = "api-keys:read"
    API_KEYS_WRITE = "api-keys:write"
    MEMBERS_READ = "members:read"
    MEMBERS_WRITE = "members:write"


class Scope(StrEnum):
    """What an API key can be allowed."""

    CREDITS_CONSUME = "credits:consume"
    CREDITS_READ = "credits:read"
    BILLING_READ = "billing:read"


_READS: Final = frozenset({Permission.BILLING_READ, Permission.CREDITS_READ, Permission.SITES_READ})

PERMISSIONS: Final[dict[Role, frozenset[Permission]]] = {
    Role.OWNER: frozenset(Permission),
    Role.ADMIN: frozenset(Permission),
    Role.EDITOR: _READS | {Permission.CREDITS_CONSUME, Permission.SITES_WRITE},
    Role.VIEWER: _READS,
    Role.DEVELOPER: _READS
    | {Permission.CREDITS_CONSUME, Permission.SITES_WRITE, Permission.API_KEYS_READ, Permission.API_KEYS_WRITE},
}


class Customer(Struct, frozen=True, kw_only=True):
    """A user or an API key of an account. `account_at` is the instant in which the account lives.

    A user has a session, a key its hash: what lets further transactions in.
    """

    kind: PrincipalKind
    id: UUID
    account_id: UUID
    permissions: frozenset[Permission]
    account_at: datetime
    session_id: UUID | None = None
    key_hash: bytes | None = None


class Admin(Struct, frozen=True, kw_only=True):
    """A platform admin."""

    id: UUID
    session_id: UUID

    kind: ClassVar[PrincipalKind] = PrincipalKind.ADMIN


Principal = Customer | Admin


class Needs(Struct, frozen=True, kw_only=True):
    """What a route asks of whoever calls it. Without an audience it asks nothing."""

    audiences: frozenset[Audience] = frozenset()
    permission: Permission | None = None
    action: Action = Action.READ
    users_only: bool = False
    anonymous: bool = False  # whoever presents no credential at all is let in as nobody
    refresh_token: bool = False  # the handler itself looks for one, and nothing else counts

    @property
    def api_keys(self) -> bool:
        """Whether an API key can do at all: when its permission is one that a key can have."""
        return (
            Audience.CUSTOMER in self.audiences
            and not self.users_only
            and (self.permission is None or str(self.permission) in set(Scope))
        )

    def require(self, permissions: frozenset[Permission]) -> None:
        """Raises Forbidden without the permission."""
        if self.permission is not None and self.permission not in permissions:
            raise forbidden(self.permission)


def forbidden(permission: Permission) -> Forbidden:
    """The refusal of whoever lacks a permission."""
    return Forbidden(f"this needs the permission {permission}", permission=str(permission))


PUBLIC: Final = Needs()
REFRESH_TOKEN: Final = Needs(refresh_token=True)
ADMIN: Final = Needs(audiences=frozenset({Audience.ADMIN}))


def customer(permission: Permission | None, action: Action = Action.READ, *, users_only: bool = False) -> Needs:
    """A customer with this permission, whose account may do this."""
    return Needs(audiences=frozenset({Audience.CUSTOMER}), permission=permission, action=action, users_only=users_only)
