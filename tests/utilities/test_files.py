"""Atomic files and folders, and work that is shared by parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pl_prefopt.utilities.files import (
    Parts,
    create_folder,
    resolve_package,
    temporary_name,
    track,
    write_atomic,
    write_json,
    write_jsonl,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_text(tmp_path / "deep" / "a.txt", "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.txt"]


def test_json_keeps_text_as_it_is(tmp_path: Path) -> None:
    assert json.loads(write_json(tmp_path / "a.json", {"é": [1]}).read_text(encoding="utf-8")) == {"é": [1]}
    lines = write_jsonl(tmp_path / "a.jsonl", ({"n": i} for i in range(2))).read_text().splitlines()
    assert lines == ['{"n": 0}', '{"n": 1}']


def test_a_folder_is_complete_or_absent_and_the_first_one_stays(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        (temporary / "part").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        create_folder(tmp_path / "made", fail)
    assert not os.listdir(tmp_path)
    for text in ("first", "second"):
        create_folder(tmp_path / "made", lambda folder, t=text: (folder / "file").write_text(t))
    assert (tmp_path / "made" / "file").read_text() == "first"


def test_a_folder_can_be_read_by_the_group_where_the_umask_says_so(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = create_folder(tmp_path / "made", lambda _: None)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750


def test_ranks_share_the_missing_parts(tmp_path: Path) -> None:
    parts = Parts(tmp_path, total=10, size=4, name="part-{part}.bin")
    assert [list(parts.items(i)) for i in range(len(parts))] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert (parts.missing(0, 2), parts.missing(1, 2)) == ([0, 2], [1])
    parts.file(0).touch()
    assert (parts.missing(0, 2), parts.missing(1, 2), parts.missing()) == ([2], [1], [1, 2])
    assert not len(Parts(tmp_path, 0, 4))


def test_tracking_changes_nothing() -> None:
    assert list(track([3, 1], "title", size=lambda n: n, hidden=True)) == [3, 1]


def test_a_folder_in_a_package_is_named_by_the_package() -> None:
    import pl_prefopt

    root = Path(pl_prefopt.__path__[0])
    assert Path(resolve_package("package://pl_prefopt/utilities")) == root / "utilities"
    assert resolve_package("some/folder") == "some/folder"


@pytest.mark.parametrize("name", ["package://pl_prefopt/nothing", "package://no_such_package/x", "package://"])
def test_a_package_folder_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"installed package and a folder in it, got '{name}'"):
        resolve_package(name)


def test_temporary_files_of_processes_that_are_gone_are_swept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    abandoned = temporary_name("a.txt").replace(str(os.getpid()), str(gone.pid))
    (tmp_path / abandoned).write_text("half")
    (tmp_path / f"{abandoned}x7").mkdir()
    (tmp_path / f"{abandoned}x7/part").touch()
    alive = tmp_path / temporary_name("b.txt").replace(str(os.getpid()), "1")
    elsewhere = tmp_path / ".c.txt.elsewhere-1.tmp"
    for file in (alive, elsewhere, tmp_path / ".hidden"):
        file.touch()
    write_text(tmp_path / "a.txt", "whole")
    assert {f.name for f in tmp_path.iterdir()} == {"a.txt", alive.name, elsewhere.name, ".hidden"}
    old = tmp_path / "old"
    old.mkdir()
    os.utime(elsewhere.rename(old / elsewhere.name), (0, 0))
    create_folder(old / "folder", lambda folder: (folder / "a").touch())
    assert {f.name for f in old.iterdir()} == {"folder"}
