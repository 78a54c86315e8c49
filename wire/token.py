"""The fencing token of an ownership."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Token:
    """Cluster id and create revision of an owner key; later ownerships have higher revisions.

    Tokens are ordered within one cluster only: compare `cluster_id` first.
    """

    cluster_id: int
    revision: int

    def __str__(self) -> str:
        """Return the form that users see: cluster id in hex, a dot, the revision."""
        return f"{self.cluster_id:x}.{self.revision}"
