"""Who may call which member of a job at this worker: judged by this worker's own session.

Root, path and the caller's right come from the session, which the job's owner opened; nothing of that
is believed from the caller. In a one-way job only the source's worker may call, and only targets; in
`sync` and `exchange` every worker of the job may call every member, since any of them may be the one
that carries out the run.
"""

from typing import Any

import grpc
import grpc.aio
import structlog

from wire.channel import Credentials, peer_identity
from wire.errors import PeerRefused as PeerUnknown
from wire.identity import Identity, Role
from wire.orders import Assignment, Member, PeerGrant
from wire.token import Token
from worker.errors import PeerNotNow, PeerRefused
from worker.sessions import Session, Sessions

log = structlog.get_logger()


class Authority:
    """Judges the calls of other workers."""

    def __init__(self, sessions: Sessions, credentials: Credentials) -> None:
        """Judge by these sessions."""
        self._sessions = sessions
        self._credentials = credentials

    async def granted(
        self, grant: PeerGrant, context: grpc.aio.ServicerContext[Any, Any]
    ) -> tuple[Session, Member, Identity]:
        """Return what our own session says of the call, or abort it."""
        try:
            peer = peer_identity(context, self._credentials)
            session, member = self._judge(grant, peer)
        except PeerUnknown as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except PeerNotNow as error:
            await context.abort(grpc.StatusCode.ABORTED, str(error))
        except PeerRefused as error:
            log.warning("peer_refused", job=grant.job, run=grant.run, why=str(error))
            self._sessions.orders_refused += 1
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return session, member, peer

    def _judge(self, grant: PeerGrant, peer: Identity) -> tuple[Session, Member]:
        if peer.role is not Role.WORKER:
            raise PeerRefused(f"{peer} is no worker: only workers of a job may call its members")
        session = self._sessions.get(grant.job)
        if session is None or _is_newer(grant.token, session.token):
            token, why = self._sessions.refused_opens.get(grant.job, (None, ""))
            if token == grant.token:
                raise PeerRefused(why)
            raise PeerNotNow(
                f"worker {self._sessions.worker} has no session of job {grant.job} under token "
                f"{grant.token} yet"
            )
        if session.token != grant.token:
            # Refused for good, unless the caller's own order with the newer token is on its way.
            self._sessions.orders_refused += 1
            raise PeerNotNow(
                f"token {grant.token} of job {grant.job} is not {session.token}, accepted last"
            )
        _check_caller(session.assignment, peer)
        for member in session.assignment.written:
            if str(member) == grant.member and member.worker == self._sessions.worker:
                return session, member
        role = "target" if session.assignment.options.rule.is_one_way else "member"
        raise PeerRefused(f"{grant.member} is no {role} of job {grant.job} at this worker")


def _check_caller(assignment: Assignment, peer: Identity) -> None:
    if assignment.options.rule.is_one_way:
        wanted = assignment.source.worker
        if peer.name != wanted:
            raise PeerRefused(f"{peer} is not worker {wanted}, the source of job {assignment.job}")
    elif peer.name not in {member.worker for member in assignment.members}:
        raise PeerRefused(f"{peer} has no member of job {assignment.job}")


def _is_newer(token: Token, ours: Token) -> bool:
    """Whether a token is one that we have yet to hear of; those of two clusters have no order."""
    return token.cluster_id == ours.cluster_id and token > ours
