"""Paths as parts of keys: what is too long is cut so that every server takes it."""

from nacrefs.mds.hsm.steps import key_path


def test_paths_are_keys_as_they_are() -> None:
    assert key_path(b"/a/b c/d%", 900) == "a/b c/d%25"


def test_long_names_are_cut_between_characters() -> None:
    key = key_path("/".join(["\u00e9" * 127 + "x", "\u00e9" * 127 + "x"]).encode(), 900)
    directory, name = key.split("/")
    assert (directory, name) == ("\u00e9" * 125, "\u00e9" * 100)


def test_names_of_bytes_that_are_no_text_are_cut_too() -> None:
    assert len(key_path(b"\xff" * 255, 900)) == 200


def test_of_a_long_path_the_end_is_kept() -> None:
    path = b"/".join(b"%04d" % number * 20 for number in range(30))
    key = key_path(path, 500)
    assert len(key) <= 500
    assert path.decode().endswith(key)
    assert key_path(b"n" * 200, 10) == "n" * 200
