"""The public names exist, come lazily, and are those that the documentation may use."""

import subprocess
import sys

import pytest

import newtune

NAMES = [name for name in newtune.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_public_names_can_be_imported(name: str) -> None:
    assert getattr(newtune, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute `trian`"):
        newtune.trian  # noqa: B018


def test_importing_the_package_imports_no_library() -> None:
    program = "import newtune, sys; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
