"""`nacre completion`."""

import click
from click.shell_completion import get_completion_class

from nacrefs.client.cli.outcome import EXIT_CODES


@click.command("completion", epilog=EXIT_CODES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print what makes SHELL complete nacre's commands, options and paths.

    \b
    bash: nacre completion bash > ~/.local/share/bash-completion/completions/nacre
    zsh:  nacre completion zsh > a file called _nacre in a directory of $fpath
    fish: nacre completion fish > ~/.config/fish/completions/nacre.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "nacre", "_NACRE_COMPLETE").source())
