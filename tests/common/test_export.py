from pathlib import Path

import pytest

from nacrefs.common.auth import Key, Keyring, load_keyring, save_keyring
from nacrefs.common.config import ConfigError
from nacrefs.common.export import NOBODY, Actor, Export, Squash, parse_range


def mapped(export: Export, uid: int, gid: int = 100, *groups: int) -> Actor:
    return Squash(export).actor(uid, gid, groups)


def test_without_squash_everybody_is_who_he_says() -> None:
    assert mapped(Export(check=True), 0, 0, 4) == Actor(0, 0, frozenset({4}))
    assert mapped(Export(check=True), 7, 100, 4, 0) == Actor(7, 100, frozenset({4, 0}))


def test_root_squash_takes_root_and_roots_group() -> None:
    export = Export(squash="root", anon_uid=99, anon_gid=98)
    assert mapped(export, 0, 0, 4) == Actor(99, 98)
    assert mapped(export, 7, 0, 4, 0) == Actor(7, 98, frozenset({4}))
    assert mapped(export, 7, 100, 4) == Actor(7, 100, frozenset({4}))


def test_all_squash_takes_everybody() -> None:
    for uid in (0, 7, 65534):
        assert mapped(Export(squash="all"), uid, uid, 4) == Actor(NOBODY, NOBODY)


def test_a_key_acts_only_as_the_users_it_is_for() -> None:
    export = Export(uids=("7", "1000-1999"))
    assert mapped(export, 7).uid == 7
    assert mapped(export, 1000).uid == mapped(export, 1000).uid == 1000
    assert mapped(export, 1999).uid == 1999
    for other in (0, 6, 999, 2000, -1, 1 << 40):
        assert mapped(export, other) == Actor(NOBODY, NOBODY)


def test_with_users_but_no_groups_it_may_claim_none() -> None:
    assert mapped(Export(uids=("7",)), 7, 100, 4, 5) == Actor(7, NOBODY)
    assert mapped(Export(uids=("7",), gids=("4-5", "9")), 7, 100, 4, 5, 6) == Actor(7, NOBODY, frozenset({4, 5}))
    assert mapped(Export(gids=("100",)), 8, 100, 4) == Actor(8, 100)


def test_the_mapping_is_worked_out_once() -> None:
    squash = Squash(Export(squash="root"))
    assert squash.actor(7, 8, (9,)) is squash.actor(7, 8, (9,))


@pytest.mark.parametrize("text", ["", "x", "5-4", "-3", "1-", "99999999999", "4294967295", "1-2-3"])
def test_what_is_no_range_of_ids_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"id|range"):
        parse_range(text)


def test_what_an_export_asks_for() -> None:
    assert not Export().limits
    assert not Export(path="//").limits
    assert Export(path="/a").limits
    assert not Export(path="/a").identifies
    assert Export(read_only=True).limits
    for export in (Export(check=True), Export(squash="root"), Export(uids=("1",)), Export(gids=("1",))):
        assert export.identifies
        assert export.limits


def test_exports_are_saved_with_their_keys(tmp_path: Path) -> None:
    export = Export("/proj/ä", True, "root", 5, 6, ("7",), ("8-9",), True)
    keyring = Keyring("c", {"k": Key("client", "ab" * 32, "me", export=export), "plain": Key("client", "cd" * 32)})
    save_keyring(tmp_path / "keyring", keyring)
    assert load_keyring(tmp_path / "keyring") == keyring


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('role = "client"\nexport = {path = "proj"}', "path 'proj' is not an absolute path"),
        ('role = "client"\nexport = {path = "/a/../b"}', "is not an absolute path"),
        ('role = "client"\nexport = {uids = ["me"]}', "uids: 'me' is neither an id nor a range"),
        ('role = "client"\nexport = {anon_uid = -1}', "anon_uid = -1 is not in 0.."),
        ('role = "client"\nexport = {squash = "some"}', "Invalid enum value 'some'"),
        ('role = "admin"\nexport = {read_only = true}', "only a client's key can be limited"),
        ('role = "client"\nnot_after = 2027-01-31T12:00:00', "not_after has no time zone"),
    ],
)
def test_mistakes_in_an_export_are_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "keyring"
    path.touch(0o600)
    path.write_text(f'cluster = "c"\n[keys.k]\nsecret = "{"ab" * 32}"\n{text}\n')
    with pytest.raises(ConfigError, match="keyring ") as caught:
        load_keyring(path)
    assert reason in str(caught.value)
