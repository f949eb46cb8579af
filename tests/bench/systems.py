"""The filesystems that `peers.py` measures: each started on this machine with two bricks, mounted twice by FUSE.

Everything here expects to run where `peers.py` puts it: as root in PID and mount namespaces that end with the run, so
that no process and no mount can be left behind. Each system has its own network namespace; the address that its
servers use exists only there.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from nacrefs.client.bench.workloads import Target, drop_kernel_caches

ADDRESS = "10.213.0.1"  # any address but 127.0.0.0/8, which GlusterFS and MooseFS refuse


class Network:
    """A network namespace with a loopback device that also has `ADDRESS`; it ends with its holder process."""

    def __init__(self) -> None:
        setup = f"ip link set lo up && ip address add {ADDRESS}/32 dev lo && echo ready && exec sleep infinity"
        self._holder = subprocess.Popen(["unshare", "--net", "sh", "-c", setup], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise SystemExit("cannot make a network namespace: root and the commands unshare and ip are needed")
        self._id = os.readlink(f"/proc/{self._holder.pid}/ns/net")

    def run(self, *command: str | Path) -> str:
        """Run a command in the namespace, return its output; stops the benchmark with what it said if it fails."""
        result = subprocess.run(
            ["nsenter", "-t", str(self._holder.pid), "-n", *map(str, command)],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            text=True,
        )
        if result.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}: exit code {result.returncode}\n{result.stdout}")
        return result.stdout

    def processes(self) -> dict[str, list[int]]:
        """Process ids in the namespace by what the process is."""
        found: dict[str, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != self._holder.pid:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if os.readlink(f"/proc/{entry}/ns/net") == self._id:
                        arguments = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                        found.setdefault(_process_name(arguments), []).append(int(entry))
        return found

    def close(self) -> None:
        """End the servers and the namespace."""
        for process_ids in self.processes().values():
            for process_id in process_ids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, 9)
        self._holder.kill()
        self._holder.communicate()


def _process_name(arguments: Sequence[bytes]) -> str:
    """`mds`, `oss` and `mount` for our processes, the command for others (which may rewrite what follows it)."""
    words = [argument.decode(errors="replace") for argument in arguments if argument]
    ours = [word for word in words if word in ("mds", "oss", "mount")]
    return (
        ours[0] if ours and any("nacre" in word for word in words) else Path(words[0].split()[0] if words else "?").name
    )


class System(Protocol):
    """A filesystem under test."""

    name: str

    def start(self) -> Sequence[Path]:
        """Start the servers and mount; returns the mounts, one or two."""
        ...

    def cold(self) -> None:
        """Make the clients forget everything."""
        ...

    def processes(self) -> Mapping[str, Sequence[int]]:
        """The servers and mounts by name."""
        ...

    def stop(self) -> None:
        """Unmount and end the servers."""
        ...


def target_of(system: System, directories: Sequence[Path]) -> Target:
    """What the workloads need to know of a started system."""
    return Target(system.name, directories, system.cold, system.processes)


class Local:
    """The filesystem that all the others keep their bytes on."""

    name = "local"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def start(self) -> Sequence[Path]:
        self._directory.mkdir()
        return [self._directory]

    def cold(self) -> None:
        drop_kernel_caches()

    def processes(self) -> Mapping[str, Sequence[int]]:
        return {}

    def stop(self) -> None:
        pass


class _Mounted:
    """Two mounts that are made by a command and unmounted by `umount`."""

    name: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.network = Network()
        self.mounts = [directory / "mount-1", directory / "mount-2"]
        for mount in self.mounts:
            mount.mkdir(parents=True)

    def start(self) -> Sequence[Path]:
        self.start_servers()
        for mount in self.mounts:
            self.mount(mount)
        self.ready()
        return self.mounts

    def start_servers(self) -> None:
        """Start everything but the mounts."""
        raise NotImplementedError

    def mount(self, mount: Path) -> None:
        """Make one mount."""
        raise NotImplementedError

    def ready(self) -> None:
        """Wait until a file can be written."""
        _wait(lambda: _can_write(self.mounts[0] / "probe"), f"{self.name} did not accept a file within 90 s")

    def cold(self) -> None:
        for mount in self.mounts:
            subprocess.run(["umount", mount], check=True)
            self.mount(mount)
        drop_kernel_caches()

    def processes(self) -> Mapping[str, Sequence[int]]:
        return self.network.processes()

    def stop(self) -> None:
        for mount in self.mounts:
            subprocess.run(["umount", "-l", mount], check=False, stderr=subprocess.DEVNULL)
        self.network.close()


class Gluster(_Mounted):
    """A distributed GlusterFS volume of two bricks, default options."""

    name = "glusterfs"
    packages = ("glusterfs-server", "glusterfs-client")

    def start_servers(self) -> None:
        # glusterd's places are fixed; in our mount namespace they lead to the run's directory.
        for place in "lib", "log", "brick-1", "brick-2":
            (self.directory / place).mkdir()
        for place, name in ("/var/lib/glusterd", "lib"), ("/var/log/glusterfs", "log"):
            Path(place).mkdir(exist_ok=True)
            subprocess.run(["mount", "--bind", self.directory / name, place], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
        Path("/run/gluster").mkdir()
        self.network.run("glusterd")
        bricks = [f"{ADDRESS}:{self.directory / brick}" for brick in ("brick-1", "brick-2")]
        self.network.run("gluster", "--mode=script", "volume", "create", "bench", *bricks, "force")
        self.network.run("gluster", "--mode=script", "volume", "start", "bench")

    def mount(self, mount: Path) -> None:
        self.network.run(
            "glusterfs", f"--volfile-server={ADDRESS}", "--volfile-id=bench", f"--log-file={mount}.log", mount
        )
        _wait(lambda: os.path.ismount(mount), f"GlusterFS did not mount: see {mount}.log")


class Moose(_Mounted):
    """MooseFS with two chunkservers, one copy of each chunk, default options but for the priority (no nice -19)."""

    name = "moosefs"
    packages = ("moosefs-master", "moosefs-chunkserver", "moosefs-client")

    def start_servers(self) -> None:
        common = "WORKING_USER = root\nWORKING_GROUP = root\nNICE_LEVEL = 0\n"
        master = self.directory / "master"
        master.mkdir()
        shutil.copy("/var/lib/mfs/metadata.mfs.empty", master / "metadata.mfs")
        (master / "exports.cfg").write_text("* / rw,alldirs,maproot=0:0\n")
        (master / "master.cfg").write_text(
            f"{common}DATA_PATH = {master}\nEXPORTS_FILENAME = {master}/exports.cfg\n"
            f"TOPOLOGY_FILENAME = {master}/topology.cfg\n"
        )
        (master / "topology.cfg").write_text("")
        self.network.run("mfsmaster", "-c", master / "master.cfg", "start")
        for number in range(2):
            server = self.directory / f"chunkserver-{number}"
            (server / "data").mkdir(parents=True)
            (server / "hdd.cfg").write_text(f"{server}/data\n")
            (server / "chunkserver.cfg").write_text(
                f"{common}DATA_PATH = {server}\nHDD_CONF_FILENAME = {server}/hdd.cfg\n"
                f"MASTER_HOST = {ADDRESS}\nBIND_HOST = {ADDRESS}\nCSSERV_LISTEN_PORT = {9422 + 100 * number}\n"
            )
            self.network.run("mfschunkserver", "-c", server / "chunkserver.cfg", "start")

    def mount(self, mount: Path) -> None:
        self.network.run("mfsmount", mount, "-H", ADDRESS)

    def ready(self) -> None:
        self.network.run("mfssetgoal", "-r", "1", self.mounts[0])
        super().ready()


class Nacre(_Mounted):
    """nacrefs as `nacre dev up` starts it: two OSSes with two OSTs each."""

    name = "nacrefs"

    def start_servers(self) -> None:
        cluster = self.directory / "cluster"
        self.network.run("nacre", "dev", "up", "--dir", cluster)
        status = json.loads(self.network.run("nacre", "dev", "status", "--dir", cluster, "--json"))
        if "url" not in status:
            raise SystemExit("`nacre dev status --json` does not say under `url` what to mount")
        self._url = str(status["url"])
        self._keyring = str(status["keyring"])

    def mount(self, mount: Path) -> None:
        self.network.run("nacre", "mount", self._url, mount, "--keyring", self._keyring)


class Mount:
    """A nacrefs mount that somebody else made; what its processes spend is not known here."""

    name = "nacrefs"

    def __init__(self, mount: Path) -> None:
        self._mount = mount

    def start(self) -> Sequence[Path]:
        return [self._mount]

    def cold(self) -> None:
        drop_kernel_caches()

    def processes(self) -> Mapping[str, Sequence[int]]:
        return {}

    def stop(self) -> None:
        pass


def _can_write(path: Path) -> bool:
    try:
        path.write_bytes(b"x")
        path.unlink()
    except OSError:
        return False
    return True


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    """Poll a foreign daemon, which offers no event to wait for."""
    deadline = time.monotonic() + 90
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(otherwise)
        time.sleep(0.05)
