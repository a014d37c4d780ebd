"""The installed command, called in this process with arguments of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from pl_prefopt.cli import console
from pl_prefopt.cli.errors import DEBUG, LINES

Failing = Callable[..., tuple[int, str]]
"""Called with the arguments after `pl-prefopt`: the exit status and what was said."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Failing:
    """Run a command that must stop with one to three lines and no traceback."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.delenv(DEBUG, raising=False)
        monkeypatch.setattr(sys, "argv", ["pl-prefopt", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            console()
        said = capsys.readouterr().err
        assert "Traceback" not in said
        message = said[said.index("pl-prefopt: error: ") :].strip()
        assert len(message.splitlines()) <= LINES, message
        assert "Subtypes" not in message
        return int(str(stop.value.code)), message.removeprefix("pl-prefopt: error: ")

    return call
