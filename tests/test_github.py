"""Files that GitHub reads: workflows, issue forms, the citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import genre_lightning

REPOSITORY = Path(__file__).resolve().parent.parent
GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("path", WORKFLOWS, ids=names(WORKFLOWS))
def test_workflow_runs_existing_targets_with_few_permissions(path: Path):
    workflow = read(path)
    # YAML 1.1 reads the key `on` as true.
    assert set(workflow) == {"name", True, "permissions", "concurrency", "jobs"}
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.M))
    commands = 0
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] and set(job.get("permissions", {})) <= {"id-token"}
        for step in job["steps"]:
            assert ("uses" in step) is not ("run" in step)
            if "uses" in step:
                # Pinned to a major version or a commit.
                assert re.fullmatch(
                    r"[\w.-]+/[\w.-]+@(v\d+|[0-9a-f]{40}|release/v\d+)", step["uses"]
                )
                continue
            commands += 1
            assert "${{" not in step["run"], "a value of the event would be run by the shell"
            for word in re.findall(r"\bmake ([\w-]+)", step["run"]):
                assert word in targets
            for script in re.findall(r"^(\.[\w/.-]+)", step["run"], re.M):
                assert (REPOSITORY / script).exists()
    assert commands
    assert "secrets." not in path.read_text("utf-8")


def test_ci_runs_on_every_supported_python():
    matrix = read(GITHUB / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    versions = [tuple(map(int, version.split("."))) for version in matrix["python"]]
    assert all(isinstance(version, str) for version in matrix["python"]), "3.10 would be 3.1"
    oldest, *_ = versions
    assert PROJECT["requires-python"] == f">={oldest[0]}.{oldest[1]}"
    assert versions == [(3, minor) for minor in range(oldest[1], versions[-1][1] + 1)]


def test_release_uses_trusted_publishing_without_a_key():
    jobs = read(GITHUB / "workflows" / "release.yml")["jobs"]
    publish = jobs["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["needs"] == "build"
    # The publishing job runs none of our code, and the job that runs it can't publish.
    assert all("run" not in step for step in publish["steps"])
    assert "permissions" not in jobs["build"]
    assert any(step.get("run") == "make dist" for step in jobs["build"]["steps"])


@pytest.mark.parametrize("path", FORMS, ids=names(FORMS))
def test_issue_form_is_valid(path: Path):
    form = read(path)
    if path.name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert form["name"] and form["description"]
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert ids and len(set(ids)) == len(ids)
    for part in form["body"]:
        assert part["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"].get("value" if part["type"] == "markdown" else "label")
    for page in re.findall(r"`((?:docs/)?[\w.-]+\.md)`", path.read_text("utf-8")):
        assert (REPOSITORY / page).is_file(), page


def test_dependencies_are_kept_current():
    updates = read(GITHUB / "dependabot.yml")["updates"]
    assert {each["package-ecosystem"] for each in updates} == {"pip", "github-actions"}


def test_citation_is_of_this_version():
    citation = read(REPOSITORY / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == genre_lightning.__version__
    assert citation["license"] == PROJECT["license"]
    assert [each["name"] for each in citation["authors"]] == [
        each["name"] for each in PROJECT["authors"]
    ]


def test_links_of_the_community_files_exist():
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md", ".github/pull_request_template.md"):
        page = REPOSITORY / name
        text = page.read_text("utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith("https:"):
                assert (page.parent / link.partition("#")[0]).is_file(), link
        # The project has no contact address, so none may be made up.
        assert not re.search(r"[\w.]+@[\w-]+\.\w+", text)
