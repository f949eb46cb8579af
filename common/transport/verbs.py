"""RDMA devices through pyverbs, and the only module that imports it: when a device is looked for, not before.

Both of pyverbs' APIs are served: that of rdma-core 39 to 57 (Debian 12 has 44), and that since 58, which tells a
channel's descriptor, calls its enumerations `libibverbs_enums` and has their constants in classes. What pyverbs does
not do well is worked round here: objects for work requests are slow to make and leak or are freed twice, so they are
made once; importing it changes the root logger; nothing may be touched once it is closed. pyverbs must be of the
machine's rdma-core (docs/rdma.md).
"""

import ctypes
import enum
import errno
import importlib
import ipaddress
import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from nacrefs.common.arena import too_little
from nacrefs.common.transport.fabric import Completion, Piece, Port
from nacrefs.common.wire import RdmaEnd

_SYSFS: Final = Path("/sys/class/infiniband")
_PORTS_S: Final = 5.0
"""How long what was found is taken to be there."""
_ACTIVE: Final = "4: ACTIVE"
_ROCE_V2: Final = 2
"""`enum ibv_gid_type`"""
_GIDS: Final = 1024
"""Most addresses that a device may have (the kernel's answer must fit into 64 KiB)."""
_ENTRIES: Final = 4096
"""Size of a completion queue at first."""
_ACK: Final = 64
_READS: Final = 8
"""READs that a queue pair has in flight."""
# 4.096 µs · 2^14 = 67 ms, six times over: a device that is not there is given up after half a second. (With seven
# tries Soft-RoCE never gives up.)
_TIMEOUT: Final = 14
_TRIES: Final = 6
_INLINE_STEPS: Final = (256, 128, 64, 0)

_Verbs = Any
"""pyverbs' modules and their enumerations, which have no types."""
_loaded: list[_Verbs] = []
_lock: Final = threading.Lock()


def _load() -> _Verbs:
    """pyverbs; OSError that says what to do if it cannot be used."""
    if _loaded:
        return _loaded[0]
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    names = ("device", "pd", "mr", "cq", "qp", "addr", "wr", "pyverbs_error")
    try:
        verbs = SimpleNamespace(**{name: importlib.import_module(f"pyverbs.{name}") for name in names})
        try:
            verbs.e = enumerators(importlib.import_module("pyverbs.libibverbs_enums"))
        except ImportError:
            verbs.e = enumerators(importlib.import_module("pyverbs.enums"))
    except ModuleNotFoundError as error:
        raise OSError(
            errno.ENODEV,
            f"Python cannot import pyverbs ({error}): install the distribution's package (Debian: apt-get install "
            "python3-pyverbs) for this Python, see docs/rdma.md",
        ) from None
    except ImportError as error:
        raise OSError(
            errno.ENODEV,
            f"pyverbs is not of this machine's rdma-core ({error}): use the distribution's package, see docs/rdma.md",
        ) from None
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    _loaded.append(verbs)
    return verbs


