"""What people do in a directory, done in a mount, with every byte compared: with the original and by a second mount."""

import errno
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import pytest

from tests.harness.process import process_cluster, succeed

pytestmark = pytest.mark.timeout(180)

REPOSITORY = Path(__file__).parents[2]
RUN_S = 120


class Place(NamedTuple):
    """A directory in a mount, and the same directory through a second mount."""

    near: Path
    far: Path


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place]:
    base = tmp_path_factory.mktemp("workloads")
    with process_cluster(base) as cluster:
        far = base / "far"
        far.mkdir()
        succeed("mount", cluster.url, far, "--keyring", cluster.keyring)
        try:
            yield Place(cluster.mount, far)
        finally:
            succeed("umount", far)


@pytest.fixture
def place(mounts: Place, request: pytest.FixtureRequest) -> Place:
    name: str = cast(pytest.Item, request.node).name  # pyright: ignore[reportUnknownMemberType]
    (mounts.near / name).mkdir()
    return Place(mounts.near / name, mounts.far / name)


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run a command that must succeed; what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def need(program: str) -> str:
    """The path of a program, without which the test is skipped."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def sums(tree: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory, by relative path."""
    return {
        str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository's files: a few hundred, of all sizes."""
    tree = tmp_path_factory.mktemp("source") / "tree"
    ignore = shutil.ignore_patterns(".git", "__pycache__", "build", "*.egg-info", ".*cache", ".venv", "farm")
    shutil.copytree(REPOSITORY, tree, symlinks=True, ignore=ignore)
    (tree / "large").write_bytes(os.urandom(9_000_001))
    (tree / "link").symlink_to("README.md")
    (tree / "empty").mkdir()
    return tree


def test_tree_that_was_copied_in_and_tarred_out_is_the_same(place: Place, source: Path, tmp_path: Path) -> None:
    run("cp", "-a", source, place.near / "tree")
    run("diff", "-r", "--no-dereference", source, place.near / "tree")
    run("diff", "-r", "--no-dereference", source, place.far / "tree")
    run("tar", "cf", tmp_path / "out.tar", "-C", place.far, "tree")
    run("tar", "xf", tmp_path / "out.tar", "-C", tmp_path)
    assert sums(tmp_path / "tree") == sums(source)
    listing = "find . -printf '%p %m %U %G %l %T@ %n\\n' | grep -v '^\\./*$' | sort"
    assert run("sh", "-c", listing, cwd=place.far / "tree") == run("sh", "-c", listing, cwd=source)


def test_tar_in_the_mount_packs_and_unpacks(place: Place, source: Path) -> None:
    run("tar", "czf", place.near / "in.tar.gz", "-C", source.parent, "tree")
    run("tar", "xzf", place.far / "in.tar.gz", "-C", place.far)
    run("diff", "-r", "--no-dereference", source, place.near / "tree")


def write_c_project(folder: Path, modules: int) -> None:
    """A program of many files that prints the sum of what they return."""
    names = [f"m{number:02d}" for number in range(modules)]
    for number, name in enumerate(names):
        (folder / f"{name}.h").write_text(f"int {name}(void);\n")
        (folder / f"{name}.c").write_text(f'#include "{name}.h"\nint {name}(void) {{ return {number}; }}\n')
    includes = "".join(f'#include "{name}.h"\n' for name in names)
    (folder / "main.c").write_text(
        f'#include <stdio.h>\n{includes}int main(void) {{ printf("%d\\n", {" + ".join(f"{n}()" for n in names)}); }}\n'
    )
    objects = " ".join(f"{name}.o" for name in [*names, "main"])
    (folder / "Makefile").write_text(
        f"OBJECTS = {objects}\nprogram: libm.a main.o\n\t$(CC) -o $@ main.o libm.a\n"
        "libm.a: $(filter-out main.o,$(OBJECTS))\n\t$(AR) rcs $@ $^\n"
        "main.o: $(wildcard *.h)\n%.o: %.c\n\t$(CC) -c -MMD -o $@ $<\nclean:\n\trm -f *.o *.a *.d program\n"
    )


def test_c_project_is_built_by_make(place: Place) -> None:
    need("make")
    need("cc")
    write_c_project(place.near, 20)
    run("make", "-j2", cwd=place.near)
    assert run(place.near / "program") == f"{sum(range(20))}\n"
    assert run(place.far / "program") == f"{sum(range(20))}\n"
    assert "up to date" in run("make", cwd=place.far, LC_ALL="C")
    (place.far / "m07.c").write_text("int m07(void) { return 1007; }\n")
    run("make", "-j2", cwd=place.near)
    assert run(place.far / "program") == f"{sum(range(20)) + 1000}\n"
    run("make", "clean", cwd=place.far)
    assert not list(place.near.glob("*.o"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with 60 commits; this one's own history may be shallow or missing where the tests run."""
    need("git")
    origin = tmp_path_factory.mktemp("origin")
    names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    run("git", "init", "-q", "-b", "main", cwd=origin)
    for folder in ("common", "mds", "client"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, origin / folder, ignore=ignore)
        run("git", "add", "-A", cwd=origin)
        run("git", "commit", "-qm", folder, cwd=origin, **names)
    for number in range(57):
        (origin / f"file{number % 9}").write_text(f"{number}\n" * (number + 1))
        run("git", "add", "-A", cwd=origin)
        run("git", "commit", "-qm", f"change {number}", cwd=origin, **names)
        if number == 30:
            run("git", "tag", "old", cwd=origin)
    return origin


def test_git_works(place: Place, repository: Path) -> None:
    clone = place.near / "clone"
    run("git", "clone", "-q", "--no-hardlinks", repository, clone)
    run("git", "fsck", "--full", "--strict", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    run("git", "checkout", "-q", "old", cwd=clone)
    run("git", "checkout", "-q", "main", cwd=clone)
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "more", cwd=clone)
    run("git", "repack", "-adq", cwd=clone)
    run("git", "gc", "-q", "--prune=now", cwd=clone)
    far = place.far / "clone"
    safe = ("-c", f"safe.directory={far}")
    run("git", *safe, "fsck", "--full", cwd=far)
    assert run("git", *safe, "status", "--porcelain", cwd=far) == ""
    assert run("git", *safe, "log", "--oneline", cwd=far).count("\n") == 61
    run("diff", "-r", "-x", ".git", repository, far)


def test_python_compiles_and_runs_what_lies_there(place: Place, source: Path) -> None:
    shutil.copytree(source / "common", place.near / "package")
    run(sys.executable, "-m", "compileall", "-q", "-j", "2", place.near / "package")
    compiled = sorted(path.name for path in (place.far / "package").rglob("*.pyc"))
    assert len(compiled) == len(list((source / "common").rglob("*.py")))
    code = "import sys; sys.path.insert(0, sys.argv[1]); import package.fid as f; print(f.__file__)"
    assert run(sys.executable, "-P", "-c", code, place.far).strip() == str(place.far / "package" / "fid.py")


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist"])
def test_sqlite_database(place: Place, journal: str) -> None:
    path = place.near / "db"
    with_rows = 500
    database = sqlite3.connect(path)
    try:
        assert database.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
        database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
        for start in range(0, with_rows, 50):
            with database:
                rows_of_one = [(k, bytes([k % 251]) * 200) for k in range(start, start + 50)]
                database.executemany("INSERT INTO t VALUES (?, ?)", rows_of_one)
        with database:
            database.execute("DELETE FROM t WHERE k % 7 = 0")
        database.execute("BEGIN")
        database.execute("DELETE FROM t")
        database.rollback()
        database.execute("VACUUM")
    finally:
        database.close()
    database = sqlite3.connect(place.far / "db")
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = dict(database.execute("SELECT k, v FROM t"))
    finally:
        database.close()
    assert rows == {k: bytes([k % 251]) * 200 for k in range(with_rows) if k % 7}


def test_sqlite_with_a_write_ahead_log_works_in_exclusive_mode(place: Place) -> None:
    """Its shared memory is a writable shared mapping, which files that are open for writing do not have yet; exclusive
    mode does without."""
    database = sqlite3.connect(place.near / "db")
    try:
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        assert database.execute("PRAGMA journal_mode=wal").fetchone() == ("wal",)
        with database:
            database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY)")
            database.executemany("INSERT INTO t VALUES (?)", ((k,) for k in range(2000)))
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        database.close()
    database = sqlite3.connect(place.far / "db")
    try:
        assert database.execute("SELECT count(*) FROM t").fetchone() == (2000,)
    finally:
        database.close()


def test_rsync_copies_and_then_finds_nothing_to_do(place: Place, source: Path) -> None:
    need("rsync")
    run("rsync", "-a", f"{source}/", place.near / "tree")
    assert run("rsync", "-ain", "--checksum", f"{source}/", place.far / "tree") == ""
    with open(place.far / "tree" / "large", "r+b") as file:
        file.seek(5_000_000)
        file.write(b"changed")
    run("rsync", "-a", "--inplace", "--no-whole-file", "--checksum", f"{source}/", place.near / "tree")
    run("diff", "-r", "--no-dereference", source, place.far / "tree")


def test_sparse_files_stay_the_same(place: Place) -> None:
    original = place.near / "sparse"
    with open(original, "wb") as file:
        file.write(b"begin")
        file.seek(40 << 20)
        file.write(b"middle")
        file.truncate(100 << 20)
    for how in ("auto", "always"):
        run("cp", f"--sparse={how}", original, place.near / how)
        run("cmp", original, place.far / how)
    assert os.stat(place.far / "sparse").st_size == 100 << 20
    assert os.stat(place.far / "sparse").st_blocks * 512 < 4 << 20
    assert os.stat(place.far / "always").st_blocks * 512 < 4 << 20


def test_names_of_any_bytes_are_kept(place: Place) -> None:
    names = {b"\xff\xfe", b"a\nb", b" ", "€😀".encode(), b"n" * 255, b"-rf", b"*", b"\x7f", b"a\\b", b"tab\there"}
    for name in names:
        with open(os.path.join(os.fsencode(place.near), name), "wb") as file:
            file.write(name)
    assert set(os.listdir(os.fsencode(place.far))) == names
    for name in names:
        with open(os.path.join(os.fsencode(place.far), name), "rb") as file:
            assert file.read() == name
    run("find", place.near, "-mindepth", "1", "-delete")
    assert os.listdir(place.far) == []


def test_links_and_deep_paths(place: Place) -> None:
    (place.near / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        os.stat(place.far / "loop")
    (place.near / "file").write_text("one file")
    for number in range(50):
        os.link(place.near / "file", place.near / f"hard{number}")
    assert os.stat(place.far / "hard7").st_nlink == 51
    (place.far / "hard7").write_text("changed through one name")
    assert (place.near / "hard49").read_text() == "changed through one name"
    deep = place.near.joinpath(*["d" * 60] * 40)
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("deep")
    assert place.far.joinpath(*["d" * 60] * 40, "bottom").read_text() == "deep"
    run("rm", "-r", place.near / ("d" * 60))
    assert sorted(os.listdir(place.far)) == sorted(["loop", "file", *(f"hard{number}" for number in range(50))])


@pytest.mark.slow
def test_large_directory_is_removed_while_another_mount_lists_it(place: Place) -> None:
    count = 5000
    names = [f"entry-{number:05d}" for number in range(count)]
    (place.near / "many").mkdir()
    for name in names:
        os.mknod(place.near / "many" / name)
    assert sorted(os.listdir(place.far / "many")) == names
    done = threading.Event()
    listings: list[list[str]] = []

    def watch() -> None:
        while not done.wait(0.1):
            try:
                listings.append(os.listdir(place.far / "many"))
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.ESTALE)  # the directory itself is gone
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run("rm", "-r", place.near / "many")
    finally:
        done.set()
        watcher.join()
    for listing in listings:
        assert len(set(listing)) == len(listing), "a name was listed twice"
    for earlier, later in pairwise(listings):
        assert set(later) <= set(earlier), "what is removed does not come back"
    assert not (place.far / "many").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_python_itself_is_copied_packed_and_compiled(place: Place, tmp_path: Path) -> None:
    """The standard library: some thousand files."""
    library = Path(sysconfig.get_path("stdlib"))
    ignore = shutil.ignore_patterns("__pycache__", "site-packages", "config-*", "*.a")
    shutil.copytree(library, tmp_path / "lib", ignore=ignore)
    run("cp", "-a", tmp_path / "lib", place.near / "lib")
    run("diff", "-r", tmp_path / "lib", place.far / "lib")
    run("tar", "cf", place.far / "lib.tar", "-C", place.far, "lib")
    (tmp_path / "out").mkdir()
    run("tar", "xf", place.near / "lib.tar", "-C", tmp_path / "out")
    run("diff", "-r", tmp_path / "lib", tmp_path / "out" / "lib")
    run(sys.executable, "-m", "compileall", "-q", "-j", "2", "-x", "test|bad", place.near / "lib")
    write_c_project(place.near, 200)
    run("make", "-j4", cwd=place.near)
    assert run(place.far / "program") == f"{sum(range(200))}\n"
    run("rm", "-r", place.near / "lib")
    assert not (place.far / "lib").exists()
