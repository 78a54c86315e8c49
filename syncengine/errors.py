"""What the engine raises.

EngineError
 +- TreeError                 a root or a path of it cannot be used
 |   +- RootMissing
 |   +- PathMissing
 |   +- NotADirectory
 |   +- RootUntrusted         the root's name is a link made by somebody else
 |   +- RootReadOnly
 +- PeerError                 the other side broke the protocol: end the push
 |   +- MalformedFrame
 |   +- DeleteLimitExceeded
 +- Fenced                    this push may never publish again
 +- TargetChanged             one path is not what the plan saw; ends as a reply
 +- PushAborted               somebody ended the push from outside
 +- SharedTree                two members of a job have files in common
 +- MarkerError               the marker of a root cannot be read or written
 +- BadFilter                 (filters) a line that is no pattern

Errors of single files are no exceptions of this tree: they end as `model.Problem`s.
"""


class EngineError(Exception):
    """Anything that the engine raises on purpose."""


class TreeError(EngineError):
    """A root, or a path of it, cannot be used."""


class RootMissing(TreeError):
    """The granted root is not there."""


class PathMissing(TreeError):
    """The path below the root is not there."""


class NotADirectory(TreeError):
    """The root, or a component of the path below it, is no directory (a symlink is none)."""


class RootUntrusted(TreeError):
    """The root's own name is a symlink that neither root nor this user made."""


class RootReadOnly(TreeError):
    """Something was to be written in a tree that was opened to be read."""


class PeerError(EngineError):
    """The other side of a push did what the protocol forbids."""


class MalformedFrame(PeerError):
    """A frame holds what no honest peer sends."""


class DeleteLimitExceeded(PeerError):
    """A peer asks for more deletes than this side agreed to."""


class Fenced(EngineError):
    """The push may never publish again: a newer owner gives the orders."""


class TargetChanged(EngineError):
    """What is to be changed is not what the plan saw: of one path, and never out of `publish`."""


class PushAborted(EngineError):
    """The push was ended from outside while it waited or worked."""


class SharedTree(EngineError):
    """Two members of a job are one directory, or one lies in the other."""


class MarkerError(EngineError):
    """The marker of a root cannot be read or written."""