def enumerators(module: ModuleType) -> SimpleNamespace:
    """The constants of a module of enumerations by their names in C: they are in the module (Cython before 3.1), or in
    its classes only."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, enum.EnumMeta):
            found |= value.__members__
        elif name.startswith("IBV_"):
            found[name] = value
    return SimpleNamespace(**found)


def _error(error: Any, what: str) -> OSError:
    """A pyverbs error as ours."""
    number = getattr(error, "error_code", 0)
    number = number if isinstance(number, int) and number > 0 else errno.EIO
    return OSError(number, f"{what}: {os.strerror(number)}")


class VerbsFabric:
    """The RDMA devices of this machine."""

    def __init__(self) -> None:
        self._found: list[Port] = []
        self._until_s = 0.0

    def ports(self) -> list[Port]:
        """The active ports, once for each of their addresses, RoCE v2 only; OSError saying why there is none."""
        if time.monotonic() < self._until_s:
            return self._found
        verbs = _load()
        devices = sorted(_SYSFS.iterdir()) if _SYSFS.is_dir() else []
        if not devices:
            raise OSError(errno.ENODEV, "this machine has no RDMA device (`rdma link` shows none)")
        self._found = [port for device in devices for port in _ports_of(verbs, device)]
        if not self._found:
            names = ", ".join(device.name for device in devices)
            raise OSError(errno.ENODEV, f"no port of the RDMA devices here ({names}) is active")
        self._until_s = time.monotonic() + _PORTS_S
        return self._found

    def open(self, port: Port) -> "VerbsDevice":
        return VerbsDevice(_load(), port)


def _ports_of(verbs: _Verbs, device: Path) -> list[Port]:
    """The active ports of a device; none if it cannot be opened."""
    try:
        context = verbs.device.Context(name=device.name)
    except verbs.pyverbs_error.PyverbsError:
        return []
    try:
        found: list[Port] = []
        for place in sorted((device / "ports").iterdir()):
            number = int(place.name)
            if (place / "state").read_text().strip() != _ACTIVE:
                continue
            attributes = context.query_port(number)
            ethernet = (place / "link_layer").read_text().strip() == "Ethernet"
            found += [
                Port(device.name, number, gid, index, int(attributes.lid), int(attributes.active_mtu), ethernet)
                for index, gid in _gids(context, number, ethernet)
            ]
        return found
    except verbs.pyverbs_error.PyverbsError as error:
        raise _error(error, f"the addresses of RDMA device {device.name} cannot be read") from None
    finally:
        context.close()


def _gids(context: Any, number: int, ethernet: bool) -> list[tuple[int, str]]:
    """Index and GID of a port's addresses. (Asked for as a table: sysfs has a file for each of up to 1024 places.)"""
    return [
        (int(entry.gid_index), str(ipaddress.IPv6Address(entry.gid_str())))
        for entry in context.query_gid_table(_GIDS)
        if entry.port_num == number and (entry.gid_type == _ROCE_V2 or not ethernet)
    ]


def _channel(verbs: _Verbs, context: Any) -> tuple[Any, int]:
    """A completion channel and its descriptor, which old pyverbs does not tell."""

    def channels() -> set[int]:
        found: set[int] = set()
        for entry in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if "infinibandevent" in os.readlink(f"/proc/self/fd/{entry}"):
                    found.add(int(entry))
        return found

    with _lock:
        before = channels()
        channel = verbs.cq.CompChannel(context)
        fd = getattr(channel, "fd", None)
        return channel, int(fd) if fd is not None else (channels() - before).pop()


class VerbsDevice:
    """An open device with a completion channel and a completion queue."""

    def __init__(self, verbs: _Verbs, port: Port) -> None:
        self.verbs = verbs
        self.port = port
        self._events = 0
        self._entries = 0
        try:
            self.context = verbs.device.Context(name=port.device)
            self._most = int(self.context.query_device().max_cqe)
            self._size = min(_ENTRIES, self._most)
            self._channel, self.fd = _channel(verbs, self.context)
            self.cq = verbs.cq.CQ(self.context, self._size, None, self._channel, 0)
        except verbs.pyverbs_error.PyverbsError as error:
            raise _error(error, f"RDMA device {port.device} cannot be opened") from None
        os.set_blocking(self.fd, False)

    def arm(self) -> None:
        with suppress(self.verbs.pyverbs_error.PyverbsError):  # there was no event
            self._channel.get_cq_event(self.cq)
            self._events += 1
        if self._events >= _ACK:
            self.cq.ack_events(self._events)
            self._events = 0
        self.cq.req_notify()

    def poll(self, most: int) -> list[Completion]:
        _, found = self.cq.poll(most)
        return [Completion(wc.wr_id, wc.status, wc.qp_num, wc.byte_len) for wc in found]

    def reserve(self, entries: int) -> None:
        """Make room for so many more completions (fewer, if negative); ENOMEM if the device has not so much."""
        wanted = self._entries + entries
        if wanted > self._size:
            size = min(self._most, max(wanted, 2 * self._size))
            if wanted > size:
                text = f"{self.port.device} has completions for {self._most // entries} connections only"
                raise OSError(errno.ENOMEM, text)
            try:
                self.cq.resize(size)
            except self.verbs.pyverbs_error.PyverbsError as error:
                raise _error(
                    error, f"{self.port.device}: more connections than its completion queue has room"
                ) from None
            self._size = size
        self._entries = wanted

    def domain(self, exposed: bool) -> "VerbsDomain":
        return VerbsDomain(self, exposed)

    def close(self) -> None:
        if self._events:
            self.cq.ack_events(self._events)
        for part in (self.cq, self._channel, self.context):
            part.close()
        self.fd = -1


