"""The kernel's structures: sizes as in linux/fuse.h, and that what is packed reads back as what was meant."""

import os
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.client.filesystem import Dirent, Found, Handle, Stat
from nacrefs.client.fuse import abi
from nacrefs.common.wire import Attr, Set, StatfsReply

NS = 1_000_000_000
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**63 - 1)
times = st.integers(-(2**33) * NS, 2**33 * NS)
attrs = st.builds(
    Attr, fid=st.integers(2, 2**64 - 1), mode=st.integers(0, 2**16 - 1), nlink=u32, uid=u32, gid=u32,
    rdev=st.builds(os.makedev, st.integers(0, 4095), st.integers(0, 2**20 - 1)), size=u64, blocks=u64,
    atime_ns=times, mtime_ns=times, ctime_ns=times, btime_ns=times,
)  # fmt: skip
ATTR = struct.Struct("=QQQqqqIIIIIIIIII")


def read_attr(packed: bytes, btime_ns: int) -> Attr:
    """An `Attr` from a fuse_attr."""
    (fid, size, blocks, atime, mtime, ctime, atime_n, mtime_n, ctime_n, mode, nlink, uid, gid, rdev, _, _) = (
        ATTR.unpack(packed)
    )
    device = abi.decode_rdev(rdev)
    return Attr(
        fid, mode, nlink, uid, gid, device, size, blocks,
        atime * NS + atime_n, mtime * NS + mtime_n, ctime * NS + ctime_n, btime_ns,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (abi.IN_HEADER, 40), (abi.OUT_HEADER, 16), (abi.INIT_OUT, 16 + 64), (abi.SETATTR_IN, 88), (ATTR, 88),
        (abi.COPY_FILE_RANGE_IN, 56), (abi.RENAME2_IN, 16), (abi.GETATTR_IN, 16),
    ],
)  # fmt: skip
def test_structures_have_the_sizes_of_the_header_file(structure: struct.Struct, size: int) -> None:
    assert structure.size == size


@given(attrs, st.booleans())
def test_attributes_survive_packing(attr: Attr, cacheable: bool) -> None:
    reply = abi.attr_reply(7, Stat(attr, cacheable))
    assert abi.OUT_HEADER.unpack_from(reply) == (len(reply), 0, 7)
    assert struct.unpack_from("=QII", reply, 16) == (abi.FOREVER_S if cacheable else 0, 0, 0)
    assert read_attr(reply[32:], attr.btime_ns) == attr


@given(attrs, st.booleans(), st.booleans())
def test_an_entry_carries_node_timeouts_and_attributes(attr: Attr, attr_cacheable: bool, entry_cacheable: bool) -> None:
    reply = abi.entry_reply(9, Found(attr, attr_cacheable, entry_cacheable), attr)
    assert abi.OUT_HEADER.unpack_from(reply) == (len(reply), 0, 9)
    node, generation, entry_s, attr_s, _, _ = struct.unpack_from("=QQQQII", reply, 16)
    assert (node, generation) == (attr.fid, 0)
    assert (entry_s > 0, attr_s > 0) == (entry_cacheable, attr_cacheable)
    assert read_attr(reply[56:], attr.btime_ns) == attr


def test_a_remembered_absence_is_node_zero_with_a_timeout() -> None:
    reply = abi.absent_reply(3)
    assert len(reply) == 16 + abi.ENTRY_BYTES
    assert struct.unpack_from("=QQQ", reply, 16) == (0, 0, abi.FOREVER_S)


@given(attrs)
def test_statx_brings_the_time_of_birth(attr: Attr) -> None:
    reply = abi.statx_reply(1, Stat(attr, True))
    assert len(reply) == 16 + 32 + 256
    seconds, nanoseconds = struct.unpack_from("=qI", reply, 16 + 32 + 80)
    assert seconds * NS + nanoseconds == attr.btime_ns


