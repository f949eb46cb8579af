"""`python -m nacrefs.client.cli`: the `nacre` command with a chosen interpreter."""

from nacrefs.client.cli import main

main()
