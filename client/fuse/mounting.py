"""Attaching a FUSE file system to a directory, and taking it away again.

Root calls mount(2) itself; anybody else goes through `fusermount3`, a setuid program that does the same and hands the
open `/dev/fuse` back over a socket (its protocol: `_FUSE_COMMFD` names the socket, one message with SCM_RIGHTS comes).
These functions block for a moment: an event loop that serves a mount calls them in a thread.
"""

import array
import ctypes
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from typing import Final, NamedTuple

SUBTYPE: Final = "nacre"
FSTYPE: Final = "fuse.nacre"
DEVICE: Final = "/dev/fuse"

_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_FLAGS: Final = {
    "ro": 1, "rw": 0, "nosuid": 2, "suid": 0, "nodev": 4, "dev": 0, "noexec": 8, "exec": 0, "sync": 16, "async": 0,
    "dirsync": 128, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21, "strictatime": 1 << 24, "atime": 0,
}  # fmt: skip
"""Mount options that are flags of mount(2) (MS_…), not text for the file system."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


class MountEntry(NamedTuple):
    """One line of /proc/self/mountinfo: `number` is the mount's id, `device` is `major:minor`."""

    number: str
    device: str
    path: str
    fstype: str
    source: str


def all_mounts() -> list[MountEntry]:
    """Everything that is mounted, what covers something else after it."""
    found: list[MountEntry] = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.rstrip("\n").partition(" - ")
            fields, more = left.split(" "), right.split(" ")
            found.append(MountEntry(fields[0], fields[2], _unescape(fields[4]), more[0], _unescape(more[1])))
    return found


def mounts_at(path: str) -> list[MountEntry]:
    """What is mounted on exactly this directory (an absolute path), the visible one last."""
    return [entry for entry in all_mounts() if entry.path == path]


def _unescape(text: str) -> str:
    """Undo the octal escapes of space, tab, newline and backslash in /proc/self/mountinfo."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def mount(source: str, directory: str, options: Sequence[str], max_read_bytes: int, permissions: bool = True) -> int:
    """Mount and return the `/dev/fuse` descriptor that serves it, not blocking. A dead mount there is replaced.

    `options` are those of mount(8) (`ro`, `nosuid`, `noatime`, …) and `noallow_other`. Root's mounts are for
    everybody (`allow_other`) unless that is given; others get what /etc/fuse.conf allows them. The kernel checks
    permissions unless `permissions` says that somebody else does.

    Raises OSError: ENOTDIR or ENOENT for the directory, EBUSY if this is mounted there already, ENODEV or EPERM
    without a usable /dev/fuse, EINVAL for an option that does not exist.
    """
    directory = os.path.abspath(directory)
    clear_stale(directory)
    if not os.path.isdir(directory):
        missing = errno.ENOTDIR if os.path.lexists(directory) else errno.ENOENT
        raise OSError(missing, "the mount point must be an existing directory (mkdir it first)", directory)
    if os.geteuid() == 0:
        return _mount_as_root(source, directory, options, max_read_bytes, permissions)
    return _mount_with_fusermount(source, directory, options, max_read_bytes, permissions)


def clear_stale(directory: str) -> None:
    """Take away what a dead daemon left mounted here ("transport endpoint is not connected"); EBUSY if it is alive."""
    while (here := mounts_at(directory)) and here[-1].fstype == FSTYPE:
        if _is_alive(directory):
            raise OSError(
                errno.EBUSY, f"{here[-1].source} is mounted here already (`nacre umount` it first)", directory
            )
        unmount(directory, lazy=True)


def _is_alive(directory: str) -> bool:
    """Whether somebody serves this mount. `stat` would not tell: the kernel may answer that by itself."""
    try:
        os.getxattr(directory, "nacre.mount")
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True


def _mount_as_root(source: str, directory: str, options: Sequence[str], max_read_bytes: int, permissions: bool) -> int:
    flags, words = _split_options(options)
    allow = "" if "noallow_other" in words else ",allow_other"
    _check_words(words, ("allow_other", "noallow_other", "default_permissions"))
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot open it ({error.strerror}): `modprobe fuse`, or give the container --device {DEVICE}",
            DEVICE,
        ) from error  # fmt: skip
    mode = os.stat(directory).st_mode
    data = f"fd={fd},rootmode={mode & 0o170000:o},user_id={os.getuid()},group_id={os.getgid()}"
    data += f"{',default_permissions' if permissions else ''}{allow},max_read={max_read_bytes}"
    if _libc.mount(source.encode(), os.fsencode(directory), FSTYPE.encode(), flags, data.encode()):
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, f"mounting failed: {os.strerror(number)} (options {data})", directory)
    return fd


def _mount_with_fusermount(
    source: str, directory: str, options: Sequence[str], max_read_bytes: int, permissions: bool
) -> int:
    _, words = _split_options(options)
    _check_words(words, ("allow_other", "noallow_other", "default_permissions"))
    passed = [name for name in options if name in _FLAGS and name not in ("suid", "dev", "atime")]
    if "allow_other" in words:
        passed.append("allow_other")
    passed += [f"max_read={max_read_bytes}", *(["default_permissions"] if permissions else []), f"subtype={SUBTYPE}"]
    passed.append("fsname=" + source.replace("\\", "\\\\").replace(",", "\\,"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        done = subprocess.run(
            [_fusermount(), "-o", ",".join(passed), "--", directory],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        theirs.close()
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fd = array.array("i", payload[:4])[0]
                os.set_blocking(fd, False)
                return fd
    text = done.stderr.decode(errors="replace").strip() or f"fusermount3 ended with code {done.returncode}"
    raise OSError(errno.EPERM, f"fusermount3 refused to mount: {text}", directory)


def _fusermount() -> str:
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise OSError(errno.ENOENT, "fusermount3 is needed to mount without being root: install the package fuse3")
    return program


def _split_options(options: Sequence[str]) -> tuple[int, set[str]]:
    """mount(2) flags, and the words that are none."""
    flags = 0
    for name in options:
        flags |= _FLAGS.get(name, 0)
    return flags, {name for name in options if name not in _FLAGS}


def _check_words(words: set[str], known: Sequence[str]) -> None:
    for word in sorted(words):
        if word not in known:
            raise OSError(errno.EINVAL, f"unknown mount option {word!r} (known: {', '.join((*_FLAGS, *known))})")


def unmount(directory: str, lazy: bool = False) -> None:
    """Unmount. Busy is EBUSY unless `lazy`, which detaches it at once and lets go when nobody uses it any more."""
    directory = os.path.abspath(directory)
    if os.geteuid() == 0:
        if _libc.umount2(os.fsencode(directory), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)):
            number = ctypes.get_errno()
            raise OSError(number, f"unmounting failed: {os.strerror(number)}", directory)
        return
    command = [_fusermount(), "-u", *(("-z",) if lazy else ()), "--", directory]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise OSError(errno.EBUSY if "busy" in text else errno.EINVAL, f"fusermount3 -u failed: {text}", directory)


def set_read_ahead(directory: str, read_ahead_kib: int) -> bool:
    """Let the kernel read this far ahead of a sequential reader; False if only root may say so."""
    here = mounts_at(os.path.abspath(directory))
    if not here:
        return False
    try:
        with open(f"/sys/class/bdi/{here[-1].device}/read_ahead_kb", "w", encoding="ascii") as setting:
            setting.write(str(read_ahead_kib))
    except OSError:
        return False
    return True
