import errno
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from nacrefs.common.auth import Key, Keyring, load_keyring, new_keyring, replace_keyring, revoked, save_keyring
from nacrefs.common.config import ConfigError
from nacrefs.common.export import Export
from nacrefs.common.keyedit import only, rotated, with_export, with_new_key, without, without_ended
from nacrefs.common.keyfile import KeyFile
from nacrefs.common.wire import Role

NOW = 1_800_000_000.0


def at(s: float) -> datetime:
    return datetime.fromtimestamp(s, UTC)


def test_a_new_key_is_added_with_its_limits_and_its_time() -> None:
    ring = with_new_key(new_keyring("c"), "lab", "client", Export(path="/lab"), NOW)
    key = ring.keys["lab"]
    assert (key.role, key.export.path, key.not_after) == ("client", "/lab", at(NOW))
    assert len(key.secret_bytes) == 32
    with pytest.raises(ValueError, match="there is a key 'lab' already"):
        with_new_key(ring, "lab", "client", Export())
    with pytest.raises(ValueError, match="only a client's key"):
        with_new_key(ring, "boss", "admin", Export(read_only=True))
    for name in ("", "a b", "a/b", "ä", "x" * 65, "a:b"):
        with pytest.raises(ValueError, match="cannot be a key's name"):
            with_new_key(ring, name, "client", Export())


def test_a_rotated_key_has_a_successor_and_an_end() -> None:
    ring = with_new_key(new_keyring("c"), "lab", "client", Export(path="/lab"))
    ring, second = rotated(ring, "lab", NOW, 60, 600)
    assert second == "lab.2"
    assert ring.keys["lab"].not_after == at(NOW + 660)
    new = ring.keys[second]
    assert (new.principal, new.not_before, new.not_after, new.export.path) == ("lab", at(NOW + 60), None, "/lab")
    assert new.secret != ring.keys["lab"].secret
    for name in ("lab", "lab.2"):  # either name will do
        again, third = rotated(ring, name, NOW + 1000, 0, 600)
        assert third == "lab.3"
        assert again.keys["lab"].not_after == at(NOW + 660)
        assert again.keys["lab.2"].not_after == at(NOW + 1600)
        assert again.keys["lab.3"].principal == "lab"
    assert set(without_ended(ring, NOW + 700).keys) == {"server", "client", "admin", "lab.2"}
    with pytest.raises(KeyError):
        rotated(ring, "nobody", NOW, 0, 0)


def test_all_keys_of_a_principal_get_a_limit() -> None:
    ring, second = rotated(with_new_key(new_keyring("c"), "lab", "client", Export()), "lab", NOW, 0, 600)
    ring = with_export(ring, "lab", Export(read_only=True))
    assert ring.keys["lab"].export.read_only
    assert ring.keys[second].export.read_only
    assert not ring.keys["client"].export.limits
    with pytest.raises(ValueError, match="only a client's key"):
        with_export(ring, "admin", Export(read_only=True))


def test_the_last_server_s_key_cannot_be_removed() -> None:
    ring = new_keyring("c")
    assert set(without(ring, ["client"]).keys) == {"server", "admin"}
    with pytest.raises(ValueError, match="last server's key"):
        without(ring, ["server"])
    with pytest.raises(KeyError):
        without(ring, ["nobody"])
    two, second = rotated(ring, "server", NOW, 0, 600)
    assert set(without(two, ["server"]).keys) == {"client", "admin", second}


def test_what_a_holder_gets_does_not_say_what_servers_think_of_him() -> None:
    ring = with_new_key(new_keyring("c"), "lab", "client", Export(path="/lab"))
    given = only(ring, ["lab"])
    assert given == Keyring("c", {"lab": replace(ring.keys["lab"], export=Export())})


def test_the_newest_good_key_is_used() -> None:
    now = time.time()
    keys = {
        "old": Key("client", "aa" * 32, "me", None, at(now + 60)),
        "new": Key("client", "bb" * 32, "me", at(now - 60), None),
        "next": Key("client", "cc" * 32, "me", at(now + 60), None),
        "gone": Key("client", "dd" * 32, "me", at(now - 50), at(now - 40)),
    }
    assert Keyring("c", keys).credentials(Role.CLIENT).key == "new"
    with pytest.raises(OSError, match="no key with role 'client' that is good now") as caught:
        Keyring("c", {"gone": keys["gone"], "next": keys["next"]}).credentials(Role.CLIENT)
    assert caught.value.errno == errno.EACCES
    assert Keyring("c", keys).find("gone") is None
    assert Keyring("c", {"boss": Key("admin", "ee" * 32)}).credentials(Role.CLIENT).key == "boss"


def test_capabilities_are_signed_under_the_newest_key_and_good_under_each() -> None:
    ring = new_keyring("c")
    old = ring.capability_key()
    ring, second = rotated(ring, "server", time.time() - 10, 0, 600)
    assert ring.capability_keys() == (ring.capability_key(), old)
    assert ring.capability_key() != old
    assert without(ring, ["server"]).capability_keys() == (ring.capability_key(),)
    later, _ = rotated(without(ring, ["server"]), second, time.time(), 600, 600)
    assert later.capability_keys() == (ring.capability_key(),)


def test_who_must_go() -> None:
    before = with_new_key(new_keyring("c"), "lab", "client", Export())
    assert revoked(before, before) == set()
    assert revoked(before, rotated(before, "lab", NOW, 0, 600)[0]) == set()
    assert revoked(before, with_export(before, "lab", Export(read_only=True))) == {"lab"}
    assert revoked(before, without(before, ["lab", "admin"])) == {"lab", "admin"}
    assert revoked(before, new_keyring("c")) == {"server", "client", "admin", "lab"}


# ----------------------------------------------------------------------------------------------------------------- file


def test_a_keyring_s_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "keyring"
    save_keyring(path, new_keyring("c"))
    ring = new_keyring("c")
    replace_keyring(path, ring)
    assert load_keyring(path) == ring
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["keyring"]


def test_a_file_in_use_is_read_again_when_it_changes_and_mistakes_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keyring"
    first, second = new_keyring("c"), new_keyring("c")
    save_keyring(path, first)
    file = KeyFile(path)
    source = file.credentials_of(Role.CLIENT)
    assert file.refresh() is file.refresh()
    replace_keyring(path, second)
    assert source().secret == second.keys["client"].secret_bytes
    for text, mode in (("cluster = ", 0o600), ('cluster = "other"\nkeys = {}', 0o600), ('cluster = "c"', 0o644)):
        caplog.clear()
        path.write_text(text)
        path.chmod(mode)
        os.utime(path, ns=(1, time.time_ns()))
        assert file.refresh() == second
        assert "the keys stay as they were" in caplog.text
        file.refresh(force=True)
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    path.unlink()
    assert file.refresh() == second
    save_keyring(path, first)
    assert file.refresh() == first
    with pytest.raises(ConfigError, match="No such file"):
        KeyFile(tmp_path / "none")
