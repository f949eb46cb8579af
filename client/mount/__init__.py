"""Mounting: what to mount, the daemon behind a mount, and mount(8)'s helper."""
