"""The parser's report as a tree, and suggestions part by part."""

from __future__ import annotations

import pytest

from pl_prefopt.cli.messages import read_report, shorten, unknown_key

REPORT = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [...]
  Errors:
    - Problem with given class_path 'pl_prefopt.modules.TextPreferenceModule':
        Parser key "objective":
          Does not validate against any of the Union subtypes
          Errors:
            - Problem with given class_path 'pl_prefopt.objectives.IPO':
                Parser key "beta":
                  Expected a <class 'float'>. Got value: high
            - Expected a <class 'NoneType'>
          Given value: {'class_path': 'IPO', 'init_args': {'beta': 'high'}}
    - Expected a <class 'NoneType'>
  Given value: {...}
"""


def test_a_reason_knows_its_key_its_class_and_its_value() -> None:
    (reason,) = read_report(REPORT)
    assert (reason.key, reason.owner) == ("model.objective.beta", "pl_prefopt.objectives.IPO")
    assert (reason.text, reason.value) == ("Expected a <class 'float'>", "high")
    assert shorten(REPORT) == "model.objective.beta must be a number, got high"


def test_a_report_of_another_form_is_given_as_it_is() -> None:
    assert shorten("Errors:\n  Given value: 3") == "Errors: Given value: 3"
    assert shorten("something else\nhappened") == "something else or happened"


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("trainr.max_epoch", "unknown key 'trainr.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ("seed", "unknown key 'seed'; did you mean 'seed_everything'?"),
        ("data.btach_size", "unknown key 'data.btach_size'; did you mean 'data.batch_size'?"),
        ("zebra", "unknown key 'zebra'"),
        ("trainer.zebra", "unknown key 'trainer.zebra'"),
    ],
)
def test_a_key_is_corrected_part_by_part(key: str, answer: str) -> None:
    known = ["trainer.max_epochs", "trainer.devices", "seed_everything", "data.batch_size"]
    assert unknown_key(key, known) == answer
