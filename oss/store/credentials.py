"""Where an S3 archive's credentials come from; they stay in this process, in memory.

A file of mode 0600 as AWS's tools have it (`[default]`, `aws_access_key_id = …`, `aws_secret_access_key = …`, perhaps
`aws_session_token = …`), or, if the archive names none, the standard chain: environment, `~/.aws`, container, instance.
"""

import configparser
import errno
import os
import stat
from typing import NamedTuple


class Secret(NamedTuple):
    """An access key. Never printed."""

    access_key: str
    secret_key: str
    token: str

    def __repr__(self) -> str:
        return "Secret(…)"


def read_credentials(path: str) -> Secret:
    """The credentials in a file; OSError (EACCES) that says what is wrong with it, not what is in it."""
    try:
        with open(path, encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise OSError(errno.EACCES, f"credentials file {path}: {reason}") from None
    if mode & 0o077:
        raise OSError(
            errno.EACCES, f"credentials file {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}"
        )
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error:
        raise OSError(errno.EACCES, f"credentials file {path} is not in the form of ~/.aws/credentials") from None
    for section in ("default", *parser.sections()):
        if parser.has_option(section, "aws_access_key_id") and parser.has_option(section, "aws_secret_access_key"):
            return Secret(
                parser.get(section, "aws_access_key_id"),
                parser.get(section, "aws_secret_access_key"),
                parser.get(section, "aws_session_token", fallback=""),
            )
    raise OSError(errno.EACCES, f"credentials file {path} has no aws_access_key_id and aws_secret_access_key")
