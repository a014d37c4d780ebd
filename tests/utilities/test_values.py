"""Digests, padding, suggestions and checks."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt.utilities.checks import choice, integer
from pl_prefopt.utilities.digests import json_digest, tensors_digest
from pl_prefopt.utilities.dtypes import dtype_named
from pl_prefopt.utilities.padding import pad_right
from pl_prefopt.utilities.suggestions import did_you_mean, nearest


def test_a_digest_sees_every_bit_name_shape_and_dtype() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    digests = {
        tensors_digest(d.items())
        for d in (
            base,
            {**base, "a": torch.zeros(3, 2)},
            {**base, "a": torch.zeros(2, 3, dtype=torch.bfloat16)},
            {**base, "b": torch.nextafter(torch.ones(1), torch.full((1,), 2.0))},
            {"c": base["a"], "b": base["b"]},
        )
    }
    assert len(digests) == 5
    assert tensors_digest(base.items()) == tensors_digest(reversed(base.items()))
    assert tensors_digest([("n", torch.tensor(1.0))]) != tensors_digest([("n", torch.tensor(2.0))])
    assert json_digest({"a": 1, "b": 2}) == json_digest({"b": 2, "a": 1}) != json_digest({"a": 1, "b": 3})


def test_padding_fills_on_the_right() -> None:
    ids, mask = pad_right([[1, 2, 3], [4], []], 9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
    assert mask.sum(1).tolist() == [3, 1, 0]


def test_the_nearest_word_is_suggested_only_if_it_is_near() -> None:
    assert nearest("simpo", ["SimPO", "IPO"]) == "SimPO"
    assert did_you_mean("--optimizer", ["trainer", "model"]) == ""
    assert nearest("chosen", ["chosen"]) is None


@pytest.mark.parametrize(("value", "optional"), [(0, False), (1.0, False), (True, False), (None, False), ("2", True)])
def test_integers_are_integers(value: object, optional: bool) -> None:
    with pytest.raises(ValueError, match=r"count must be an integer >= 1( or None)?, got "):
        integer("count", value, optional=optional)
    integer("count", 1)
    integer("count", None, optional=True)


def test_choices_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"crop must be one of centre, random, got 'center'. Did you mean 'centre'\?"):
        choice("crop", "center", ("centre", "random"))
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        dtype_named("int8")
