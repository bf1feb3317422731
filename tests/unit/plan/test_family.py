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


@pytest.mark.parametrize(("family", "model_type"), [
    ("qwen", "qwen3_next"), ("mistral", "ministral"), ("llama", "smollm3"), ("falcon", "falcon_h1"),
])  # fmt: skip
def test_todays_members_agree_with_their_family_and_contradict_another(family, model_type):
    assert "changes nothing" in family_of({family: True}, model_type)[1]
    other = "llama" if family != "llama" else "qwen"
    with pytest.raises(ConfigError, match=f"is_{other}_derived_model: contradicts"):
        family_of({other: True}, model_type)


def test_a_flag_acts_where_the_type_is_unknown():
    assert family_of({"mistral": True}, "brandnew")[0] == "mistral"


def test_a_contradiction_is_an_error():
    with pytest.raises(ConfigError, match=r"is_falcon_derived_model: contradicts.*`llama`"):
        family_of({"falcon": True}, "llama")
