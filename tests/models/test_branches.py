"""Reading the branches of a configuration."""

from __future__ import annotations

from genre_lightning.models.branches import read_branches


def test_a_path_beside_the_input_is_moved_into_it() -> None:
    network = {"name": "embedding_head"}
    listed = {"answers": {"path": "a.npz", "input": {"kind": "vectors"}, "network": network}}
    assert read_branches(listed)["answers"].input == {"kind": "vectors", "path": "a.npz"}
    assert "path" in listed["answers"]
