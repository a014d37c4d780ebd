"""Arguments that moved into an object are accepted with a warning, and hidden from signatures."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass

import pytest

from pl_prefopt.utilities.deprecation import moved_arguments


@dataclass(frozen=True)
class Cut:
    length: int = 8
    side: str = "left"


class Reader:
    @moved_arguments({"max_length": "cut.length", "cut_side": "cut.side"})
    def __init__(self, path: str, cut: Cut = Cut(), seed: int = 0) -> None:
        self.path, self.cut, self.seed = path, cut, seed


def old(*args: object, **kwargs: object) -> Reader:
    return Reader(*args, **kwargs)  # pyright: ignore  the old keywords are not in the signature


def test_old_keywords_build_the_object_and_name_the_new_spelling() -> None:
    with pytest.warns(
        FutureWarning, match=r"Reader: max_length is now cut.length, .*write cut=Cut\(length=3, side='r'\)"
    ):
        reader = old("a", max_length=3, cut_side="r", seed=1)
    assert (reader.path, reader.cut, reader.seed) == ("a", Cut(3, "r"), 1)


def test_the_new_spelling_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Reader("a", Cut(3)).cut == Reader("a", cut=Cut(3)).cut == Cut(3)


@pytest.mark.parametrize(("args", "kwargs"), [(("a", Cut()), {}), (("a",), {"cut": Cut()})])
def test_old_and_new_together_are_refused(args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"max_length must be given as cut.length only, got both max_length and cut"):
        old(*args, max_length=3, **kwargs)


def test_the_signature_is_the_new_one() -> None:
    assert list(inspect.signature(Reader).parameters) == ["path", "cut", "seed"]


def test_the_warning_points_to_the_caller() -> None:
    with pytest.warns(FutureWarning) as caught:
        Reader("a", max_length=3)  # pyright: ignore  an old keyword
    assert caught[0].filename == __file__
