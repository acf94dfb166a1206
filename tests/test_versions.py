"""Safe versions of the dependencies, as declared and as installed."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
DECLARED: dict[str, Requirement] = {
    canonicalize_name(requirement.name): requirement
    for requirement in map(Requirement, PROJECT["dependencies"])
}
EXTRAS = {
    extra: [Requirement(text) for text in texts]
    for extra, texts in PROJECT["optional-dependencies"].items()
}
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PLATFORMS = {
    "linux-x86_64": ("linux", "Linux", "x86_64"),
    "linux-aarch64": ("linux", "Linux", "aarch64"),
    "macos-arm64": ("darwin", "Darwin", "arm64"),
}


def read_pins(python: str, platform: str) -> dict[str, list[Requirement]]:
    """The lines of constraints.txt that apply to a Python and platform, by project."""
    system, platform_system, machine = PLATFORMS[platform]
    environment = {str(name): str(value) for name, value in default_environment().items()} | {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
        "platform_system": platform_system,
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
    }
    pins: dict[str, list[Requirement]] = {}
    for line in (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines():
        text = line.split("#")[0].strip()
        if not text:
            continue
        pin = Requirement(text)
        if pin.marker is None or pin.marker.evaluate(environment):
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        # 2.6.2 and 2.6.3 were malicious releases; up to 2.6.5: CVE-2026-58659.
        ("pytorch-lightning", ["2.6.6", "2.7.0"], ["2.5.5", "2.6.1", "2.6.2", "2.6.3", "2.6.5"]),
        # Up to 1.3.7 an aliased _target_ passes the block list.
        ("hydra-core", ["1.3.8"], ["1.1.0", "1.3.2", "1.3.7"]),
        # 2.13.0+cpu sorts above 2.13.0, and torchvision does not import with it.
        ("torch", ["2.14.1", "2.15.0", "2.15.0+cpu"], ["2.10.0", "2.13.0", "2.13.0+cpu"]),
        ("pillow", ["12.1.1"], ["12.1.0"]),
        ("filelock", ["3.20.3"], ["3.20.2"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_declared_floor(name: str, allowed: list[str], refused: list[str]):
    specifier: SpecifierSet = DECLARED[name].specifier
    assert [v for v in allowed if v not in specifier] == []
    assert [v for v in refused if v in specifier] == []


@pytest.mark.parametrize("name", DECLARED)
def test_installed_version_is_allowed(name: str):
    installed = metadata.version(name)
    assert DECLARED[name].specifier.contains(installed, prereleases=True), installed


def test_package_named_lightning_is_not_used():
    # `lightning` holds the same code under another name, and would need the same floor.
    assert "lightning" not in DECLARED
    assert "lightning" not in {canonicalize_name(r.name) for rs in EXTRAS.values() for r in rs}


def test_python_floor():
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(">=3.11")


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_each_dependency_once_and_within_its_floor(python: str, platform: str):
    pins = read_pins(python, platform)
    required = [*DECLARED.values(), *EXTRAS["dev"]]
    for requirement in required:
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        found = pins.get(canonicalize_name(requirement.name), [])
        assert len(found) == 1, f"{requirement.name}: {[str(pin) for pin in found]}"
        (specifier,) = found[0].specifier
        assert specifier.operator == "=="
        assert requirement.specifier.contains(Version(specifier.version)), f"{found[0]}"
    duplicates = {name: found for name, found in pins.items() if len(found) > 1}
    assert duplicates == {}


def test_constraints_are_exact_and_have_no_url():
    for line in (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines():
        text = line.split("#")[0].strip()
        if text:
            pin = Requirement(text)  # fails on a line with a pip option
            assert pin.url is None
            assert [specifier.operator for specifier in pin.specifier] == ["=="]
            assert "+" not in str(pin.specifier), "a local version exists at one place only"
