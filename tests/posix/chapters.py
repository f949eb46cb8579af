"""What POSIX and Linux say of each call on names and inodes, chapter by chapter, as cases to be compared with ext4.

`python -m tests.posix.chapters LOCAL MOUNT [CHAPTER…]` makes all calls in both directories and prints what differs. The
chapters are those of the usual conformance suites: every error that a call can give, who may, which times change when
it works, and that none does when it fails. Needs root.
"""

import itertools
import json
import sys
from typing import Any

from tests.posix import descriptors, inodes, names
from tests.posix.scene import CHAPTERS, Scene

MODULES = (names, inodes, descriptors)
Told = dict[str, list[tuple[str, Any]]]


def run(root: str, chapters: list[str] | None = None, stride: int = 1) -> Told:
    """What came of each call of all chapters, or of those named, in a directory; with `stride` of every so many."""
    told: Told = {}
    for name, act in CHAPTERS.items():
        if chapters is None or name in chapters:
            scene = Scene(f"{root}/{name}", stride)
            act(scene)
            scene.clear()
            told[name] = scene.told
    return told


def differences(here: Told, there: Told) -> list[str]:
    """Where two runs differ, for people."""
    found: list[str] = []
    for name, told in here.items():
        for number, (one, other) in enumerate(itertools.zip_longest(told, there[name])):
            if one != other:
                before = told[number - 1][0] if number and one and one[0].startswith("lstat") else ""
                found.append(f"{name}: {before} {one} != {other}")
    return found


def main() -> None:
    """Compare two directories."""
    chapters = sys.argv[3:] or None
    found = differences(run(sys.argv[1], chapters), run(sys.argv[2], chapters))
    print(json.dumps(found, indent=1))  # noqa: T201
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