def test_create_answers_with_entry_and_handle() -> None:
    attr = Attr(77, stat.S_IFREG | 0o644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    handle = Handle(5, direct=True, keep_cache=False)
    reply = abi.create_reply(2, Found(attr, True, True), attr, handle, abi.file_open_flags(handle))
    assert abi.OUT_HEADER.unpack_from(reply) == (160, 0, 2)
    assert len(reply) == 160
    assert struct.unpack_from("=QI", reply, 144) == (5, abi.Fopen.DIRECT_IO | abi.Fopen.PARALLEL_DIRECT_WRITES)


@pytest.mark.parametrize(
    ("direct", "keep", "file", "directory"),
    [
        (
            True,
            True,
            abi.Fopen.DIRECT_IO | abi.Fopen.PARALLEL_DIRECT_WRITES,
            abi.Fopen.CACHE_DIR | abi.Fopen.KEEP_CACHE,
        ),
        (False, True, abi.Fopen.KEEP_CACHE | abi.Fopen.NOFLUSH, abi.Fopen.CACHE_DIR | abi.Fopen.KEEP_CACHE),
        (False, False, abi.Fopen.NOFLUSH, 0),
    ],
)
def test_open_flags_follow_the_handle(direct: bool, keep: bool, file: int, directory: int) -> None:
    handle = Handle(1, direct, keep)
    assert abi.file_open_flags_without_locks(handle) == file
    assert abi.file_open_flags(handle) == file & ~abi.Fopen.NOFLUSH
    assert abi.directory_open_flags(handle) == directory


@given(st.integers(0, 4095), st.integers(0, 2**20 - 1))
def test_device_numbers_survive_packing(major: int, minor: int) -> None:
    assert abi.decode_rdev(abi.encode_rdev(os.makedev(major, minor))) == os.makedev(major, minor)


def setattr_request(
    valid: int, *, handle: int = 0, size: int = 0, mtime: tuple[int, int] = (0, 0), mode: int = 0
) -> memoryview:
    body = abi.SETATTR_IN.pack(valid, 0, handle, size, 0, 0, mtime[0] % 2**64, 0, 0, mtime[1], 0, mode, 0, 12, 13, 0)
    return memoryview(bytes(abi.IN_HEADER_BYTES) + body)


def test_setattr_takes_times_before_1970() -> None:
    _, changes = abi.decode_setattr(setattr_request(1 << 5, mtime=(-5, 250)), now_ns=99)
    assert changes.valid == Set.MTIME
    assert changes.mtime_ns == -5 * NS + 250


def test_setattr_takes_now_from_us() -> None:
    _, changes = abi.decode_setattr(setattr_request(1 << 5 | 1 << 8, mtime=(1, 1)), now_ns=99)
    assert (changes.valid, changes.mtime_ns) == (Set.MTIME, 99)


def test_setattr_names_the_handle_and_size() -> None:
    handle, changes = abi.decode_setattr(setattr_request(1 << 3 | 1 << 6, handle=44, size=1 << 40), now_ns=0)
    assert (handle, changes.valid, changes.size) == (44, Set.SIZE, 1 << 40)


def test_a_change_of_owner_ends_setuid() -> None:
    handle, changes = abi.decode_setattr(setattr_request(1 << 1), now_ns=0)
    assert handle is None
    assert changes.valid == Set.UID | Set.KILL_PRIVILEGES
    assert changes.uid == 12


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=30), st.integers(0, 4096), st.booleans())
def test_listings_never_overflow_and_read_back(names: list[bytes], room: int, plus: bool) -> None:
    pack, fixed = (abi.pack_dirent_plus, 152) if plus else (abi.pack_dirent, 24)
    into, at = bytearray(8192), 0
    put: list[bytes] = []
    for number, name in enumerate(names):
        attr = Attr(100 + number, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        after = pack(into, at, room, Dirent(name, number + 1, attr, True))
        if not after:
            assert at + fixed + len(name) > room - 8
            break
        assert after <= room
        put.append(name)
        at = after
    seen: list[bytes] = []
    position = 0
    while position < at:
        inode, cookie, length, kind = struct.unpack_from("=QQII", into, position + fixed - 24)
        assert (inode, cookie, kind) == (100 + len(seen), len(seen) + 1, stat.S_IFDIR >> 12)
        seen.append(bytes(into[position + fixed : position + fixed + length]))
        position += (fixed + length + 7) & ~7
    assert seen == put


def test_dot_entries_take_no_reference() -> None:
    attr = Attr(100, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    into = bytearray(512)
    for name, node in ((b".", 0), (b"..", 0), (b"...", 100)):
        assert abi.pack_dirent_plus(into, 0, 512, Dirent(name, 1, attr, True))
        assert struct.unpack_from("=Q", into)[0] == node


def test_errors_are_negative_and_buffers_are_not_joined() -> None:
    assert abi.OUT_HEADER.unpack(abi.error_reply(5, 2)) == (16, -2, 5)
    first, second = memoryview(bytearray(3)), b"four"
    header, *rest = abi.buffers_reply(6, [first, second])
    assert abi.OUT_HEADER.unpack(bytes(header)) == (16 + 7, 0, 6)
    assert rest[0] is first
    assert rest[1] is second


def test_statfs_counts_blocks() -> None:
    reply = abi.statfs_reply(1, StatfsReply(1 << 30, 1 << 20, 10, 5))
    assert len(reply) == 96
    assert struct.unpack_from("=QQQQQIII", reply, 16) == (1 << 18, 1 << 8, 1 << 8, 10, 5, 4096, 255, 4096)


def test_notifications_say_their_length_and_code() -> None:
    for message, code in ((abi.inval_inode(9, -1, 0), 2), (abi.inval_entry(9, b"name"), 3), (abi.inc_epoch(), 8)):
        assert abi.OUT_HEADER.unpack_from(message) == (len(message), code, 0)
