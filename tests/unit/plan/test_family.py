"""The family flags: a no-op, an effect, or a contradiction."""

import pytest

from newtune.errors import ConfigError
from newtune.plan.family import family_of


def test_no_flag_no_notice():
    assert family_of({"llama": None, "mistral": False}, "llama") == (None, "")


def test_an_agreeing_flag_changes_nothing_and_says_so():
    family, notice = family_of({"llama": True}, "llama")
    assert family is None
    assert "changes nothing" in notice


def test_a_flag_acts_where_the_type_is_unknown():
    assert family_of({"mistral": True}, "brandnew")[0] == "mistral"


def test_a_contradiction_is_an_error():
    with pytest.raises(ConfigError, match=r"is_falcon_derived_model: contradicts.*`llama`"):
        family_of({"falcon": True}, "llama")
