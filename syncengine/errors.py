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
 +- PushAborted               somebody ended the push from outside
 +- MarkerError               the marker of a root cannot be read or written

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


class PushAborted(EngineError):
    """The push was ended from outside while it waited or worked."""


class MarkerError(EngineError):
    """The marker of a root cannot be read or written."""
