"""What every change of a member's tree begins with, whoever asks for it: this worker or another."""

import dataclasses

from syncengine.model import Durability, Rule, RunOptions
from syncengine.receiver import Receiver
from syncengine.wall import stamp_of
from worker.errors import PeerRefused
from worker.fence import Gate
from worker.member_tree import MemberTree
from worker.uses import Listed


def check_unchanged(opened: MemberTree, listed: Listed) -> None:
    """Refuse a root that became doubtful after it was listed and judged (I8): raises PeerRefused."""
    member = opened.member
    fresh = [hold for hold in opened.holds if hold not in listed.holds]
    if fresh:
        raise PeerRefused(f"{member} changed since it was listed: {fresh[0].detail}")
    if opened.tree is None:
        why = opened.holds[0].detail if opened.holds else "it is not there"
        raise PeerRefused(f"nothing can be written to {member}: {why}")


def prepared(opened: MemberTree, options: RunOptions, run: str) -> None:
    """Write the root's marker and remove what lay long enough in its trash; blocks on the disk.

    Once for a run, and for one that does not end once in an hour.
    """
    if opened.is_prepared(run):
        return
    opened.mark()
    trash_s = options.safety.trash_s
    if trash_s is not None:
        opened.expire_trash(trash_s)
    opened.note_prepared(run)


def receiver_for(opened: MemberTree, options: RunOptions, gate: Gate) -> Receiver:
    """Return what carries out a push in this tree; blocks on the disk.

    What a `move` brings is durable whatever the job says: the source is emptied because of it.
    """
    if options.rule is Rule.MOVE:
        options = dataclasses.replace(options, durability=Durability.STRICT)
    tree = opened.opened
    opened.note_written(gate.job)
    stamp = stamp_of(tree.wall())
    return Receiver(tree, options, member=str(opened.member), gate=gate, run_stamp=stamp)
