"""Options that peft does not know are refused with the nearest known one."""

from __future__ import annotations

import pytest

from pl_prefopt.adapters import check_lora


def test_known_options_pass() -> None:
    check_lora(None)
    check_lora({"r": 2, "lora_alpha": 4})


def test_an_unknown_option_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match=r"'lora_alfa' is not an argument of .* Did you mean 'lora_alpha'"):
        check_lora({"lora_alfa": 4})
