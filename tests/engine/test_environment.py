import pytest

from engine.versions import check_packages


def test_the_projects_own_requirements_are_met():
    check_packages()


def test_what_is_missing_or_too_old_is_named_with_what_to_do():
    with pytest.raises(ValueError, match=r"no-such-package is missing; numpy .* is installed, <1 is allowed: run `pip"):
        check_packages(["no-such-package>=2", "numpy<1", "torch>=1", 'other>=1; extra == "dev"'])
