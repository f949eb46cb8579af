"""The program of a mount's guard (`client.fuse.guard`): it waits for the death of its parent's main thread, and does
nothing else; then it aborts the connection of the mount, if that is still open.

    python3 -I -S guardian.py DIRECTORY      standard input: `MOUNT-ID MAJOR:MINOR` once there is a mount

It ends without a word if its standard input ends before. Everything that still waits for the daemon then fails with
ECONNABORTED, everything later with ENOTCONN; the mount stays where it is, dead, until somebody takes it away. Whoever
has mounted may write to the connection's file in fusectl, if that is mounted; root needs no such file. It imports
little, because it stays in memory as long as the mount.
"""

import os
import signal
import sys
from typing import Final

DEATH: Final = signal.SIGUSR1
"""What it is sent when the main thread has died; all other signals that can be blocked are."""
CONTROL: Final = "/sys/fs/fuse/connections"
_MNT_FORCE: Final = 1


def main() -> None:
    """Wait, then act."""
    with open("/proc/self/comm", "w", encoding="ascii") as name:
        name.write("nacre-guard")
    told = os.read(0, 256).decode("ascii").split()
    os.close(0)
    if not told:
        return
    number, device = told
    try:
        # Kept open: once the connection has ended this does nothing, whoever may get its number then.
        switch = os.open(f"{CONTROL}/{device.partition(':')[2]}/abort", os.O_WRONLY)
    except OSError:
        switch = -1
    signal.sigwait({DEATH})
    if switch >= 0:
        os.write(switch, b"1")
    else:
        force(sys.argv[1], number, device)


def force(directory: str, number: str, device: str) -> None:
    """End the connection of the mount with this id and device, if that is what is mounted at the directory, by a forced
    umount; the mount stays there, since we have it open."""
    import ctypes

    here = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{here}", encoding="ascii") as lines:
            opened = next(line.split()[1] for line in lines if line.startswith("mnt_id:"))
        with open("/proc/self/mountinfo", "rb") as lines:
            ours = any(line.split()[:3:2] == [number.encode(), device.encode()] for line in lines)
        if ours and opened == number:
            ctypes.CDLL(None).umount2(f"/proc/self/fd/{here}".encode(), _MNT_FORCE)
    finally:
        os.close(here)


if __name__ == "__main__":
    main()
