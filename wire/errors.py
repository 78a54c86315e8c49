"""What can go wrong before a first call is made: names, addresses, certificates, ports.

WireError                 every sentence says what was found and what to do about it
├── IdentityInvalid       a name that is no identity of a cluster
├── AddressInvalid        no HOST:PORT
├── CredentialsInvalid    ca.pem, cert.pem, key.pem: missing, foreign, expired, not fitting together
├── AuthorityInvalid      a certificate authority that is not there, or there already
├── InsecureRefused       no certificates, and an address that others can reach
├── BindFailed            a server could not listen
│   └── AddressInUse
├── StateInUse            a state directory that another process has, or that cannot be used
├── PeerRefused           the caller of a method is nobody that may call it
├── PayloadBroken         the connection of a push's frames ended, or carried something else
└── ProtocolError         a message that makes no sense
"""


class WireError(Exception):
    """Base of everything raised here; `str()` of it is fit for a terminal."""


class IdentityInvalid(WireError):
    """A name, a role or a URI is not that of a member of a cluster."""


class AddressInvalid(WireError):
    """A text is not HOST:PORT."""


class CredentialsInvalid(WireError):
    """A directory does not hold what `--tls` needs, or what it holds is not valid now."""


class AuthorityInvalid(WireError):
    """A certificate authority cannot be made, read or used."""


class InsecureRefused(WireError):
    """Working without certificates was asked for where others can listen in."""


class BindFailed(WireError):
    """A server cannot listen on its address."""


class AddressInUse(BindFailed):
    """Another process listens there already."""


class PeerRefused(WireError):
    """The other side of a call has no identity of this cluster."""


class PayloadBroken(WireError):
    """The connection that carries the frames of a push ended early, or carried something else."""


class ProtocolError(WireError):
    """A message of a known service makes no sense."""


class StateInUse(WireError):
    """A process cannot have its state directory for itself."""
