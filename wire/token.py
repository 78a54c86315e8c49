"""The fencing token of an ownership: which etcd cluster gave it, and at which revision."""

from dataclasses import dataclass


class BadToken(ValueError):
    """Text that is no token, or two tokens of different clusters that somebody tried to order."""


@dataclass(frozen=True, slots=True)
class Token:
    """The create revision of an owner key; ordered within one cluster, never across two."""

    cluster_id: int
    """etcd's id of the cluster, 0 to 2**64 - 1."""
    revision: int
    """The create revision of the owner key, 0 (no key at all) to 2**63 - 1."""

    def __post_init__(self) -> None:
        if not (0 <= self.cluster_id < 2**64 and 0 <= self.revision < 2**63):
            raise BadToken(f"a token out of range: {self.cluster_id}, {self.revision}")

    def __str__(self) -> str:
        return f"{self.cluster_id:x}.{self.revision}"

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Read a token as `str` writes it; raises BadToken."""
        cluster, dot, revision = text.partition(".")
        if len(text) > 40 or not dot:
            raise BadToken(f"not a token: {text[:100]!r}")
        try:
            token = cls(int(cluster, 16), int(revision))
        except ValueError as error:
            raise BadToken(f"not a token: {text[:100]!r}") from error
        if str(token) != text:
            raise BadToken(f"not a token as it is written: {text[:100]!r}")
        return token

    def __lt__(self, other: "Token") -> bool:
        return self._beside(other) < other.revision

    def __le__(self, other: "Token") -> bool:
        return self._beside(other) <= other.revision

    def __gt__(self, other: "Token") -> bool:
        return self._beside(other) > other.revision

    def __ge__(self, other: "Token") -> bool:
        return self._beside(other) >= other.revision

    def _beside(self, other: "Token") -> int:
        if self.cluster_id != other.cluster_id:
            raise BadToken(f"tokens of two clusters have no order: {self} and {other}")
        return self.revision
