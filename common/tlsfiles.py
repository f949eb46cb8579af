"""Which files TLS goes by, as a keyring names them (`[tls]`; `common.transport.tls` uses them)."""

import msgspec


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Certificates of one side."""

    ca: str = ""
    """Who signs the other side's certificate: a file of PEM certificates."""
    certificate: str = ""
    """This side's own, with what leads to its CA."""
    key: str = ""
    """Its private key; mode 0600."""
    client_certificates: bool = False
    """A server asks clients for a certificate of `ca`'s, too."""
    server_name: str = ""
    """The name that a server's certificate must have, if it is not the host of its address."""
