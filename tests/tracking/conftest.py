"""The movies and models of the reports' tests."""

from tests.report.conftest import make_case, three_branches

__all__ = ["make_case", "three_branches"]
