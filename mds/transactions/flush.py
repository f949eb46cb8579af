"""How a batch reaches the database and then the cache.

    flush(tx)              event loop: one SQL transaction, everything written, nothing durable
    tx.mdt.store.commit()  any thread: durable
    publish(tx)            event loop: the batch is what everybody sees now

or `discard(tx)` at any point before the commit has succeeded.
"""

import itertools
import sqlite3
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import psycopg
from msgspec.structs import replace

from nacrefs.common.layout import Layout
from nacrefs.mds.access import accounts
from nacrefs.mds.engine import Cursor
from nacrefs.mds.inode import Inode, encode_layout, row_of
from nacrefs.mds.lifecycle.places import class_place, osts_place
from nacrefs.mds.links import marks
from nacrefs.mds.statements import Statements
from nacrefs.mds.transactions.cache import ABSENT
from nacrefs.mds.transactions.tx import COPIED, XATTRS, Tx


def flush(tx: Tx) -> None:
    """Begin a transaction and write the batch's changes; OSError if the engine refuses, after which: `discard`."""
    store = tx.mdt.store
    if tx.mdt.exports:
        marks.mark(tx)
    try:
        store.begin()
        with store.pipeline():
            cursor, statements = store.writer, store.statements
            _flush_names(tx, cursor, statements)
            _flush_inodes(tx, cursor, statements)
            _flush_usage(tx, cursor, statements)
            _flush_rest(tx, cursor, statements)
    except (sqlite3.Error, psycopg.Error) as error:
        raise store.failure(error) from error


def publish(tx: Tx) -> None:
    """The commit has succeeded: the batch becomes the committed state in memory."""
    mdt, cache = tx.mdt, tx.mdt.cache
    for fid, inode in tx.inodes.items():
        if inode is None:
            cache.drop_inode(fid)
        else:
            cache.put_inode(inode)
    for key, fid in tx.dentries.items():
        cache.put_dentry(key, fid)
    for fid, sessions in tx.open_sets.items():
        if sessions:
            mdt.opens[fid] = sessions
        else:
            mdt.opens.pop(fid, None)
    for fid, intent in tx.intents.items():
        if intent is None:
            mdt.intents.pop(fid, None)
        else:
            mdt.intents[fid] = intent
    mdt.accounts.apply(tx.usage, tx.quotas)
    for fid in tx.unmarked:
        mdt.dirty.pop(fid, None)
    mdt.dirty.update(tx.marked)
    if tx.ghosts:
        mdt.bury(tx.ghosts)
    for writer, writes in tx.mirror_writers.items():
        (mdt.mirror_writers.add if writes else mdt.mirror_writers.discard)(writer)
    if tx.ended_sessions and mdt.mirror_writers:
        mdt.mirror_writers = {key for key in mdt.mirror_writers if key[0] not in tx.ended_sessions}
    mdt.counter_limit = tx.counter_limit


def discard(tx: Tx, unknown: bool = False) -> None:
    """The batch does not happen. `unknown`: the commit failed, and may have happened: memory is read anew from SQL."""
    tx.mdt.store.rollback()
    if unknown:
        tx.mdt.reload()


def _run(cursor: Cursor, statement: str, rows: Sequence[Sequence[Any]]) -> None:
    if len(rows) == 1:
        cursor.execute(statement, rows[0])
    elif rows:
        cursor.executemany(statement, rows)


def _flush_names(tx: Tx, cursor: Cursor, statements: Statements) -> None:
    if not tx.dentries:
        return
    inserts: list[tuple[int, bytes, int]] = []
    updates: list[tuple[int, int, bytes]] = []
    deletes: list[tuple[int, bytes]] = []
    base = tx.base_dentries
    for key, fid in tx.dentries.items():
        before = base[key]
        if fid == before:
            continue
        if before == ABSENT:
            inserts.append((*key, fid))
        elif fid == ABSENT:
            deletes.append(key)
        else:
            updates.append((fid, *key))
    _run(cursor, statements.delete_dentry, deletes)
    _run(cursor, statements.update_dentry, updates)
    _run(cursor, statements.insert_dentry, inserts)


