"""Every SQL statement that an MDT runs, built with SQLAlchemy Core and compiled once.

SQLAlchemy's own execution costs about ten times the driver's (docs/adr/0002-sql-store.md); so the text is made at
start-up and run through the driver's cursor with a tuple of parameters. `Statements` is the list: each attribute is SQL
text in the dialect of one engine; its parameters stand in the order given beside it, which is verified when it is
compiled.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, bindparam, delete, func, insert, literal_column, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.schema import Table

from nacrefs.mds.schema import (
    INODE_ROW,
    archive,
    dentry,
    destroy,
    hsm,
    hsm_action,
    hsm_gone,
    inline,
    inode,
    intent,
    link,
    link_dirty,
    link_log,
    link_object,
    mdt,
    mirror,
    mirror_writer,
    open_,
    ost,
    pool,
    quota,
    reply,
    rule,
    session,
    usage,
    warmup,
    warmup_item,
    xattr,
)

INODE_COLUMNS: Final = tuple(column.name for column in INODE_ROW)


def dialect_of(backend: str) -> Dialect:
    """The SQLAlchemy dialect of a backend (`sqlite` or `postgresql`), with positional parameters for its driver."""
    if backend == "sqlite":
        return sqlite.dialect(paramstyle="qmark")
    return psycopg.dialect(paramstyle="format")  # type: ignore[no-untyped-call]


def sql_text(statement: ClauseElement, order: str, dialect: Dialect) -> str:
    """A statement's SQL text; AssertionError unless its parameters stand in this order."""
    compiled: Any = statement.compile(dialect=dialect)
    if list(compiled.positiontup) != order.split():
        raise AssertionError(f"parameters are {compiled.positiontup}, not {order}: {compiled.string}")
    return str(compiled.string)


