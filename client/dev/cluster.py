"""A whole cluster on this machine (`nacre dev`): an MDS, OSSes, and a mount, each a process of its own.

One directory has everything: `dev.toml` (what the cluster is), `keyring.toml`, `conf/` (made anew at each start),
`mdt/`, `ost0/` …, `log/`, `run/` (process ids). Nothing outside is needed to find the processes again, so `up` starts
whatever is not there, also after `kill -9`.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from nacrefs.client.dev.config import (
    HOST,
    MARKER,
    DevConfig,
    choose_ports,
    choose_s3_ports,
    load_dev_config,
    new_cluster_id,
    port_is_free,
    s3_port_is_free,
    save_dev_config,
    write_toml,
)
from nacrefs.client.dev.process import Process, Starting, in_thread, wait_end, wait_ready
from nacrefs.client.dev.s3 import BUCKET, PORTS, find_weed
from nacrefs.client.fuse.mounting import FSTYPE, MountEntry, all_mounts, mounts_at, unmount
from nacrefs.common.auth import load_keyring, new_keyring, save_keyring
from nacrefs.common.config import ConfigError

S3_ATTEMPTS: Final = 3
STOP_S: Final = 20.0
"""How long a process may take to stop before it is killed."""
S3_STOP_S: Final = 5.0
"""The same for the S3 server. SeaweedFS hangs now and then while its volume server stops, after all else has; a kill
takes nothing from it that it has acknowledged."""
_POLL_S: Final = 0.005
_MADE_HERE: Final = "# Made by `nacre dev up` at each start: change ../dev.toml instead.\n"


@dataclass(frozen=True)
class Wish:
    """What was asked for on the command line; None: as it is."""

    osts: int | None = None
    mount: str | None = None
    engine: str | None = None
    s3: bool = False
    transport: str | None = None


class DevCluster:
    """The cluster in a directory. Use `open` for one that is there, `prepare` to make one if need be."""

    def __init__(self, directory: Path, config: DevConfig) -> None:
        self.directory = directory
        self.config = config

    @classmethod
    def open(cls, directory: str | Path) -> "DevCluster":
        """The cluster in a directory; OSError (ENOENT) if there is none."""
        place = Path(os.path.realpath(directory))
        return cls(place, load_dev_config(place))

    @classmethod
    def prepare(cls, directory: str | Path, wish: Wish) -> "DevCluster":
        """The cluster in a directory, with what is wished for; made if the directory is empty or missing.

        OSError: ENOTEMPTY if there is something else; ConfigError if the wish contradicts what is there.
        """
        place = Path(os.path.realpath(directory))
        place.mkdir(parents=True, exist_ok=True)
        if not (place / MARKER).exists():
            if names := sorted(os.listdir(place)):
                raise OSError(
                    errno.ENOTEMPTY, f"not empty ({names[0]} …) and no development cluster: choose another", str(place)
                )
            save_dev_config(place, DevConfig())
        cluster = cls(place, load_dev_config(place))
        cluster._wish(wish)
        return cluster

    def _wish(self, wish: Wish) -> None:
        config, formatted = self.config, bool(self.config.ports)
        if wish.engine is not None and wish.engine != config.engine:
            if formatted:
                raise ConfigError(
                    f"{self.directory}: its MDT is in {config.engine}, and stays there; make another cluster"
                )
            config = replace(config, engine=wish.engine)
        if wish.osts is not None and wish.osts != config.osts:
            if formatted and wish.osts < config.osts:
                raise ConfigError(f"{self.directory}: it has {config.osts} OSTs; they cannot be taken away")
            config = replace(config, osts=wish.osts)
        if wish.s3:
            config = replace(config, s3=True)
        if wish.transport is not None and wish.transport != config.transport:
            if formatted and any(process.pid for process in self.processes):
                raise OSError(
                    errno.EBUSY, f"it runs over {config.transport}: `nacre dev down` it first", str(self.directory)
                )
            config = replace(config, transport=wish.transport)
        if wish.mount is not None:
            # (Not `realpath` of what is mounted already: that would ask the mount, whose servers may be dead.)
            same = os.path.abspath(wish.mount) == config.mount
            mount = config.mount if same else os.path.realpath(wish.mount)
            if config.mount and mount != config.mount and self.mount.pid:
                raise OSError(
                    errno.EBUSY, f"it is mounted on {config.mount}: `nacre umount` that first", str(self.directory)
                )
            config = replace(config, mount=mount)
        try:
            config.check()
        except ValueError as error:
            raise ConfigError(f"{self.directory}: {error}") from None
        self.config = config

    # ------------------------------------------------------------------------------------------------------- processes

    @property
    def keyring(self) -> Path:
        """The cluster's keyring."""
        return self.directory / "keyring.toml"

    def _process(self, name: str, role: str, *arguments: str) -> Process:
        command = (sys.executable, "-P", "-m", "nacrefs.client.cli", role, *arguments)
        place = self.directory
        return Process(name, role, command, place / "run" / f"{name}.pid", place / "log" / f"{name}.log")

    @property
    def mds(self) -> Process:
        """The metadata server."""
        return self._process("mds", "mds", "serve", "--format", "--config", str(self.directory / "conf" / "mds.toml"))

    @property
    def oss(self) -> list[Process]:
        """The object storage servers."""
        conf = self.directory / "conf"
        return [
            self._process(f"oss{number}", "oss", "serve", "--format", "--config", str(conf / f"oss{number}.toml"))
            for number in range(self.config.servers)
        ]

    @property
    def s3(self) -> Process:
        """The S3 server."""
        ports = tuple(map(str, self.config.s3_ports))
        place = self.directory
        command = (sys.executable, "-P", "-m", "nacrefs.client.dev.s3", str(self.s3_directory), *ports)
        return Process("s3", "s3", command, place / "run" / "s3.pid", place / "log" / "s3.log")

    @property
    def s3_directory(self) -> Path:
        """Where the S3 server has its data and its credentials."""
        return self.directory / "s3"

    @property
    def mount(self) -> Process:
        """The mount daemon."""
        options = f"keyring={self.keyring},retry={self.config.ready_s:.0f}"
        if self.config.mount_options:
            options += f",{self.config.mount_options}"
        where = (self.config.url if self.config.ports else "", self.config.mount)
        return self._process("mount", "mount", *where, "--foreground", "--json", "-o", options)

    @property
    def processes(self) -> list[Process]:
        """All that should be running."""
        s3 = [self.s3] if self.config.s3 else []
        return [*s3, self.mds, *self.oss, *([self.mount] if self.config.mount else [])]

    # -------------------------------------------------------------------------------------------------------------- up

    def up(self) -> list[str]:
        """Start what is not running and wait until all of it can be used; the names of what was started.

        OSError says in one line what kept it from working; what was started by this call is ended again.
        """
        with self._locked():
            missing = [process for process in self.processes if not process.pid]
            if self.config.mount and self.mount not in missing and not self._is_mounted():
                self.mount.stop(STOP_S)  # somebody took its mount point away, and it hangs on
                missing.append(self.mount)
            self._format(missing)
            started = [process.start() for process in self._ours(missing)]
            try:
                self._wait_s3(started)
                wait_ready([one for one in started if one.process.role != "s3"], self.config.ready_s)
                self._wait_usable()
            except BaseException:
                self._stop([one.process for one in started])
                raise
            finally:
                for one in started:
                    one.forget()
            return [one.process.name for one in started]

    def _wait_s3(self, started: list[Starting]) -> None:
        """Wait until the S3 server, if it is one of them, is ready. It takes its ports a while after they were chosen:
        if somebody else was quicker, it gets others."""
        for attempt in range(1, S3_ATTEMPTS + 1):
            at = next((at for at, one in enumerate(started) if one.process.role == "s3"), None)
            if at is None:
                return
            try:
                wait_ready([started[at]], self.config.ready_s)
                return
            except OSError:
                if attempt == S3_ATTEMPTS:
                    raise
            started[at].process.stop(S3_STOP_S)
            started[at].forget()
            self._choose_ports({"s3"})
            save_dev_config(self.directory, self.config)
            started[at] = self.s3.start()

    def _ours(self, missing: Sequence[Process]) -> list[Process]:
        """The same processes, with commands that know what `_format` has decided."""
        names = {process.name for process in missing}
        return [process for process in self.processes if process.name in names]

    @contextlib.contextmanager
    def _locked(self) -> Generator[None, None, None]:
        """Nobody else starts or stops the cluster meanwhile."""
        (self.directory / "run").mkdir(exist_ok=True)
        with open(self.directory / "run" / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(
                    errno.EBUSY, "another `nacre dev` is starting or stopping it", str(self.directory)
                ) from None
            yield

    def _format(self, missing: Sequence[Process]) -> None:
        """Write what the missing processes read."""
        place = self.directory
        if not self.keyring.exists():
            save_keyring(self.keyring, new_keyring(new_cluster_id()))
        for folder in ("conf", "mdt", "log"):
            (place / folder).mkdir(exist_ok=True)
        self._choose_ports({process.name for process in missing})
        save_dev_config(place, self.config)
        if self.config.mount:
            with contextlib.suppress(FileExistsError):  # also said of a mount point whose daemon is dead
                os.makedirs(self.config.mount)
        self._write_mds_toml()
        for number in range(self.config.servers):
            self._write_oss_toml(number)

    def _choose_ports(self, missing: set[str]) -> None:
        """Give each server that is to be started its ports: the ones it had, unless somebody else uses them now."""
        names = ["mds", *(f"oss{number}" for number in range(self.config.servers))]
        if self.config.s3 and (
            not self.config.s3_ports or ("s3" in missing and not all(map(s3_port_is_free, self.config.s3_ports)))
        ):
            find_weed()
            self.config = replace(self.config, s3_ports=choose_s3_ports(PORTS))
        ports = list(self.config.ports)
        ports += choose_ports(2 * len(names) - len(ports), ports)
        for index, name in enumerate(names):
            for position in (2 * index, 2 * index + 1):
                if name not in missing or port_is_free(ports[position]):
                    continue
                if position == 0 and self._in_use():
                    raise OSError(
                        errno.EADDRINUSE,
                        f"another program listens at the MDS's port {ports[0]}, which mounts and OSSes use: end it, or "
                        f"`nacre dev down --dir {self.directory}` first",
                    )
                ports[position] = choose_ports(1, ports)[0]
        self.config = replace(self.config, ports=tuple(ports))

    def _in_use(self) -> bool:
        return any(process.pid for process in self.processes if process.role != "mds") or bool(self._mounts())

    def _write_mds_toml(self) -> None:
        config, place = self.config, self.directory
        values: dict[str, Any] = {
            "name": "mds",
            "database": str(place / "mdt" / "mdt.sqlite") if config.engine == "sqlite" else config.engine,
            "listen": config.url,
            "metrics": f"{HOST}:{config.ports[1]}",
            "keyring": str(self.keyring),
            "lease": {"term_s": float(config.term_s)},
            "ost": {"heartbeat_s": float(config.heartbeat_s)},
            "log": {"level": config.log_level},
        }
        write_toml(place / "conf" / "mds.toml", values, _MADE_HERE)

    def _write_oss_toml(self, number: int) -> None:
        config, place = self.config, self.directory
        port, metrics = config.oss_ports(number)
        first = number * config.osts_per_oss
        last = min(first + config.osts_per_oss, config.osts)
        values: dict[str, Any] = {
            "mds": config.url,
            "keyring": str(self.keyring),
            "name": f"oss{number}",
            "listen": [config.address(port)],
            "osts": [str(place / f"ost{ost}") for ost in range(first, last)],
            "metrics": f"{HOST}:{metrics}",
        }
        write_toml(place / "conf" / f"oss{number}.toml", values, _MADE_HERE)

    def _wait_usable(self) -> None:
        """Wait until all OSTs have joined and, if it is mounted, the mount answers."""
        deadline_s = time.monotonic() + self.config.ready_s
        while True:
            report = self.space()
            up = sum(ost["up"] for ost in report["osts"])
            if up >= self.config.osts:
                break
            if time.monotonic() > deadline_s:
                raise OSError(errno.ETIMEDOUT, f"only {up} of {self.config.osts} OSTs have joined", str(self.directory))
            time.sleep(_POLL_S)
        if self.config.mount:
            answer = in_thread(lambda: os.listdir(self.config.mount), deadline_s - time.monotonic())
            if isinstance(answer, OSError):
                raise answer
            if answer is None:
                raise OSError(errno.ETIMEDOUT, f"the mount does not answer (log: {self.mount.log})", self.config.mount)

    def space(self) -> dict[str, Any]:
        """How full the cluster is, as `nacre df --json` shows it; asked through the mount if there is one."""
        if self.config.mount:
            return json.loads(os.getxattr(self.config.mount, b"nacre.df"))  # type: ignore[no-any-return]
        from nacrefs.client import admin

        return admin.ask(self.config.url, str(self.keyring), admin.space)

    # ------------------------------------------------------------------------------------------------------------ down

    def down(self) -> list[str]:
        """Unmount and stop everything; warnings about what did not go well (data that could not be stored)."""
        with self._locked():
            warnings = [warning for entry in self._mounts() if (warning := self._unmount(entry.path))]
            self.mount.stop(STOP_S)
            warnings += self._stop([self.mds, *self.oss])
            self.s3.stop(S3_STOP_S)
            return warnings

    def _stop(self, processes: Sequence[Process]) -> list[str]:
        """Stop processes, all at once."""
        warnings: list[str] = []

        def stop(process: Process) -> None:
            if not process.stop(STOP_S):
                warnings.append(f"{process.name} did not stop within {STOP_S:.0f} s and was killed")

        threads = [threading.Thread(target=stop, args=(process,)) for process in processes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return warnings

    def _unmount(self, at: str) -> str:
        """Take one mount away; a warning if that was not a clean end."""
        from nacrefs.client.mount import daemon as mount

        in_use = False
        if all(process.pid for process in (self.mds, *self.oss)):
            answer = in_thread(lambda: mount.unmount(at, wait_s=STOP_S), STOP_S)
            if answer is not None and not isinstance(answer, OSError):
                return ""
            reason = f"it takes longer than {STOP_S:.0f} s" if answer is None else answer.strerror or str(answer)
            in_use = answer is not None and answer.errno == errno.EBUSY
        else:
            reason = "servers are not running: what was not stored yet is lost"
        daemon = in_thread(lambda: mount.ask_json(at, "mount")["pid"], 2.0)
        with contextlib.suppress(OSError):
            unmount(at, lazy=True)
        if isinstance(daemon, int):
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon, signal.SIGTERM if in_use else signal.SIGKILL)
            wait_end(daemon, STOP_S)
        return f"{at}: detached, though {'it is in use' if in_use else reason}"

    def purge(self) -> None:
        """Remove everything; only after `down`. OSError (EBUSY) if some of it still runs or is mounted below it."""
        inside = [entry.path for entry in all_mounts() if f"{entry.path}/".startswith(f"{self.directory}/")]
        if alive := [process.name for process in self.processes if process.pid] + inside:
            raise OSError(errno.EBUSY, f"not removed: still there: {', '.join(alive)}", str(self.directory))
        load_dev_config(self.directory)
        shutil.rmtree(self.directory)

    # ---------------------------------------------------------------------------------------------------------- status

    def _mounts(self) -> list[MountEntry]:
        """All mounts of this cluster on this machine."""
        if not self.config.ports:
            return []
        url = self.config.url
        return [
            entry
            for entry in all_mounts()
            if entry.fstype == FSTYPE and (entry.source == url or entry.source.startswith(f"{url}/"))
        ]

    def _is_mounted(self) -> bool:
        here = mounts_at(self.config.mount)
        return bool(here) and here[-1].fstype == FSTYPE

    def status(self) -> dict[str, Any]:
        """What is there and what runs, as plain data. The MDS is asked for some seconds at most."""
        config = self.config
        processes = [
            {
                "name": process.name,
                "role": process.role,
                "pid": process.pid,
                "alive": bool(process.pid),
                "metrics": self._metrics(process.name),
                "log": str(process.log),
            }
            for process in self.processes
        ]
        osts: list[dict[str, Any]] = []
        if config.ports and self.mds.pid:
            from nacrefs.client import admin

            with contextlib.suppress(OSError):
                osts = admin.ask(config.url, str(self.keyring), admin.space)["osts"]
        cluster = load_keyring(self.keyring).cluster if self.keyring.exists() else ""
        mounted = bool(config.mount and self.mount.pid) and self._is_mounted()
        return {
            "directory": str(self.directory),
            "url": config.url if config.ports else "",
            "keyring": str(self.keyring),
            "cluster": cluster,
            "engine": config.engine,
            "healthy": all(process["alive"] for process in processes) and mounted == bool(config.mount),
            "processes": processes,
            "osts": osts,
            "mount": {"directory": config.mount, "mounted": mounted} if config.mount else None,
            "s3": {
                "endpoint": config.s3_endpoint,
                "bucket": BUCKET,
                "credentials": str(self.s3_directory / "credentials"),
            }
            if config.s3
            else None,
        }

    def _metrics(self, name: str) -> str:
        if not self.config.ports or name in ("mount", "s3"):
            return ""
        port = self.config.ports[1] if name == "mds" else self.config.oss_ports(int(name.removeprefix("oss")))[1]
        return f"http://{HOST}:{port}/metrics"
