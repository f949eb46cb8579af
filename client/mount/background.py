"""Running work in a process of its own that outlives us, once it has said that it is ready.

The fork happens before any event loop or thread exists. The parent waits on a pipe: the child writes `ready`, or what
went wrong, which the parent raises as if it had happened here.
"""

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from nacrefs.common.config import ConfigError

Ready = Callable[[], None]
_READY: Final = b"ready"


def detach(work: Callable[[Ready], None], what: str, log_file: str) -> int:
    """Run `work(ready)` in a new session, its output going to `log_file`, and return its pid once it calls `ready`.

    Raises what `work` raised before that (OSError, ConfigError), or OSError (EIO) if its process died without a word.
    """
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        _run(work, theirs, log)
    os.close(theirs)
    os.close(log)
    try:
        with os.fdopen(ours, "rb") as pipe:
            words = pipe.read()
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    if words == _READY:
        return pid
    _, status = os.waitpid(pid, 0)
    raise _failure(words, f"{what} died ({_end(status)}); see {log_file}")


def _run(work: Callable[[Ready], None], pipe: int, log: int) -> None:
    """The child's life; never returns."""
    code = 1
    told = False

    def tell(words: bytes) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(pipe, words)
            os.close(pipe)

    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number, source in enumerate((null, log, log)):
            os.dup2(source, number)
        os.close(null)
        os.close(log)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.chdir("/")
        work(lambda: tell(_READY))
        code = 0
    except (OSError, ConfigError) as error:
        if told:
            traceback.print_exc()
        tell(json.dumps(_words_of(error)).encode())
    except BaseException as error:
        traceback.print_exc()
        tell(json.dumps({"errno": errno.EIO, "text": f"{type(error).__name__}: {error}"}).encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _words_of(error: OSError | ConfigError) -> dict[str, Any]:
    if isinstance(error, ConfigError):
        return {"text": str(error)}
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    return {"errno": error.errno or errno.EIO, "text": error.strerror or str(error), "filename": name}


def _failure(words: bytes, otherwise: str) -> OSError | ConfigError:
    if not words:
        return OSError(errno.EIO, otherwise)
    told: dict[str, Any] = json.loads(words)
    if "errno" not in told:
        return ConfigError(told["text"])
    if told.get("filename"):
        return OSError(told["errno"], told["text"], told["filename"])
    return OSError(told["errno"], told["text"])


def _end(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