class VerbsRegion:
    """Registered memory."""

    def __init__(self, region: Any) -> None:
        self._region = region
        self.local_key, self.remote_key = int(region.lkey), int(region.rkey)

    def close(self) -> None:
        self._region.close()


class VerbsDomain:
    """A protection domain."""

    def __init__(self, device: VerbsDevice, exposed: bool) -> None:
        e = device.verbs.e
        self.device, self.exposed = device, exposed
        self.access = e.IBV_ACCESS_LOCAL_WRITE
        if exposed:
            self.access |= e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
        self.pd = device.verbs.pd.PD(device.context)

    def register(self, address: int, size: int) -> VerbsRegion:
        verbs = self.device.verbs
        try:
            return VerbsRegion(verbs.mr.MR(self.pd, size, self.access, address=address))
        except verbs.pyverbs_error.PyverbsError as error:
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            if getattr(error, "error_code", 0) == errno.ENOMEM and limit != resource.RLIM_INFINITY:
                raise too_little(limit, size) from None
            raise _error(error, f"cannot register {size >> 20} MiB with {self.device.port.device}") from None

    def queue_pair(self, sends: int, receives: int, pieces: int, inline_bytes: int) -> "VerbsQueuePair":
        return VerbsQueuePair(self, sends, receives, pieces, inline_bytes)

    def close(self) -> None:
        self.pd.close()


class _SendRequest:
    """A work request with one piece, made once and used again and again: posting copies it."""

    def __init__(self, verbs: _Verbs) -> None:
        self.piece = verbs.wr.SGE(0, 0, 0)
        self.request = verbs.wr.SendWR(num_sge=1, sg=[self.piece])
        self.request.sg_list = self.piece
        # Both would free the piece's memory, if they ever went (pyverbs since 2026-07): they must not.
        for part in (self.piece, self.request):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))


_requests: dict[int, _SendRequest] = {}
"""By thread."""


def _request(verbs: _Verbs) -> _SendRequest:
    thread = threading.get_ident()
    found = _requests.get(thread)
    if found is None:
        found = _requests[thread] = _SendRequest(verbs)
    return found


