"""Messages of RDMA links, and how bulk is divided into transfers."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common.transport.fabric import Piece, Port, choose_port
from nacrefs.common.transport.rdmawire import (
    REGIONS_MAX,
    Place,
    What,
    first_places,
    head,
    joined,
    parse,
    pulled,
    transfers,
)

SIZES = st.lists(st.integers(0, 50), max_size=12)


def laid_out(sizes: list[int], gap: int, key: int) -> list[Piece]:
    """Pieces of these sizes in memory, with gaps between them."""
    pieces: list[Piece] = []
    at = 1000
    for size in sizes:
        pieces.append(Piece(at, size, key))
        at += size + gap
    return pieces


@given(SIZES, SIZES, st.integers(1, 4), st.integers(0, 1), st.integers(0, 2**32))
def test_transfers_move_every_byte_to_its_place(
    ours: list[int], theirs: list[int], most: int, gap: int, seed: int
) -> None:
    total = min(sum(ours), sum(theirs))
    memory = bytearray(random.Random(seed).randbytes(3000))
    other = bytearray(3000)
    pieces: list[Piece] = []
    left = total
    for piece in laid_out(ours, gap, 1):
        pieces.append(piece._replace(size=min(left, piece.size)))
        left -= pieces[-1].size
    places = [Place(*piece) for piece in laid_out(theirs, 1, 2)]
    plan = transfers(pieces, places, most)
    for some, place in plan:
        assert 0 < len(some) <= most
        assert sum(piece.size for piece in some) == place.size
        at = place.address
        for piece in some:
            other[at : at + piece.size] = memory[piece.address : piece.address + piece.size]
            at += piece.size
    source = b"".join(memory[piece.address : piece.address + piece.size] for piece in pieces)
    target = b"".join(other[place.address : place.address + place.size] for place in first_places(places, total))
    assert source == target
    assert len(source) == total


def test_one_transfer_for_each_contiguous_place() -> None:
    ours = joined([Piece(0, 4096, 1), Piece(4096, 4096, 1), Piece(8192, 0, 1)])
    assert ours == [Piece(0, 8192, 1)]
    assert len(transfers(ours, [Place(0, 8192, 2)], 8)) == 1
    assert len(transfers(ours, [Place(0, 4096, 2), Place(9000, 4096, 2)], 8)) == 2
    apart = [Piece(0, 4096, 1), Piece(8192, 4096, 1)]
    assert joined(apart) == apart
    assert len(transfers(apart, [Place(0, 8192, 2)], 8)) == 1


def test_bulk_longer_than_its_room_is_refused() -> None:
    with pytest.raises(OSError, match="longer than the room"):
        transfers([Piece(0, 11, 1)], [Place(0, 10, 2)], 8)


U32 = st.integers(0, 2**32 - 1)


@given(st.sampled_from(What), U32, st.lists(st.tuples(st.integers(0, 2**64 - 1), U32, U32), max_size=5))
def test_a_message_begins_as_it_was_made(what: What, bulk: int, regions: list[tuple[int, int, int]]) -> None:
    message = head(what, bulk, [Piece(*region) for region in regions]) + b"frame"
    prefix = parse(memoryview(message))
    assert (prefix.what, prefix.bulk_bytes, prefix.credits) == (what, bulk, 0)
    assert [tuple(place) for place in prefix.places] == regions
    assert message[prefix.start :] == b"frame"


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    try:
        assert parse(memoryview(data)).start <= len(data)
    except OSError as error:
        assert "RDMA message" in str(error)
    with pytest.raises(OSError, match="wrong length"):
        pulled(memoryview(data[:19]))


def test_too_many_regions_are_refused() -> None:
    message = head(What.PULL, 1, [Piece(0, 1, 1)] * (REGIONS_MAX + 1))
    with pytest.raises(OSError, match=f"has {REGIONS_MAX + 1} regions"):
        parse(memoryview(message))


PORTS = [
    Port("mlx5_0", 1, "fe80::1", 0, 0, 5, True),
    Port("mlx5_0", 1, "::ffff:10.0.0.1", 3, 0, 5, True),
    Port("mlx5_1", 2, "::ffff:10.0.1.1", 1, 0, 5, True),
    Port("mlx4_0", 1, "fe80::2", 0, 7, 5, False),
]


@pytest.mark.parametrize(
    ("address", "wanted", "found"),
    [
        ("10.0.0.1", "", 1),
        ("10.0.1.1", "", 2),
        ("fe80::1%eth0", "", 0),
        ("10.0.0.1", "mlx5_0", 1),
        ("10.9.9.9", "mlx5_0:1", 0),
        ("10.9.9.9", "mlx4_0:1", 3),
    ],
)
def test_the_port_with_the_address_is_used_or_the_one_that_is_named(address: str, wanted: str, found: int) -> None:
    assert choose_port(PORTS, address, wanted) is PORTS[found]


def test_a_port_that_is_not_there_is_an_error_that_says_what_is() -> None:
    with pytest.raises(OSError, match=r"no RDMA device has the address 192\.0\.2\.1.*mlx5_1 10\.0\.1\.1"):
        choose_port(PORTS, "192.0.2.1")
    with pytest.raises(OSError, match=r"rdma\.device = 'mlx9', but the RDMA ports here are: mlx4_0:1, mlx5_0:1"):
        choose_port(PORTS, "10.0.0.1", "mlx9")
    with pytest.raises(OSError, match="there is: none"):
        choose_port([], "10.0.0.1")
