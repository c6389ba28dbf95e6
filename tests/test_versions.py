"""Requirements: each has a lowest version, and what is tried in their place."""

import pytest

from tools import versions


def test_every_requirement_has_a_lowest_version():
    assert all("==" in versions.lowest(requirement) for requirement in versions.requirements())


@pytest.mark.parametrize(
    "requirement, lowest, beyond, unbounded",
    [("a-b>=1.2", "a-b==1.2", None, "a-b>=1.2"), ("a_b>=1.2,<3", "a_b==1.2", "a_b>=3", "a_b>=1.2")],
)
def test_bounds_are_lifted(requirement, lowest, beyond, unbounded):
    assert versions.lowest(requirement) == lowest
    assert versions.unbounded(requirement) == unbounded
    assert versions.bounded(requirement) == (beyond is not None)
    if beyond:
        assert versions.beyond(requirement) == beyond


@pytest.mark.parametrize("requirement", ["a", "a<2", "a==1", "a!=1"])
def test_a_requirement_without_a_lowest_version_is_told(requirement):
    with pytest.raises(ValueError, match=f"settings.ini: {requirement} has no lower bound"):
        versions.lowest(requirement)