def _flush_inodes(tx: Tx, cursor: Cursor, statements: Statements) -> None:
    inodes = tx.inodes
    if tx.destroyed:
        bases = [tx.base[fid] for fid in tx.destroyed]
        _run(cursor, statements.delete_inode, [(fid,) for fid in tx.destroyed])
        _run(cursor, statements.delete_inline, [(base.attr.fid,) for base in bases if _has_inline_row(base)])
        _run(
            cursor,
            statements.delete_xattrs,
            [(base.attr.fid,) for base in bases if base.attr.flags & XATTRS],
        )
    fresh = tx.fresh
    if fresh:
        _run(cursor, statements.insert_inode, [row_of(inodes[fid]) for fid in sorted(fresh)])  # type: ignore[arg-type]
    touches: list[tuple[int, ...]] = []
    updates: list[tuple[Any, ...]] = []
    moved = [(osts_place(inode.layout), fid) for fid in fresh if (inode := inodes[fid]) and inode.attr.flags & COPIED]
    for fid, base in tx.base.items():
        inode = inodes[fid]
        if inode is None:
            continue
        if fid in tx.wide:
            if inode.attr.flags & COPIED and inode.data_version != base.data_version:  # the copy is of earlier contents
                inode.attr = replace(inode.attr, flags=inode.attr.flags & ~COPIED)
            updates.append(_update_row(inode, base))
            if inode.attr.flags & COPIED and not (base.attr.flags & COPIED and inode.layout is base.layout):
                moved.append((osts_place(inode.layout), fid))
        else:
            new, old = inode.attr, base.attr
            touches.append(
                (
                    new.nlink - old.nlink,
                    new.mtime_ns,
                    new.ctime_ns,
                    new.change - old.change,
                    inode.entries - base.entries,
                    fid,
                )
            )
    _run(cursor, statements.touch_inode, touches)
    _run(cursor, statements.update_inode, updates)
    _run(cursor, statements.set_copy_osts, moved)
    if tx.contents:
        _run(cursor, statements.put_inline, [item for item in tx.contents.items() if item[1]])
        _run(
            cursor,
            statements.delete_inline,
            [(fid,) for fid, data in tx.contents.items() if not data and fid not in fresh],
        )
    if tx.xattr_writes:
        writes = [(key, value) for key, value in tx.xattr_writes.items() if inodes[key[0]] is not None]
        _run(cursor, statements.delete_xattr, [key for key, value in writes if value is None])
        _run(cursor, statements.put_xattr, [(*key, value) for key, value in writes if value is not None])


def _update_row(inode: Inode, base: Inode) -> tuple[Any, ...]:
    """The parameters of `Statements.update_inode`: counters as increments, all else as it is now."""
    new, old = inode.attr, base.attr
    return (
        new.mode,
        new.nlink - old.nlink,
        new.uid,
        new.gid,
        new.size,
        new.blocks,
        new.atime_ns,
        new.mtime_ns,
        new.ctime_ns,
        new.change - old.change,
        new.flags,
        inode.entries - base.entries,
        inode.parent,
        encode_layout(inode.layout),
        encode_layout(inode.spec),
        inode.project,
        inode.data_version - base.data_version,
        new.fid,
    )


def _has_inline_row(inode: Inode) -> bool:
    return inode.is_symlink or (inode.is_inline and inode.attr.size > 0)


