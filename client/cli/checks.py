"""Commands that check something end as e2fsck does: codes that add up."""

from typing import Any, Final

import click

from nacrefs.client.cli.outcome import CheckError, words_of

CLEAN, MENDED, LEFT, FAILED, USAGE, INTERRUPTED = 0, 1, 4, 8, 16, 32

CHECK_CODES: Final = """\b
Exit codes: e2fsck's, added up:
  0   nothing is wrong
  1   problems were found, and mended
  4   problems were found, and are left
  8   it could not be done, or not everything could be looked at
  16  wrong usage
  32  interrupted"""


class CheckCommand(click.Command):
    """A command that ends as e2fsck does."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As usual, but for the exit code."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _usage(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        """As usual, but for the exit code."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _usage(error) from None
        except (KeyboardInterrupt, click.Abort):
            raise CheckError("interrupted", INTERRUPTED) from None
        except OSError as error:
            if ctx.find_root().params.get("debug"):
                raise
            raise CheckError(words_of(error), FAILED) from None


def _usage(error: click.UsageError) -> CheckError:
    where = error.ctx.command_path if error.ctx is not None else "nacre"
    return CheckError(f"{error.format_message().rstrip('.')} (see `{where} --help`)", USAGE)
