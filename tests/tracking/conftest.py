"""Fixtures shared with the tests of reports."""

from tests.report.conftest import make_case, three_branches

__all__ = ["make_case", "three_branches"]
