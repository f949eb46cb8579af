import errno
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacrefs.common import auth
from nacrefs.common.auth import (
    Keyring,
    check_capability,
    load_keyring,
    new_keyring,
    proof,
    same,
    save_keyring,
    sign_capability,
)
from nacrefs.common.config import ConfigError
from nacrefs.common.wire import Capability, Right, Role

KEY = bytes(range(32))
GOOD = sign_capability(KEY, 7, 1, 42, Right.READ, 1000)


def check(
    capability: Capability = GOOD,
    key: bytes = KEY,
    fid: int = 7,
    generation: int = 1,
    session: int = 42,
    right: Right = Right.READ,
    now_s: float = 1000,
) -> None:
    check_capability([key], capability, fid=fid, generation=generation, session=session, right=right, now_s=now_s)


# -------------------------------------------------------------------------------------------------------------- keyring


def test_a_keyring_is_saved_for_its_owner_only_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keyring"
    keyring = new_keyring('a "quoted" cluster\\')
    save_keyring(path, keyring)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_keyring(path) == keyring
    with pytest.raises(FileExistsError):
        save_keyring(path, keyring)


def test_fresh_keys_differ() -> None:
    secrets = {key.secret for _ in range(3) for key in new_keyring("c").keys.values()}
    assert len(secrets) == 9


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o610])
def test_a_keyring_that_others_can_reach_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keyring"
    save_keyring(path, new_keyring("c"))
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode 0{mode:o}.*run: chmod 600 {path}"):
        load_keyring(path)
    path.chmod(0o400)
    load_keyring(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cluster = 7", "cluster: Expected `str`"),
        ("", "missing required field `cluster`"),
        ('cluster = "c"\nkeys = {client = {role = "boss", secret = "00"}}', "Invalid enum value 'boss'"),
        ('cluster = "c"\nkeys = {client = {role = "client", secret = "zz"}}', "keys.client.secret is not hexadecimal"),
        ('cluster = "c"\nkeys = {client = {role = "client", secret = "00"}}', "keys.client.secret is shorter than 32"),
        ('cluster = "c"\nkeys = {client = {role = "client", secret = "00", extra = 1}}', "unknown field `extra`"),
        ("cluster =", "not valid TOML"),
    ],
)
def test_mistakes_in_a_keyring_are_named_without_its_secrets(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "keyring"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=f"keyring {path}: ") as caught:
        load_keyring(path)
    assert reason in str(caught.value)


def test_a_missing_or_unreadable_keyring_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent: No such file"):
        load_keyring(tmp_path / "absent")
    path = tmp_path / "latin"
    path.write_bytes(b"\xff")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=f"keyring {path}: "):
        load_keyring(path)


def test_secrets_are_never_shown() -> None:
    keyring = new_keyring("c")
    shown = f"{keyring!r} {keyring.keys} {keyring.credentials(Role.CLIENT)!r} {keyring.keys['client']}"
    for key in keyring.keys.values():
        assert key.secret not in shown
        assert repr(key.secret_bytes) not in shown


def test_a_role_without_a_key_is_an_error() -> None:
    keyring = new_keyring("c")
    clients = Keyring("c", {"client": keyring.keys["client"]})
    assert clients.credentials(Role.CLIENT).secret == keyring.keys["client"].secret_bytes
    with pytest.raises(OSError, match="no key with role 'server'") as caught:
        clients.capability_key()
    assert caught.value.errno == errno.EACCES
    assert keyring.capability_key() != keyring.credentials(Role.SERVER).secret


# --------------------------------------------------------------------------------------------------------------- proofs


def test_a_proof_depends_on_everything_that_was_claimed() -> None:
    claims = (KEY, b"client", "cluster", "key", "client-1", bytes(64))
    variants = [
        (bytes(32), *claims[1:]),
        (KEY, b"server", *claims[2:]),
        (*claims[:2], "other", *claims[3:]),
        (*claims[:3], "other", *claims[4:]),
        (*claims[:4], "other", claims[5]),
        (*claims[:5], b"\1" + bytes(63)),
    ]
    proofs = {proof(*variant) for variant in [claims, *variants]}
    assert len(proofs) == 7
    assert same(proof(*claims), proof(*claims))


# --------------------------------------------------------------------------------------------------------- capabilities


def test_a_capability_is_good_for_exactly_what_it_was_signed_for() -> None:
    check()
    both = sign_capability(KEY, 7, 1, 42, Right.READ | Right.WRITE, 1000)
    for right in (Right.READ, Right.WRITE, Right.READ | Right.WRITE):
        check(both, right=right)
    check(GOOD, right=Right.READ | Right.WRITE)


def refused(number: int, **changes: object) -> None:
    with pytest.raises(OSError, match="capability") as caught:
        check(**changes)  # type: ignore[arg-type]
    assert caught.value.errno == number


def test_another_file_generation_session_or_key_is_refused() -> None:
    refused(errno.EACCES, fid=8)
    refused(errno.EACCES, generation=2)
    refused(errno.EACCES, session=43)
    refused(errno.EACCES, key=bytes(32))


def test_a_right_that_it_does_not_give_is_refused() -> None:
    refused(errno.EACCES, right=Right.WRITE)
    refused(errno.EACCES, capability=msgspec.structs.replace(GOOD, rights=3), right=Right.WRITE)


def test_after_its_time_it_is_refused_and_its_time_cannot_be_prolonged() -> None:
    refused(errno.EKEYEXPIRED, now_s=1000.5)
    refused(errno.EACCES, capability=msgspec.structs.replace(GOOD, expires_s=2000))


@given(st.integers(0, 127))
def test_a_forged_one_is_refused(bit: int) -> None:
    mac = bytearray(GOOD.mac)
    mac[bit // 8] ^= 1 << bit % 8
    refused(errno.EACCES, capability=msgspec.structs.replace(GOOD, mac=bytes(mac)))


@pytest.mark.parametrize("mac", [b"", bytes(16), bytes(17), GOOD.mac[:15], GOOD.mac + b"\0"])
def test_a_mac_of_any_length_is_refused(mac: bytes) -> None:
    refused(errno.EACCES, capability=msgspec.structs.replace(GOOD, mac=mac))


@pytest.mark.parametrize(
    "changes",
    [
        {"fid": -1},
        {"fid": 1 << 64},
        {"generation": -1},
        {"generation": 1 << 32},
        {"session": -5},
        {"capability": msgspec.structs.replace(GOOD, rights=256)},
        {"capability": msgspec.structs.replace(GOOD, rights=-1)},
        {"capability": msgspec.structs.replace(GOOD, expires_s=-1)},
        {"capability": msgspec.structs.replace(GOOD, expires_s=1 << 64)},
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, object]) -> None:
    refused(errno.EACCES, **changes)


def test_sizes_of_the_handshake() -> None:
    assert (auth.NONCE_BYTES, auth.SECRET_BYTES, len(GOOD.mac)) == (32, 32, 16)
