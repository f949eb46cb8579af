"""A keyring file in use: read again when it changes, so that keys come and go while servers and mounts run."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nacrefs.common.auth import Credentials, Keyring, load_keyring
from nacrefs.common.config import ConfigError
from nacrefs.common.wire import Role

log = logging.getLogger("nacre.rpc")

LOOK_S: Final = 2.0
"""How often servers look whether their keyring has changed, or a key's time has come or is over."""


class KeyFile:
    """The keyring in a file, as it was when it could last be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = _stamp(path)
        self.keyring = load_keyring(path)
        self._complained = ""

    def refresh(self, force: bool = False) -> Keyring:
        """The keyring, read again if the file is another one than before. What is wrong with it is logged, once, and
        the keys stay as they were: a mistake must not lock everybody out."""
        stamp = _stamp(self.path)
        if stamp == self._seen and not force:
            return self.keyring
        self._seen = stamp
        try:
            keyring = load_keyring(self.path)
            if keyring.cluster != self.keyring.cluster:
                raise ConfigError(f"keyring {self.path} is of cluster {keyring.cluster}, not {self.keyring.cluster}")
        except ConfigError as error:
            if str(error) != self._complained:
                self._complained = str(error)
                log.error("the keys stay as they were: %s", error)
        else:
            self._complained = ""
            if keyring != self.keyring:
                log.info("keyring %s has changed: %d keys", self.path, len(keyring.keys))
            self.keyring = keyring
        return self.keyring

    def credentials_of(self, role: Role) -> Callable[[], Credentials]:
        """Credentials for connections that are made from now on: the best of what the file has then."""
        return lambda: self.refresh().credentials(role)


def watch(keyfile: KeyFile | None, changed: Callable[[Keyring], None]) -> "asyncio.Task[None] | None":
    """A task that tells of the keyring again and again: the file may be another, and keys' times come and go."""
    if keyfile is None:
        return None

    async def look() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                changed(keyfile.refresh())
            except OSError as error:  # no server key is good now
                log.error("the keys cannot be used: %s", error.strerror)

    return asyncio.get_running_loop().create_task(look(), name="key-watch")


def _stamp(path: Path) -> tuple[int, int, int]:
    """What differs when a file was written or replaced; the mode too, whose mending is to be noticed."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_mode
