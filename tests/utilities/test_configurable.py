"""Configurables: dataclasses and hand-written classes as plain values, refusals, and files of older versions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from pl_prefopt.modules.checkpoints import compare_hparams
from pl_prefopt.objectives import DPO, FDPO, SFT, Mixture, Objective
from pl_prefopt.policies import CausalLM, PolicyBuilder
from pl_prefopt.references import AutoReference, FrozenModel, Reference
from pl_prefopt.utilities.configurable import Configurable, class_path, from_config, to_config, updated_config


class Shape(Configurable):
    """A family of its own."""


@dataclass
class Circle(Shape):
    """A dataclass.

    Args:
        radius: > 0.
        tags: names.
    """

    radius: float
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"radius must be > 0, got {self.radius}")


@dataclass
class Ring(Circle):
    """A dataclass on a dataclass."""

    inner: Circle | None = None


class Square(Shape):
    """A hand-written class."""

    def __init__(self, side: float, corners: Shape | None = None, colour: str | None = None) -> None:
        self.side = side
        self.corners = corners
        self.colour = colour or "red"


class Tilted(Circle):
    """A hand-written class on a dataclass."""

    def __init__(self, angle: float, radius: float = 1.0) -> None:
        super().__init__(radius)
        self.angle = angle
        self.tags = []


class Bare(Shape):
    """No argument at all."""


SHAPES = [Circle(2.0, ["a"]), Ring(1.0, inner=Circle(0.5)), Square(1, Circle(3)), Tilted(30.0, 2.0), Bare()]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_a_configurable_is_its_plain_values(shape: Shape) -> None:
    plain = to_config(shape)
    assert plain["class_path"] == f"tests.utilities.test_configurable.{type(shape).__name__}"
    again = from_config(plain, Shape)
    assert (again, repr(again), type(again)) == (shape, repr(shape), type(shape))


def test_equal_means_the_same_class_and_the_same_arguments() -> None:
    assert Tilted(30.0) != Tilted(40.0)
    assert Square(1) != Square(2)
    assert Circle(1.0) != Ring(1.0)
    assert Bare() == Bare() != Circle(1.0)
    assert repr(Tilted(30.0)) == "Tilted(angle=30.0, radius=1.0)"
    assert repr(Ring(1.0)) == "Ring(radius=1.0, tags=[], inner=None)"


class Renames(Shape):
    def __init__(self, side: float) -> None:
        self.length = side


class Changes(Shape):
    def __init__(self, side: float) -> None:
        self.side = 2 * side


class Swallows(Shape):
    def __init__(self, **options: float) -> None:
        self.side = options["side"]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            Renames,
            r"Renames must store every argument .* got no attribute side\. Make the class",
        ),
        (Changes, r"Changes.side must be the argument 'side' itself, 3, got 6\. A checkpoint stores"),
        (Swallows, r"Swallows must store every argument .* got no attribute options"),
    ],
)
def test_an_argument_that_is_not_stored_is_refused_when_the_object_is_built(cls: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(side=3)


def test_an_argument_that_is_no_argument_is_refused() -> None:
    with pytest.raises(ValueError, match=r"init_args of Circle must be among radius, tags, got size"):
        from_config({"class_path": "Circle", "init_args": {"size": 1}}, Shape)
    with pytest.raises(ValueError, match=r"radius must be > 0, got -1"):
        from_config({"class_path": "Circle", "init_args": {"radius": -1}}, Shape)


INNER = {"class_path": "Ring", "init_args": {"radius": 3}}


def parse(value: Any) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Shape, "shape")
    return parser.instantiate(parser.parse_object({"shape": value}))["shape"]


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ("Bare", Bare()),
        ({"class_path": "Circle", "init_args": {"radius": 2}}, Circle(2.0)),
        ({"class_path": "Ring", "init_args": {"radius": 1, "inner": INNER}}, Ring(1.0, inner=Ring(3.0))),
        ({"class_path": "Square", "init_args": {"side": 1, "corners": "Bare"}}, Square(1.0, Bare())),
        ({"class_path": "Tilted", "init_args": {"angle": 9}}, Tilted(9.0)),
    ],
)  # fmt: skip
def test_yaml_names_both_kinds(value: Any, shape: Shape) -> None:
    assert parse(value) == shape


def test_what_is_written_names_the_public_package() -> None:
    assert class_path(FDPO) == "pl_prefopt.objectives.FDPO"
    assert class_path(AutoReference) == "pl_prefopt.references.AutoReference"
    assert class_path(Configurable) == "pl_prefopt.utilities.configurable.Configurable"


@pytest.mark.parametrize(
    ("path", "base", "value"),
    [
        ("pl_prefopt.objectives.pairwise.FDPO", Objective, FDPO()),
        ("pl_prefopt.references.AutoReference", Reference, AutoReference()),
        ("pl_prefopt.references.somewhere.AutoReference", Reference, AutoReference()),
        ("FDPO", Objective, FDPO()),
    ],
)
def test_a_moved_class_is_found_by_its_name(path: str, base: type, value: Configurable) -> None:
    assert from_config({"class_path": path, "init_args": {}}, base) == value


def test_only_this_library_s_classes_are_found_by_name() -> None:
    with pytest.raises(ValueError, match=r"'elsewhere\.DPO' is not a known Objective"):
        from_config({"class_path": "elsewhere.DPO"}, Objective)
    with pytest.raises(ValueError, match=r"'pl_prefopt\.shapes\.Circle' is not a known Shape"):
        from_config({"class_path": "pl_prefopt.shapes.Circle"}, Shape)


def test_resuming_ignores_moved_files_and_added_defaults() -> None:
    own = {"objective": to_config(Mixture([FDPO(), SFT()])), "seed": 0, "optimizer": {"class_path": "torch.optim.SGD"}}
    part = {"class_path": "pl_prefopt.objectives.pairwise.FDPO", "init_args": {"beta": 0.1}}
    arguments = {"objectives": [part, {"class_path": "pl_prefopt.objectives.SFT", "init_args": {}}], "weights": None}
    old = {**own, "objective": {"class_path": "pl_prefopt.objectives.mixture.Mixture", "init_args": arguments}}
    compare_hparams(own, old)
    assert updated_config(old) == own
    part["init_args"]["beta"] = 0.2
    with pytest.raises(ValueError, match=r"objective\.init_args.objectives"):
        compare_hparams(own, old)
    with pytest.raises(ValueError, match=r"class_path: 'pl_prefopt.objectives.FDPO' != 'pl_prefopt.objectives.DPO'"):
        compare_hparams({"objective": to_config(DPO())}, {"objective": part})
    with pytest.raises(ValueError, match=r"optimizer.class_path: 'torch.optim.SGD' != 'torch.optim.Adam'"):
        compare_hparams({**own, "optimizer": {"class_path": "torch.optim.Adam"}}, own)


def test_a_stored_configuration_never_asks_for_code_of_others() -> None:
    trusted = CausalLM(pretrained="somebody/model", trust_remote_code=True)
    assert from_config(trusted, PolicyBuilder) is trusted
    for stored, base in ((to_config(trusted), PolicyBuilder), (to_config(FrozenModel(trusted)), Reference)):
        with pytest.raises(ValueError, match="trust_remote_code must not come from a stored configuration"):
            from_config(stored, base)
