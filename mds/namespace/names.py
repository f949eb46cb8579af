"""What may be a name in a directory."""

import errno

from nacrefs.common.wire import NAME_BYTES_MAX


def check_name(name: bytes) -> None:
    """OSError unless this can name an entry: ENAMETOOLONG, ENOENT if empty, EINVAL for `.`, `..`, a slash or NUL."""
    if len(name) > NAME_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, f"name of {len(name)} bytes is longer than {NAME_BYTES_MAX}")
    if not name:
        raise OSError(errno.ENOENT, "empty name")
    if name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, f"{name!r} cannot name an entry")
