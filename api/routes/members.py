"""Members: who belongs to the account and as what; by invitation, and never without an owner."""

from http import HTTPStatus
from typing import Any
from uuid import UUID

from api import paging, schemas
from api.access import PERMISSIONS, PUBLIC, Customer, Permission, Role, customer
from api.routing import Routes
from api.schemas import InvitationDocument, MemberDocument, NewInvitationDocument, Page
from api.services import services
from api.throttle import Throttle
from shared import security
from shared.clock import utc_now
from shared.db import accounts, audit, members, operations, sessions
from shared.db.engine import Tx
from shared.db.sessions import Audience
from shared.domain.account import Action
from shared.domain.letter import LetterKind
from shared.domain.member import INVITATION_LASTS, roles_within
from shared.domain.operation import OperationKind, PrincipalKind
from shared.domain.password import weakness
from shared.domain.requests import SendMail
from shared.errors import InvalidInput, NotFound
from shared.ids import new_id
from shared.security import Purpose

READS = customer(Permission.MEMBERS_READ)
WRITES = customer(Permission.MEMBERS_WRITE, Action.USE)
# Taking access away is never refused, not even to an account that may only read.
REVOKES = customer(Permission.MEMBERS_WRITE)

routes = Routes("members", about="The people of an account.")


@routes.handle("GET", "/members", needs=READS, answer=Page[MemberDocument])
def list_members(tx: Tx, principal: Customer, query: schemas.PageQuery) -> Page[MemberDocument]:
    """The users of the account."""
    rows = members.page(tx, principal.account_id, before=paging.id_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[MemberDocument], rows, MemberDocument.of, limit=query.limit)


@routes.handle("PATCH", "/members/<uuid:member_id>", needs=WRITES, answer=MemberDocument)
def change_member(
    tx: Tx, principal: Customer, path: schemas.MemberPath, body: schemas.MemberChangeBody
) -> MemberDocument:
    """Give a member another role, up to one's own. The last owner stays one."""
    now = utc_now()
    present = members.lock(tx, principal.account_id)
    present.require_may_change(principal.id, path.member_id, body.role)
    row = members.set_role(tx, principal.account_id, path.member_id, body.role)
    _end_invitations_beyond(tx, principal.account_id, path.member_id, body.role)
    _record(
        tx,
        principal,
        "member.role_changed",
        "member",
        path.member_id,
        at=now,
        before={"role": present.role_of(path.member_id)},
        after={"role": body.role},
    )
    return MemberDocument.of(row)


@routes.handle("DELETE", "/members/<uuid:member_id>", needs=REVOKES, answer=None, refusals=(HTTPStatus.CONFLICT,))
def remove_member(tx: Tx, principal: Customer, path: schemas.MemberPath) -> None:
    """Remove a member, or leave: all sessions and open invitations of that user end. API keys stay the account's."""
    now = utc_now()
    present = members.lock(tx, principal.account_id)
    present.require_may_change(principal.id, path.member_id, None)
    members.remove(tx, principal.account_id, path.member_id, now=now)
    sessions.revoke_all(tx, Audience.CUSTOMER, path.member_id, reason="member_removed", now=now)
    _end_invitations_beyond(tx, principal.account_id, path.member_id, None)
    _record(
        tx,
        principal,
        "member.removed",
        "member",
        path.member_id,
        at=now,
        before={"role": present.role_of(path.member_id)},
    )


@routes.handle("POST", "/members/invitations", needs=WRITES, answer=NewInvitationDocument, status=HTTPStatus.CREATED)
def invite_member(tx: Tx, principal: Customer, body: schemas.InvitationBody) -> NewInvitationDocument:
    """Invite an address, with a role up to one's own. An earlier invitation of it ends.

    Whether the address has an account already is not told here.
    """
    settings = services().settings
    now = utc_now()
    members.lock(tx, principal.account_id).require_may_give(principal.id, body.role)
    row = members.invite(
        tx,
        invitation_id=new_id(),
        account_id=principal.account_id,
        email=body.email,
        role=body.role,
        invited_by=principal.id,
        now=now,
        expires_at=now + INVITATION_LASTS,
    )
    _record(tx, principal, "member.invited", "invitation", row.id, at=now, after={"email": row.email, "role": row.role})
    if settings.sends_mail:
        letter = SendMail(letter=LetterKind.INVITATION, subject_id=row.id)
        operations.schedule(tx, OperationKind.SEND_MAIL, [(new_id(), principal.account_id, letter, str(row.id), now)])
        return NewInvitationDocument.of(row, token=None)
    return NewInvitationDocument.of(row, token=security.sent_token(settings, Purpose.INVITATION, row.id))


