"""Making, migrating and opening an MDT's database."""

import errno
from pathlib import Path

from sqlalchemy import Connection, create_engine, inspect
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from nacrefs.common.fid import FIRST_FREE, ROOT
from nacrefs.mds import schema
from nacrefs.mds.engine import Store, parse_url
from nacrefs.mds.inode import DIRECTORY_BLOCKS, DIRECTORY_BYTES

MIGRATIONS = Path(__file__).with_name("migrations")


def format_mdt(url: str, cluster: str, number: int, now_ns: int) -> None:
    """Make an empty MDT: tables, one row about itself, and for MDT 0 the root directory.

    Raises ValueError for a bad URL, OSError (EEXIST) if there is an MDT already, EBUSY if it is being served.
    """
    if not 0 <= number < 1 << 15:
        raise ValueError(f"MDT number {number} is not in 0..{(1 << 15) - 1}")
    target = parse_url(url)
    store = Store(target)
    try:
        with _connect(target) as connection:
            if inspect(connection).has_table(schema.mdt.name):
                raise FileExistsError(errno.EEXIST, f"{store.name} is an MDT already: its tree would be lost")
            _migrate(connection)
            connection.execute(
                schema.mdt.insert().values(
                    id=1,
                    cluster=cluster,
                    number=number,
                    next_counter=FIRST_FREE,
                    next_session=1,
                    epoch=0,
                )
            )
            if number == 0:
                connection.execute(schema.inode.insert().values(_root(now_ns)))
                root_bytes = DIRECTORY_BLOCKS * 512
                connection.execute(schema.usage.insert().values(uid=0, gid=0, project=0, bytes=root_bytes, inodes=1))
            connection.commit()
    except DBAPIError as error:
        raise store.failure(error.orig if isinstance(error.orig, Exception) else error) from error
    finally:
        store.close()


def open_store(url: str) -> Store:
    """Open an MDT's database as its owner, bringing an older schema up to date.

    Raises ValueError for a bad URL; OSError: ENOENT if it is not formatted, EBUSY (NotTheOwner) if another server has
    it, EPROTONOSUPPORT if its schema is newer than this program, EIO if it cannot be read.
    """
    target = parse_url(url)
    if target.get_backend_name() == "sqlite" and not Path(str(target.database)).exists():
        raise FileNotFoundError(
            errno.ENOENT, f"there is no MDT database {target.database}: make one with `nacre mds format`"
        )
    store = Store(target)
    try:
        _bring_up_to_date(store, target)
        store.take_over()
    except BaseException:
        store.close()
        raise
    return store


def _bring_up_to_date(store: Store, url: URL) -> None:
    try:
        with _connect(url) as connection:
            if not inspect(connection).has_table(schema.mdt.name):
                raise FileNotFoundError(
                    errno.ENOENT, f"{store.name} is not an MDT database: make one with `nacre mds format`"
                )
            (revision,) = connection.exec_driver_sql("SELECT version_num FROM alembic_version").one()
            if revision != schema.SCHEMA_VERSION:
                if not any(MIGRATIONS.joinpath("versions").glob(f"{revision}_*.py")):
                    raise OSError(
                        errno.EPROTONOSUPPORT,
                        f"{store.name} has schema {revision}, which is newer than this nacrefs"
                        f" ({schema.SCHEMA_VERSION}): serve it with the version that wrote it, or a later one",
                    )
                _migrate(connection)
                connection.commit()
    except DBAPIError as error:
        raise store.failure(error.orig if isinstance(error.orig, Exception) else error) from error


def _connect(url: URL) -> Connection:
    driver = "sqlite" if url.get_backend_name() == "sqlite" else "postgresql+psycopg"
    return create_engine(url.set(drivername=driver), poolclass=NullPool).connect()


def _migrate(connection: Connection) -> None:
    """Run the migrations that this database has not seen; alembic is only loaded when there are some."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _root(now_ns: int) -> dict[str, object]:
    return {
        "fid": ROOT,
        "mode": 0o040755,
        "nlink": 2,
        "uid": 0,
        "gid": 0,
        "rdev": 0,
        "size": DIRECTORY_BYTES,
        "blocks": DIRECTORY_BLOCKS,
        "atime_ns": now_ns,
        "mtime_ns": now_ns,
        "ctime_ns": now_ns,
        "btime_ns": now_ns,
        "change": 1,
        "flags": 0,
        "entries": 0,
        "parent": ROOT,
        "layout": None,
        "spec": None,
        "project": 0,
        "data_version": 0,
    }
