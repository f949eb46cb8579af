"""A process that locks as it is told: one JSON list per line in, one JSON answer per line out.

`["open", NAME, PATH, FLAGS]`, `["close", NAME]`, `["lockf", NAME, KIND, START, LENGTH, WAIT]`,
`["ofd", NAME, KIND, START, LENGTH, WAIT]`, `["getlk", NAME, KIND, START, LENGTH]`, `["flock", NAME, OPERATION]`,
`["write", NAME, OFFSET, TEXT]`, `["read", NAME, OFFSET, SIZE]`, `["fork"]`, `["dup", NAME, NEW]`.
KIND is one of r, w, u. A failure answers with the errno's name.
"""

import errno
import fcntl
import json
import os
import signal
import struct
import sys
from typing import Any

KINDS = {"r": fcntl.F_RDLCK, "w": fcntl.F_WRLCK, "u": fcntl.F_UNLCK}
LETTERS = {number: letter for letter, number in KINDS.items()}
F_OFD_SETLK, F_OFD_SETLKW = 37, 38
FLOCK = struct.Struct("hhqqi4x")
files: dict[str, int] = {}
children: list[int] = []


def set_lock(command: int, name: str, kind: str, start: int, length: int) -> None:
    fcntl.fcntl(files[name], command, FLOCK.pack(KINDS[kind], os.SEEK_SET, start, length, 0))


def act(verb: str, *words: Any) -> Any:
    if verb == "open":
        name, path, flags = words
        files[name] = os.open(path, flags, 0o666)
    elif verb == "close":
        os.close(files.pop(words[0]))
    elif verb == "dup":
        files[words[1]] = os.dup(files[words[0]])
    elif verb == "lockf":
        *lock, wait = words
        set_lock(fcntl.F_SETLKW if wait else fcntl.F_SETLK, *lock)
    elif verb == "ofd":
        *lock, wait = words
        set_lock(F_OFD_SETLKW if wait else F_OFD_SETLK, *lock)
    elif verb == "getlk":
        name, kind, start, length = words
        asked = FLOCK.pack(KINDS[kind], os.SEEK_SET, start, length, 0)
        found, _, start, length, pid = FLOCK.unpack(fcntl.fcntl(files[name], fcntl.F_GETLK, asked))
        return [LETTERS[found], start, length, pid] if LETTERS[found] != "u" else ["u"]
    elif verb == "flock":
        fcntl.flock(files[words[0]], words[1])
    elif verb == "write":
        name, offset, text = words
        os.pwrite(files[name], text.encode(), offset)
    elif verb == "read":
        name, offset, size = words
        return os.pread(files[name], size, offset).decode()
    elif verb == "fork":
        children.append(pid := os.fork())
        if not pid:
            signal.pause()
        return pid
    return None


def main() -> None:
    signal.signal(signal.SIGUSR1, lambda number, frame: (_ for _ in ()).throw(InterruptedError(errno.EINTR, "signal")))
    for line in sys.stdin:
        try:
            answer = act(*json.loads(line))
        except OSError as error:
            answer = errno.errorcode[error.errno or 0]
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
