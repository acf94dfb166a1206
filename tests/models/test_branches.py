"""Branches as the configuration lists them."""

from __future__ import annotations

from genre_lightning.models.branches import read_branches


def test_a_file_may_be_named_beside_the_input() -> None:
    network = {"name": "embedding_head"}
    listed = {"answers": {"path": "a.npz", "input": {"kind": "vectors"}, "network": network}}
    assert read_branches(listed)["answers"].input == {"kind": "vectors", "path": "a.npz"}
    assert "path" in listed["answers"]
