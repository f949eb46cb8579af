"""Asking the MDS of a mount or URL: what the administrators' commands have in common."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from nacrefs.common.remote import Remote

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
keyring_option = click.option("--keyring", metavar="FILE", help="The cluster's client key.")


def bucket_options(command: F) -> F:
    """Where a bucket is, and who may use it: the parameters `endpoint`, `region` and `credentials`."""
    for option in (
        click.option(
            "--credentials-file",
            "credentials",
            default="",
            metavar="FILE",
            help="On every OSS's machine, mode 0600, in the form of ~/.aws/credentials. Not given: the usual AWS chain "
            "there.",
        ),
        click.option("--region", default="", help="The bucket's region."),
        click.option("--endpoint", default="", metavar="URL", help="Of the S3 server; AWS if not given."),
    ):
        command = option(command)
    return command


def ask(where: str, keyring: str | None, work: "Callable[[Remote], Awaitable[T]]") -> T:
    """What `work` learns from the MDS in a session: `client.admin.ask_attached`, loaded only when a command runs."""
    from nacrefs.client import admin

    return admin.ask_attached(where, keyring, work)