class VerbsQueuePair:
    """One end of a reliable connection."""

    def __init__(self, domain: VerbsDomain, sends: int, receives: int, pieces: int, inline_bytes: int) -> None:
        self._device, self._domain, self._verbs = domain.device, domain, domain.device.verbs
        self._entries = sends + receives
        self._receives: dict[int, tuple[Any, Any]] = {}
        self._request = _request(self._verbs)
        self._device.reserve(self._entries)
        steps = [step for step in _INLINE_STEPS if step <= inline_bytes]
        for self.inline_bytes in steps:
            try:
                self._qp = self._create(sends, receives, pieces)
                break
            except self._verbs.pyverbs_error.PyverbsError as error:
                if self.inline_bytes == steps[-1]:
                    self._device.reserve(-self._entries)
                    raise _error(error, f"{self._device.port.device}: no queue pair") from None
        self.number = int(self._qp.qp_num)
        e = self._verbs.e
        self._signaled, self._inline = int(e.IBV_SEND_SIGNALED), int(e.IBV_SEND_INLINE)
        self._send, self._write, self._read = e.IBV_WR_SEND, e.IBV_WR_RDMA_WRITE, e.IBV_WR_RDMA_READ

    def _create(self, sends: int, receives: int, pieces: int) -> Any:
        qp, e, cq = self._verbs.qp, self._verbs.e, self._device.cq
        cap = qp.QPCap(
            max_send_wr=sends,
            max_recv_wr=receives,
            max_send_sge=pieces,
            max_recv_sge=1,
            max_inline_data=self.inline_bytes,
        )
        attributes = qp.QPAttr(port_num=self._device.port.number)
        attributes.qp_access_flags = self._domain.access
        return qp.QP(self._domain.pd, qp.QPInitAttr(qp_type=e.IBV_QPT_RC, scq=cq, rcq=cq, cap=cap), attributes)

    def connect(self, near: RdmaEnd, far: RdmaEnd) -> None:
        addr, port = self._verbs.addr, self._device.port
        attributes = self._verbs.qp.QPAttr(port_num=port.number)
        attributes.qp_access_flags = self._domain.access
        attributes.dest_qp_num, attributes.rq_psn, attributes.sq_psn = far.queue_pair, far.psn, near.psn
        attributes.path_mtu = min(near.mtu, far.mtu)
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = _READS
        attributes.min_rnr_timer, attributes.rnr_retry = 12, 0
        attributes.timeout, attributes.retry_cnt = _TIMEOUT, _TRIES
        try:
            if port.ethernet:
                gid = addr.GID(ipaddress.IPv6Address(far.gid).exploded)
                route = addr.GlobalRoute(dgid=gid, sgid_index=port.gid_index, hop_limit=64)
                attributes.ah_attr = addr.AHAttr(gr=route, is_global=1, port_num=port.number)
            else:
                attributes.ah_attr = addr.AHAttr(dlid=far.lid, is_global=0, port_num=port.number)
            self._qp.to_rts(attributes)
        except (ValueError, self._verbs.pyverbs_error.PyverbsError) as error:
            reason = _error(error, f"no route from {port.device} {near.gid} to {far.gid}").strerror
            raise OSError(errno.EHOSTUNREACH, reason) from None

    def receive(self, work: int, piece: Piece) -> None:
        known = self._receives.get(work)
        if known is None:
            wr = self._verbs.wr
            place = wr.SGE(piece.address, piece.size, piece.key)
            known = self._receives[work] = (place, wr.RecvWR(wr_id=work, num_sge=1, sg=[place]))
        self._post(self._qp.post_recv, known[1])

    def send(self, work: int, piece: Piece, *, inline: bool, signaled: bool) -> None:
        flags = (self._inline if inline else 0) | (self._signaled if signaled else 0)
        self._post_one(self._send, work, piece, flags)

    def write(self, work: int, pieces: Sequence[Piece], address: int, key: int, *, signaled: bool) -> None:
        self._transfer(self._write, work, pieces, address, key, self._signaled if signaled else 0)

    def read(self, work: int, pieces: Sequence[Piece], address: int, key: int) -> None:
        self._transfer(self._read, work, pieces, address, key, self._signaled)

    def _transfer(self, opcode: Any, work: int, pieces: Sequence[Piece], address: int, key: int, flags: int) -> None:
        if len(pieces) == 1:
            self._request.request.set_wr_rdma(key, address)
            self._post_one(opcode, work, pieces[0], flags)
            return
        wr = self._verbs.wr
        places = [wr.SGE(*piece) for piece in pieces]
        request = wr.SendWR(wr_id=work, opcode=opcode, num_sge=len(places), sg=places, send_flags=flags)
        try:
            request.set_wr_rdma(key, address)
            self._post(self._qp.post_send, request)
        finally:
            for part in (request, *places):
                part.close()

    def _post_one(self, opcode: Any, work: int, piece: Piece, flags: int) -> None:
        place, request = self._request.piece, self._request.request
        place.addr, place.length, place.lkey = piece
        request.wr_id, request.opcode, request.send_flags = work, opcode, flags
        self._post(self._qp.post_send, request)

    def _post(self, post: Callable[[Any], None], request: Any) -> None:
        try:
            post(request)
        except self._verbs.pyverbs_error.PyverbsError as error:
            raise _error(error, f"{self._device.port.device} takes no more work") from None

    def fail(self) -> None:
        e = self._verbs.e
        try:
            self._qp.modify(self._verbs.qp.QPAttr(qp_state=e.IBV_QPS_ERR), e.IBV_QP_STATE)
        except self._verbs.pyverbs_error.PyverbsError as error:
            raise _error(error, f"{self._device.port.device}: a queue pair cannot be closed") from None

    def close(self) -> None:
        self._qp.close()
        for parts in self._receives.values():
            for part in reversed(parts):
                part.close()
        self._receives.clear()
        self._device.reserve(-self._entries)