@routes.handle("GET", "/members/invitations", needs=READS, answer=Page[InvitationDocument])
def list_invitations(tx: Tx, principal: Customer, query: schemas.PageQuery) -> Page[InvitationDocument]:
    """The account's invitations, also those that have ended."""
    rows = members.invitations(tx, principal.account_id, before=paging.id_before(query.cursor), limit=query.limit + 1)
    return paging.page(Page[InvitationDocument], rows, InvitationDocument.of, limit=query.limit)


@routes.handle("DELETE", "/members/invitations/<uuid:invitation_id>", needs=REVOKES, answer=None)
def revoke_invitation(tx: Tx, principal: Customer, path: schemas.InvitationPath) -> None:
    """Revoke an invitation; one that has ended stays as it is."""
    now = utc_now()
    revoked = members.revoke(tx, principal.account_id, path.invitation_id, now=now)
    if revoked is not None:
        _record(
            tx, principal, "invitation.revoked", "invitation", path.invitation_id, at=now, before={"role": revoked.role}
        )


@routes.handle(
    "POST",
    "/invitations/accept",
    needs=PUBLIC,
    answer=MemberDocument,
    status=HTTPStatus.CREATED,
    throttle=Throttle.VERIFICATION,
)
def accept_invitation(body: schemas.AcceptInvitationBody) -> MemberDocument:
    """Become a member, by the token of an invitation; the next step is to sign in.

    An address that signs in to an account already cannot, and is told so as `email_taken`.
    """
    settings = services().settings
    invitation_id = security.subject_of_token(settings, Purpose.INVITATION, body.token)
    if invitation_id is None:
        raise _no_such_invitation()
    with services().database.transaction() as tx:
        members.admit_invited(tx, invitation_id, now=utc_now())
        found = members.open_invitation(tx, invitation_id, now=utc_now())
    if found is None:
        raise _no_such_invitation()
    if (why := weakness(body.password, about=[found.email, found.account_name])) is not None:
        raise InvalidInput(f"the password {why}")
    # Hashing takes long on purpose, so no transaction is open meanwhile; what was found is looked at again.
    password_hash = security.hash_password(settings, body.password)
    with services().database.transaction() as tx:
        return _join(tx, invitation_id, password_hash)


def _join(tx: Tx, invitation_id: UUID, password_hash: str) -> MemberDocument:
    now = utc_now()
    members.admit_invited(tx, invitation_id, now=now)
    invitation = members.hold_open_invitation(tx, invitation_id, now=now)
    if invitation is None:
        raise _no_such_invitation()
    user_id = new_id()
    accounts.create_user(
        tx,
        user_id=user_id,
        account_id=invitation.account_id,
        email=invitation.email,
        password_hash=password_hash,
        role=Role(invitation.role),
    )
    members.accept(tx, invitation_id, user_id=user_id, now=now)
    audit.record(
        tx,
        at=now,
        actor_kind=PrincipalKind.USER,
        actor_id=user_id,
        action="member.joined",
        account_id=invitation.account_id,
        subject_kind="member",
        subject_id=user_id,
        after={"invitation_id": invitation_id, "email": invitation.email, "role": invitation.role},
    )
    return MemberDocument(id=user_id, email=invitation.email, role=Role(invitation.role), created_at=now)


def _end_invitations_beyond(tx: Tx, account_id: UUID, user_id: UUID, role: Role | None) -> None:
    """Invitations that a member made end with the role that they needed."""
    may_invite = role is not None and Permission.MEMBERS_WRITE in PERMISSIONS[role]
    roles = roles_within(role) if role is not None and may_invite else []
    members.keep_invitations(tx, account_id, user_id, roles, now=utc_now())


def _record(tx: Tx, principal: Customer, action: str, subject_kind: str, subject_id: UUID, **facts: Any) -> None:
    audit.record(
        tx,
        actor_kind=principal.kind,
        actor_id=principal.id,
        action=action,
        account_id=principal.account_id,
        subject_kind=subject_kind,
        subject_id=subject_id,
        **facts,
    )


def _no_such_invitation() -> NotFound:
    return NotFound("no invitation is open under this token, or not any more")
