"""`ost.toml`: what an OST's directory says about itself, and making such a directory."""

import errno
import os
import re
import tomllib
import uuid
from typing import Final

import msgspec

from nacrefs.oss import blockio

FORMAT: Final = 1
"""Version of what is in an OST's directory (docs/on-disk.md)."""
_LABEL: Final = "ost.toml"
_CLUSTER: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `ost.toml` says. `index` is -1 until the MDS has given one."""

    format: int
    cluster: str
    uuid: str
    index: int = -1


def write_label(root: str, label: Label) -> None:
    """Replace the label, durably."""
    text = (
        "# A nacrefs OST. `nacre oss format` wrote this file, `nacre oss serve` keeps it. Do not edit.\n"
        f'format = {label.format}\ncluster = "{label.cluster}"\nuuid = "{label.uuid}"\nindex = {label.index}\n'
    )
    path = os.path.join(root, _LABEL)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    blockio.sync_directory(root)


def read_label(root: str) -> Label:
    """What an OST's directory says it is; OSError with one line that says what to do if it is none of ours."""
    path = os.path.join(root, _LABEL)
    try:
        with open(path, "rb") as file:
            fields = tomllib.load(file)
    except FileNotFoundError:
        raise OSError(
            errno.ENOENT, f"not an OST: there is no {_LABEL} (make one with `nacre oss format {root}`)", root
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OSError(errno.EINVAL, f"{_LABEL} is damaged: {error}", path) from error
    version = fields.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise OSError(
            errno.EPROTONOSUPPORT,
            f"this OST has format {version}, this program knows up to {FORMAT}: install a newer nacrefs",
            root,
        )
    try:
        return msgspec.convert(fields, Label)
    except msgspec.ValidationError as error:
        raise OSError(errno.EINVAL, f"{_LABEL} is damaged: {error}", path) from error


def format_target(root: str, cluster: str, *, index: int = -1) -> Label:
    """Make an empty OST of a cluster in `root` (made if need be). EEXIST if there is one, ENOTEMPTY if there is
    anything else."""
    if not _CLUSTER.fullmatch(cluster):
        raise ValueError(f"cluster id {cluster!r} is not 1 to 64 letters, digits, dots, dashes or underscores")
    os.makedirs(root, mode=0o700, exist_ok=True)
    names = sorted(os.listdir(root))
    if _LABEL in names:
        label = read_label(root)
        raise OSError(
            errno.EEXIST, f"already an OST (uuid {label.uuid}, cluster {label.cluster}); remove it by hand first", root
        )
    if names and names != ["lost+found"]:
        raise OSError(errno.ENOTEMPTY, f"not empty ({names[0]} …); an OST needs a directory of its own", root)
    os.mkdir(os.path.join(root, "objects"), mode=0o700)
    os.mkdir(os.path.join(root, "index"), mode=0o700)
    label = Label(FORMAT, cluster, str(uuid.uuid4()), index)
    write_label(root, label)
    blockio.sync_directory(os.path.dirname(os.path.abspath(root)))
    return label