class Statements:
    """The compiled statements for one engine."""

    def __init__(self, backend: str) -> None:
        self._dialect = dialect_of(backend)
        self._upsert = sqlite.insert if backend == "sqlite" else postgresql.insert
        key = bindparam

        # --- reads
        # fid -> the inode's row
        self.inode = self._text(select(*INODE_ROW).where(inode.c.fid == key("fid")), "fid")
        # parent, name -> the row of the inode that the name stands for
        self.lookup = self._text(
            select(*INODE_ROW)
            .select_from(dentry.join(inode, inode.c.fid == dentry.c.fid))
            .where(dentry.c.parent == key("parent"), dentry.c.name == key("name")),
            "parent name",
        )
        # parent, after, limit -> name, inode row; in name order
        self.listing = self._text(
            select(dentry.c.name, *INODE_ROW)
            .select_from(dentry.join(inode, inode.c.fid == dentry.c.fid))
            .where(dentry.c.parent == key("parent"), dentry.c.name > key("after"))
            .order_by(dentry.c.name)
            .limit(key("limit"))
            .offset(literal_column("0")),
            "parent after limit",
        )
        # parent, after, limit -> name, inode row, inline contents; in name order
        self.listing_whole = self._text(
            select(dentry.c.name, *INODE_ROW, inline.c.data)
            .select_from(
                dentry.join(inode, inode.c.fid == dentry.c.fid).outerjoin(inline, inline.c.fid == dentry.c.fid)
            )
            .where(dentry.c.parent == key("parent"), dentry.c.name > key("after"))
            .order_by(dentry.c.name)
            .limit(key("limit"))
            .offset(literal_column("0")),
            "parent after limit",
        )
        # fid -> parent, name of each of its names
        self.names = self._text(select(dentry.c.parent, dentry.c.name).where(dentry.c.fid == key("fid")), "fid")
        # fid -> data
        self.inline = self._text(select(inline.c.data).where(inline.c.fid == key("fid")), "fid")
        # fid -> name, value; in name order
        self.xattrs = self._text(
            select(xattr.c.name, xattr.c.value).where(xattr.c.fid == key("fid")).order_by(xattr.c.name), "fid"
        )
        # fid -> number of its names, of names in it, of subdirectories
        self.count_names = self._text(select(func.count()).where(dentry.c.fid == key("fid")), "fid")
        self.count_entries = self._text(select(func.count()).where(dentry.c.parent == key("fid")), "fid")
        self.count_subdirectories = self._text(
            select(func.count()).where(inode.c.parent == key("fid"), inode.c.fid != key("self")), "fid self"
        )
        self.orphans = self._text(select(inode.c.fid).where(inode.c.nlink == literal_column("0")), "")
        self.opens = self._text(select(open_.c.session, open_.c.fid, open_.c.mode), "")
        # session, xid -> body
        self.reply = self._text(
            select(reply.c.body).where(reply.c.session == key("session"), reply.c.xid == key("xid")), "session xid"
        )
        # session -> xid, body; in xid order
        self.replies = self._text(
            select(reply.c.xid, reply.c.body).where(reply.c.session == key("session")).order_by(reply.c.xid), "session"
        )
        self.sessions = self._text(select(session).order_by(session.c.id), "")
        self.osts = self._text(select(ost).order_by(ost.c.index), "")
        self.pools = self._text(select(pool.c.name, pool.c.ost).order_by(pool.c.name, pool.c.ost), "")
        # after, limit -> fid, layout; in fid order
        self.destructions = self._text(
            select(destroy.c.fid, destroy.c.layout)
            .where(destroy.c.fid > key("after"))
            .order_by(destroy.c.fid)
            .limit(key("limit"))
            .offset(literal_column("0")),
            "after limit",
        )
        self.intents = self._text(select(intent.c.fid, intent.c.size, intent.c.layout), "")
        self.usage = self._text(select(usage), "")
        self.quotas = self._text(select(quota), "")
        # fid, number, ost, limit -> rows of `mirror` from behind there, in order
        self.mirrors = self._text(
            select(mirror)
            .where(tuple_(mirror.c.fid, mirror.c.number, mirror.c.ost) > tuple_(key("fid"), key("number"), key("ost")))
            .order_by(mirror.c.fid, mirror.c.number, mirror.c.ost)
            .limit(key("limit"))
            .offset(literal_column("0")),
            "fid number ost limit",
        )
        self.mirror_writers = self._text(select(mirror_writer.c.session, mirror_writer.c.fid), "")
        # after, limit -> fid, layout of the files that have one, in fid order
        self.layouts = self._text(
            select(inode.c.fid, inode.c.layout)
            .where(inode.c.fid > key("after"), inode.c.layout.is_not(None))
            .order_by(inode.c.fid)
            .limit(key("limit"))
            .offset(literal_column("0")),
            "after limit",
        )
        self.mdt = self._text(
            select(mdt.c.cluster, mdt.c.number, mdt.c.next_counter, mdt.c.next_session, mdt.c.epoch), ""
        )
        # The row stays locked until the commit, so a takeover waits for it (SQLite has one owner by its lock file).
        self.check_epoch = self._text(select(mdt.c.epoch).with_for_update(read=True), "")

        # --- the MDT's row
        self.take_over = self._text(update(mdt).values(epoch=mdt.c.epoch + literal_column("1")), "")
        # next_counter, next_session
        self.set_counters = self._text(
            update(mdt).values(next_counter=key("next_counter"), next_session=key("next_session")),
            "next_counter next_session",
        )

        # --- inodes; rows are in the order of the columns
        self.insert_inode = self._text(
            insert(inode).values({name: key(name) for name in INODE_COLUMNS}), " ".join(INODE_COLUMNS)
        )
        # What a change of names does to an inode: nlink, entries, change (increments), mtime_ns, ctime_ns, fid
        self.touch_inode = self._text(
            update(inode)
            .where(inode.c.fid == key("key"))
            .values(
                nlink=inode.c.nlink + key("d_nlink"),
                mtime_ns=key("d_mtime"),
                ctime_ns=key("d_ctime"),
                change=inode.c.change + key("d_change"),
                entries=inode.c.entries + key("d_entries"),
            ),
            "d_nlink d_mtime d_ctime d_change d_entries key",
        )
        # Everything that can change: see `tx.flush` for the order
        self.update_inode = self._text(
            update(inode)
            .where(inode.c.fid == key("key"))
            .values(
                mode=key("d_mode"),
                nlink=inode.c.nlink + key("d_nlink"),
                uid=key("d_uid"),
                gid=key("d_gid"),
                size=key("d_size"),
                blocks=key("d_blocks"),
                atime_ns=key("d_atime"),
                mtime_ns=key("d_mtime"),
                ctime_ns=key("d_ctime"),
                change=inode.c.change + key("d_change"),
                flags=key("d_flags"),
                entries=inode.c.entries + key("d_entries"),
                parent=key("d_parent"),
                layout=key("d_layout"),
                spec=key("d_spec"),
                project=key("d_project"),
                data_version=inode.c.data_version + key("d_version"),
            ),
            "d_mode d_nlink d_uid d_gid d_size d_blocks d_atime d_mtime d_ctime d_change d_flags d_entries d_parent"
            " d_layout d_spec d_project d_version key",
        )
        # flags, layout, spec, fid: of an inode whose layouts cannot be read
        self.set_layouts = self._text(
            update(inode)
            .where(inode.c.fid == key("key"))
            .values(layout=key("d_layout"), spec=key("d_spec"), flags=key("d_flags")),
            "d_flags d_layout d_spec key",
        )
        self.delete_inode = self._delete(inode, "fid")
        # copy_osts, fid
        self.set_copy_osts = self._text(
            update(inode).where(inode.c.fid == key("key")).values(copy_osts=key("d_osts")), "d_osts key"
        )
        # copy_class, fid
        self.set_copy_class = self._text(
            update(inode).where(inode.c.fid == key("key")).values(copy_class=key("d_class")), "d_class key"
        )

        # --- names
        self.insert_dentry = self._text(insert(dentry), "parent name fid")
        # fid, parent, name
        self.update_dentry = self._text(
            update(dentry)
            .where(dentry.c.parent == key("d_parent"), dentry.c.name == key("d_name"))
            .values(fid=key("d_fid")),
            "d_fid d_parent d_name",
        )
        self.delete_dentry = self._delete(dentry, "parent name")

        # --- what hangs on an inode
        self.put_inline = self._put(inline, "fid", "data")
        self.delete_inline = self._delete(inline, "fid")
        self.put_xattr = self._put(xattr, "fid name", "value")
        self.delete_xattr = self._delete(xattr, "fid name")
        self.delete_xattrs = self._delete(xattr, "fid")

        # --- sessions
        self.insert_session = self._text(insert(session), "id client host root created_ns")
        self.delete_session = self._delete(session, "id")
        self.put_open = self._put(open_, "session fid", "mode")
        self.delete_open = self._delete(open_, "session fid")
        self.delete_opens = self._delete(open_, "session")
        self.insert_reply = self._text(insert(reply), "session xid body")
        self.delete_replies = self._delete(reply, "session")
        # session, first xid to keep
        self.trim_replies = self._text(
            delete(reply).where(reply.c.session == key("session"), reply.c.xid < key("xid")), "session xid"
        )

        # --- quotas
        # uid, gid, project, bytes and inodes to add
        self.add_usage = self._add_usage()
        # bytes, inodes to add to the row of uid, gid, project
        self.more_usage = self._text(
            update(usage)
            .where(*_equal(usage, ("uid", "gid", "project")))
            .values(bytes=usage.c.bytes + key("d_bytes"), inodes=usage.c.inodes + key("d_inodes")),
            "d_bytes d_inodes uid gid project",
        )
        self.put_quota = self._put(
            quota,
            "kind id",
            "soft_bytes hard_bytes soft_inodes hard_inodes grace_bytes_s grace_inodes_s bytes_until_ns inodes_until_ns",
        )
        self.delete_quota = self._delete(quota, "kind id")

        # --- lifecycle tier
        # fid -> the row
        self.hsm = self._text(select(hsm).where(hsm.c.fid == key("fid")), "fid")
        columns = [column.name for column in hsm.columns]
        self.put_hsm = self._put(hsm, "fid", " ".join(columns[1:]))
        self.delete_hsm = self._delete(hsm, "fid")
        # archive, flags, number of files, bytes
        self.hsm_counts = self._text(
            select(hsm.c.archive, hsm.c.flags, func.count(), func.sum(hsm.c.size)).group_by(hsm.c.archive, hsm.c.flags),
            "",
        )
        # archive -> flags, number of files, bytes
        self.archive_counts = self._text(
            select(hsm.c.flags, func.count(), func.sum(hsm.c.size))
            .where(hsm.c.archive == key("archive"))
            .group_by(hsm.c.flags),
            "archive",
        )
        # archive, after, limit -> fid, key; in order of fid
        self.archive_keys = self._text(
            select(hsm.c.fid, hsm.c.key)
            .where(hsm.c.archive == key("archive"), hsm.c.fid > key("after"))
            .order_by(hsm.c.fid)
            .limit(key("limit"))
            .offset(literal_column("0")),
            "archive after limit",
        )
        self.archives = self._text(select(archive).order_by(archive.c.id), "")
        self.put_archive = self._put(archive, "id", "name spec gone")
        columns = [column.name for column in hsm_action.columns]
        self.put_action = self._put(hsm_action, "id", " ".join(columns[1:]))
        self.delete_action = self._delete(hsm_action, "id")
        # all that are not over, oldest first
        self.actions = self._text(
            select(hsm_action)
            .where(hsm_action.c.state.in_([literal_column("'WAITING'"), literal_column("'STARTED'")]))
            .order_by(hsm_action.c.id),
            "",
        )
        # fid -> its last action
        self.last_action = self._text(
            select(hsm_action)
            .where(hsm_action.c.fid == key("fid"))
            .order_by(hsm_action.c.id.desc())
            .limit(literal_column("1"))
            .offset(literal_column("0")),
            "fid",
        )
        self.newest_action = self._text(select(func.max(hsm_action.c.id)), "")
        # id -> nothing: those below it that are over are forgotten
        self.trim_actions = self._text(
            delete(hsm_action).where(
                hsm_action.c.id < key("id"),
                hsm_action.c.state.not_in([literal_column("'WAITING'"), literal_column("'STARTED'")]),
            ),
            "id",
        )
        self.rules = self._text(select(rule).order_by(rule.c.position), "")
        self.put_rule = self._put(rule, "id", "position document state reason last_run_ns counts")
        self.delete_rule = self._delete(rule, "id")
        # limit -> archive, key
        self.gone = self._text(
            select(hsm_gone.c.archive, hsm_gone.c.key).limit(key("limit")).offset(literal_column("0")), "limit"
        )
        # archive, key -> a row if it is to be deleted
        self.is_gone = self._text(
            select(hsm_gone.c.key).where(hsm_gone.c.archive == key("archive"), hsm_gone.c.key == key("key")),
            "archive key",
        )
        self.put_gone = self._text(
            self._upsert(hsm_gone).on_conflict_do_nothing(index_elements=["archive", "key"]), "archive key"
        )
        self.delete_gone = self._delete(hsm_gone, "archive key")

        # --- links
        self.links = self._text(select(link).order_by(link.c.id), "")
        self.put_link = self._put(link, "id", "fid spec state refreshed_ns counts reason")
        self.delete_link = self._delete(link, "id")
        self.put_link_object = self._put(link_object, "link key", "fid reason")
        # link, key, reason: the key is no file, unless it is one
        problem = self._upsert(link_object).values(
            link=key("link"), key=key("key"), fid=literal_column("0"), reason=key("reason")
        )
        self.put_link_problem = self._text(
            problem.on_conflict_do_update(
                index_elements=["link", "key"],
                set_={"reason": problem.excluded.reason},
                where=link_object.c.fid == literal_column("0"),
            ),
            "link key reason",
        )
        self.delete_link_object = self._delete(link_object, "link key fid")
        known = select(
            link_object.c.key, link_object.c.fid, link_object.c.reason,
            hsm.c.etag, hsm.c.size, hsm.c.archived_ns, hsm.c.flags,
        ).select_from(link_object.outerjoin(hsm, hsm.c.fid == link_object.c.fid))  # fmt: skip
        # link, key -> key, fid, reason, etag, size, archived_ns, flags (the last four NULL for a key that is no file)
        self.link_object = self._text(
            known.where(link_object.c.link == key("link"), link_object.c.key == key("key")), "link key"
        )
        # link, from, to, limit -> the same for keys from..to, in key order
        self.link_objects = self._text(
            known.where(
                link_object.c.link == key("link"), link_object.c.key >= key("first"), link_object.c.key <= key("last")
            )
            .order_by(link_object.c.key)
            .limit(key("limit"))
            .offset(literal_column("0")),
            "link first last limit",
        )
        # link, after, limit -> key, fid, reason; in key order
        self.link_keys = self._text(
            select(link_object.c.key, link_object.c.fid, link_object.c.reason)
            .where(link_object.c.link == key("link"), link_object.c.key > key("after"))
            .order_by(link_object.c.key)
            .limit(key("limit"))
            .offset(literal_column("0")),
            "link after limit",
        )
        # link, after, limit -> key, reason of keys that are no files; in key order
        self.link_problems = self._text(
            select(link_object.c.key, link_object.c.reason)
            .where(
                link_object.c.link == key("link"),
                link_object.c.key > key("after"),
                link_object.c.fid == literal_column("0"),
            )
            .order_by(link_object.c.key)
            .limit(key("limit"))
            .offset(literal_column("0")),
            "link after limit",
        )
        self.link_problem_count = self._text(
            select(func.count()).where(link_object.c.link == key("link"), link_object.c.fid == literal_column("0")),
            "link",
        )
        self.put_link_log = self._put(link_log, "link number", "time_ns text")
        # link -> number, time_ns, text; oldest first
        self.link_log = self._text(
            select(link_log.c.number, link_log.c.time_ns, link_log.c.text)
            .where(link_log.c.link == key("link"))
            .order_by(link_log.c.number),
            "link",
        )
        self.link_log_newest = self._text(
            select(func.max(link_log.c.number)).where(link_log.c.link == key("link")), "link"
        )
        # link, number: lines below it are forgotten
        self.trim_link_log = self._text(
            delete(link_log).where(link_log.c.link == key("link"), link_log.c.number < key("number")), "link number"
        )
        # parent, from, to, limit -> name, fid
        self.names_between = self._text(
            select(dentry.c.name, dentry.c.fid)
            .where(dentry.c.parent == key("parent"), dentry.c.name >= key("first"), dentry.c.name <= key("last"))
            .limit(key("limit"))
            .offset(literal_column("0")),
            "parent first last limit",
        )

        self.link_dirties = self._text(select(link_dirty), "")
        self.put_link_dirty = self._put(link_dirty, "fid", "link")
        self.delete_link_dirty = self._delete(link_dirty, "fid")
        self.delete_link_dirties = self._delete(link_dirty, "link")

        # --- warmup
        self.warmups = self._text(select(warmup).order_by(warmup.c.id), "")
        columns = [column.name for column in warmup.columns]
        self.put_warmup = self._put(warmup, "id", " ".join(columns[1:]))
        self.delete_warmup = self._delete(warmup, "id")
        self.put_warmup_item = self._put(warmup_item, "job number", "fid")
        # job, after, limit -> number, fid; in order
        self.warmup_items = self._text(
            select(warmup_item.c.number, warmup_item.c.fid)
            .where(warmup_item.c.job == key("job"), warmup_item.c.number > key("after"))
            .order_by(warmup_item.c.number)
            .limit(key("limit"))
            .offset(literal_column("0")),
            "job after limit",
        )
        # job -> number of the last, how many
        self.warmup_items_left = self._text(
            select(func.max(warmup_item.c.number), func.count()).where(warmup_item.c.job == key("job")), "job"
        )
        # job, number: those up to it are done
        self.delete_warmup_items = self._text(
            delete(warmup_item).where(warmup_item.c.job == key("job"), warmup_item.c.number <= key("number")),
            "job number",
        )

        # --- targets
        self.put_ost = self._put(ost, "index", "uuid address total_bytes free_bytes objects")
        self.insert_pool = self._text(insert(pool), "name ost")
        self.delete_pool = self._delete(pool, "name")
        self.insert_destroy = self._text(
            self._upsert(destroy).on_conflict_do_nothing(index_elements=["fid"]), "fid layout"
        )
        self.delete_destroy = self._delete(destroy, "fid")
        self.put_intent = self._put(intent, "fid", "size layout")
        self.delete_intent = self._delete(intent, "fid")

        # --- mirrors
        self.put_mirror = self._put(mirror, "fid number ost", "state generation")
        self.delete_mirror = self._delete(mirror, "fid number ost")
        self.put_mirror_writer = self._text(
            self._upsert(mirror_writer).on_conflict_do_nothing(index_elements=["session", "fid"]), "session fid"
        )
        self.delete_mirror_writer = self._delete(mirror_writer, "session fid")
        self.delete_mirror_writers = self._delete(mirror_writer, "session")

    def _text(self, statement: ClauseElement, order: str) -> str:
        return sql_text(statement, order, self._dialect)

    def _delete(self, table: Table, keys: str) -> str:
        """Delete the rows whose columns `keys` have these values."""
        return self._text(delete(table).where(*_equal(table, keys.split())), keys)

    def _put(self, table: Table, keys: str, values: str) -> str:
        """Insert a row, or give the one with the same keys these values."""
        statement = self._upsert(table)
        fresh = {name: statement.excluded[name] for name in values.split()}
        return self._text(statement.on_conflict_do_update(index_elements=keys.split(), set_=fresh), f"{keys} {values}")

    def _add_usage(self) -> str:
        statement = self._upsert(usage)
        more = {
            "bytes": usage.c.bytes + statement.excluded.bytes,
            "inodes": usage.c.inodes + statement.excluded.inodes,
        }
        adding = statement.on_conflict_do_update(index_elements=["uid", "gid", "project"], set_=more)
        return self._text(adding, "uid gid project bytes inodes")


def _equal(table: Table, names: Sequence[str]) -> list[ColumnElement[bool]]:
    return [table.c[name] == bindparam(name) for name in names]
