"""Configuration files that are no UTF-8 text, no YAML, or YAML of more than plain values."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pl_prefopt.cli.documents import read_document
from pl_prefopt.cli.errors import ConfigurationError
from tests.cli.console import Failing, failing
from tests.cli.test_main import config, write

__all__ = ["failing"]
GOOD = "trainer:\n  max_epochs: 1\n  devices: 1\n"
BAD: list[tuple[str, bytes, str]] = [
    ("empty", b"", r"must hold keys such as trainer, model and data, got an empty file"),
    ("comment only", b"# nothing\n", r"got an empty file"),
    ("list", b"- 1\n- 2\n", r"must be a mapping of keys .*, got a list"),
    ("word", b"hello\n", r"must be a mapping of keys .*, got a single value"),
    ("unclosed quote", b"a: 1\nb: 'abc\n", r"line 3: must be YAML, but .* scalar in line 2"),
    ("tab", b"a:\n\tb: 1\n", r"line 2: must be YAML, but found character '\\t'"),
    ("key twice", GOOD.encode() + b"  max_epochs: 2\n", r"line 2: key 'max_epochs' must be written once, .* line 4"),
    ("alias to itself", b"a: &x [*x]\n", r"line 1: .*alias stands within the value"),
    ("bomb", b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (n + 1, n + 1, b", ".join([b"*%c" % n] * 9)) for n in range(97, 105)
    ), r"more values than a configuration can have"),
    ("deep", b"a: " + b"[" * 5000, r"more than can be read"),
    ("random bytes", bytes([0x8B, 0xCE, 0x00, 0xFF]), r"must be UTF-8 text, got byte 0x8b at position 0"),
    ("UTF-16", GOOD.encode("utf-16"), r"must be UTF-8 text, got byte 0xff"),
    ("NUL", b'a: "x\\0y"\n', r"line 1: text must not hold NUL"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), [case[1:] for case in BAD], ids=[name for name, *_ in BAD])
def test_a_bad_file_is_named_with_its_line(content: bytes, message: str, tmp_path: Path, failing: Failing) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        read_document(str(file))
    status, said = failing("fit", "--config", file)
    assert (status, said.startswith(str(file)), len(said.splitlines())) == (2, True, 1)


def test_a_pipe_never_hangs(tmp_path: Path, failing: Failing) -> None:
    os.mkfifo(tmp_path / "pipe")
    for option in (["--config", tmp_path / "pipe"], ["--config", write(tmp_path, config(tmp_path)), "--ckpt_path"]):
        arguments = option if len(option) == 2 else [*option, tmp_path / "pipe"]
        assert "regular file" in failing("fit", *arguments)[1]


def test_anchors_merges_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("base: &b {x: 1, y: 2}\nmore:\n  <<: *b\n  x: 3\nagain: [*b, *b]\n", encoding="utf-8-sig")
    assert read_document(str(file)).startswith("base")