def _flush_usage(tx: Tx, cursor: Cursor, statements: Statements) -> None:
    """Add up what the batch uses more or less: one row for each owner, group and project together."""
    inodes, base, usage = tx.inodes, tx.base, tx.usage
    if tx.fresh or tx.destroyed or tx.wide:
        wide = ((base[fid], inode) for fid in tx.wide if fid in base and (inode := inodes[fid]) is not None)
        made = (inode for fid in tx.fresh if (inode := inodes[fid]) is not None)
        for triple, (used_bytes, count) in accounts.changes(made, map(base.__getitem__, tx.destroyed), wide).items():
            if triple in usage:
                usage[triple][0] += used_bytes
                usage[triple][1] += count
            elif used_bytes or count:
                usage[triple] = [used_bytes, count]
    books = tx.mdt.accounts
    for triple, (used_bytes, count) in usage.items():
        if triple in books.recorded:  # an update costs half of an insert that becomes one
            cursor.execute(statements.more_usage, (used_bytes, count, *triple))
        else:
            cursor.execute(statements.add_usage, (*triple, used_bytes, count))
    if books.quotas and usage:
        for account, quota in books.crossings(usage, tx.now_ns).items():
            tx.quotas.setdefault(account, quota)
    if tx.quotas:
        _run(cursor, statements.put_quota, [quota for quota in tx.quotas.values() if quota is not None])
        _run(cursor, statements.delete_quota, [account for account, quota in tx.quotas.items() if quota is None])


def _flush_rest(tx: Tx, cursor: Cursor, statements: Statements) -> None:
    mdt = tx.mdt
    if tx.counters_moved:
        cursor.execute(statements.set_counters, (tx.counter_limit, mdt.next_session))
    for name, several in itertools.groupby(tx.side, itemgetter(0)):
        _run(cursor, getattr(statements, name), [row for _, row in several])
    if tx.hsm:
        copies = [(class_place(row[2], row[10]), fid) for fid, row in tx.hsm.items() if row is not None]
        _run(cursor, statements.set_copy_class, copies)
    ended = tx.ended_sessions
    if tx.sessions:
        _run(cursor, statements.insert_session, tx.sessions)
    if ended:
        gone = [(session,) for session in ended]
        _run(cursor, statements.delete_session, gone)
        _run(cursor, statements.delete_opens, gone)
        _run(cursor, statements.delete_replies, gone)
        _run(cursor, statements.delete_mirror_writers, gone)
    if tx.open_writes:
        writes = [(session, fid, mode) for (session, fid), mode in tx.open_writes.items() if session not in ended]
        _run(cursor, statements.delete_open, [write[:2] for write in writes if not write[2]])
        _run(cursor, statements.put_open, [(session, fid, int(mode)) for session, fid, mode in writes if mode])
    _run(cursor, statements.trim_replies, list(tx.trims.items()))
    if tx.replies:
        rows = [(*key, body) for key, body in tx.replies.items() if key[0] not in ended]
        _run(cursor, statements.insert_reply, rows)
    if tx.new_destructions:
        gone_files = [(fid, _encoded(layout)) for fid, layout in tx.new_destructions]
        _run(cursor, statements.insert_destroy, gone_files)
    _run(cursor, statements.delete_destroy, [(fid,) for fid in tx.finished])
    if tx.intents:
        intents = [intent for intent in tx.intents.values() if intent is not None]
        _run(cursor, statements.put_intent, [(fid, size, _encoded(layout)) for fid, size, layout in intents])
        _run(cursor, statements.delete_intent, [(fid,) for fid, intent in tx.intents.items() if intent is None])
    if tx.mirrors:
        _run(cursor, statements.put_mirror, [record for record in tx.mirrors.values() if record is not None])
        _run(cursor, statements.delete_mirror, [key for key, record in tx.mirrors.items() if record is None])
    if tx.mirror_writers:
        writers = [(key, writes) for key, writes in tx.mirror_writers.items() if key[0] not in ended]
        _run(cursor, statements.put_mirror_writer, [key for key, writes in writers if writes])
        _run(cursor, statements.delete_mirror_writer, [key for key, writes in writers if not writes])
    _run(cursor, statements.put_ost, list(tx.osts.values()))
    if tx.pools:
        _run(cursor, statements.delete_pool, [(name,) for name in tx.pools])
        _run(cursor, statements.insert_pool, [(name, index) for name, osts in tx.pools.items() for index in osts])


def _encoded(layout: Layout) -> bytes:
    data = encode_layout(layout)
    assert data is not None
    return data
