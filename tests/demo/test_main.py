"""The command `pl-prefopt demo`."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pl_prefopt import cli
from pl_prefopt.demo.__main__ import main
from pl_prefopt.demo.listing import config_path, names


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the command line is called with, instead of calling it."""
    arguments: list[list[str]] = []
    monkeypatch.setattr(cli, "main", arguments.append)
    return arguments


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_without_a_name_it_lists_the_demos(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(args)
    output = capsys.readouterr().out
    assert all(name in output for name in (*names(), "pareto", "make-base"))


def test_a_name_runs_its_configuration_with_further_arguments(calls: list[list[str]]) -> None:
    main(["text-dpo", "--model.objective", "IPO"])
    assert calls == [["fit", "--config", str(config_path("text-dpo")), "--model.objective", "IPO"]]


def test_the_installed_command_knows_the_word(calls: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pl-prefopt", "demo", "image-dpo"])
    cli.console()
    assert calls == [["fit", "--config", str(config_path("image-dpo"))]]


def test_a_mistyped_name_is_answered_with_the_nearest(calls: list[list[str]]) -> None:
    with pytest.raises(SystemExit, match=r"the demo must be one of .*, got 'text-irp'\. Did you mean 'text-irpo'\?"):
        main(["text-irp"])
    assert calls == []


def test_a_base_is_made_by_its_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pl_prefopt.demo import bases
    from pl_prefopt.demo.bases import Record

    made: list[tuple[str, Any]] = []

    class Maker:
        def make_base(self, name: str, target: Any) -> Record:
            made.append((name, target))
            return Record("command", 1.5, "", "", {"both": 0.34})

    monkeypatch.setattr(bases, "maker", lambda name: Maker())
    main(["make-base", "image", "--out", "elsewhere"])
    assert [(name, str(target)) for name, target in made] == [("image", "elsewhere")]
    assert "elsewhere: 1.5 minutes, {'both': 0.34}" in capsys.readouterr().out
