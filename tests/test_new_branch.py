"""A new input and a new network: each needs a class and a table entry, and no other change."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from genre_lightning import GenrePredictor
from genre_lightning.checkpoint.card import CheckpointError
from genre_lightning.checkpoint.model import load_model
from genre_lightning.errors import InputError, UserError
from genre_lightning.explain.table import explain_branch, find_explainer
from genre_lightning.inputs.input import DenseFeatures, Features, Input, Store
from genre_lightning.inputs.part import Numbers
from genre_lightning.inputs.table import INPUTS
from genre_lightning.models.networks import NETWORKS, NetworkType, build_network
from genre_lightning.training.callbacks.resume import Interrupted
from tests.running import assert_same_run, at_step
from tests.webapp.serving import movie, serving

Train = Callable[[Path, list[str]], dict[str, Any]]
Overrides = Callable[..., list[str]]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@final
class LettersInput(Input):
    """Counts of the letters of a text, divided by the highest count in train."""

    kind: ClassVar[str] = "letters"
    gives: ClassVar[str] = "letters"
    of: str = "text"

    def __init__(self, column: str, alphabet: str = LETTERS) -> None:
        self.column = column
        self.alphabet = alphabet
        self.max_count: int | None = None

    @property
    def fitted(self) -> bool:
        return self.max_count is not None

    def network_arguments(self) -> dict[str, Any]:
        return {"letters": len(self.alphabet)}

    def bytes_per_movie(self) -> int:
        return 4 * len(self.alphabet)

    def open(self, values: Sequence[str | None], train: np.ndarray, store: Store) -> Features:
        texts = [value for value in values if value]
        if self.max_count is None:
            self.max_count = max(self._counts([values[row] or ""]).max() for row in train)
        present = np.array([bool(value) for value in values])
        row_index = np.where(present, np.cumsum(present) - 1, -1)
        return DenseFeatures("counts", self._counts(texts), row_index)

    def _counts(self, texts: Sequence[str]) -> np.ndarray:
        counts = [[text.lower().count(letter) for letter in self.alphabet] for text in texts]
        return np.array(counts, dtype=np.int32).reshape(len(texts), len(self.alphabet))

    def read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError("not a string")
        if not self._counts([value]).any():
            raise InputError("it has no letter")
        return value

    def encode(self, items: Sequence[str]) -> dict[str, Tensor]:
        return {"counts": torch.from_numpy(self._counts(items))}

    def prepare(self, numbers: Numbers, seeds: Sequence[tuple[int, int]] | None) -> Numbers:
        assert self.max_count is not None
        return {"shares": numbers["counts"].float() / self.max_count}

    def state(self) -> dict[str, Any]:
        max_count = None if self.max_count is None else int(self.max_count)
        return {"column": self.column, "alphabet": self.alphabet, "max_count": max_count}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LettersInput:
        if set(state) != {"column", "alphabet", "max_count"} or type(state["alphabet"]) is not str:
            raise ValueError("no letters")
        if type(state["max_count"]) is not int or not 0 < state["max_count"] < 10**6:
            raise ValueError(f"max_count: {state['max_count']!r:.100}")
        restored = cls(state["column"], state["alphabet"])
        restored.max_count = state["max_count"]
        return restored


class LetterHead(nn.Module):
    """A linear layer over shares of letters."""

    def __init__(self, num_genres: int, letters: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(letters, num_genres)

    def forward(self, shares: Tensor) -> Tensor:
        """(P, letters) to (P, G)."""
        logits: Tensor = self.head(self.drop(shares))
        return logits


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"letters": (1, 1000), "dropout": (0.0, 0.99)}
    monkeypatch.setitem(INPUTS, "letters", LettersInput)
    monkeypatch.setitem(NETWORKS, "letter_head", NetworkType(LetterHead, "letters", limits))


SPELLING = (
    "+model.branches.spelling={input: {kind: letters, column: title},"
    " network: {name: letter_head}, lr_scale: 0.5}"
)


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_new_branch_works_from_training_to_the_web_page(
    train_here: Train, tiny_overrides: Overrides, repository: Path, tmp_path: Path
) -> None:
    overrides = tiny_overrides(SPELLING, "data.batch_size=16", "model.dropout=0.3")
    reference, resumed = tmp_path / "reference", tmp_path / "resumed"
    result = train_here(reference, overrides)
    assert result["status"] == "completed" and result["test"]["num_movies"] == 24

    # A run interrupted in mid-epoch resumes exactly.
    patch = at_step(3, lambda: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(Interrupted):
            train_here(resumed, overrides)
    finally:
        patch.undo()
    train_here(resumed, [*overrides, f"ckpt_path={resumed}"])
    assert_same_run(reference, resumed)

    # The checkpoint alone rebuilds the model.
    best = reference / "checkpoints" / "best.ckpt"
    model = load_model(best)
    assert list(model.network.branches) == ["title_tfidf", "poster_resnet", "spelling"]
    described = model.network.description["branches"]["spelling"]
    assert described == {"name": "letter_head", "letters": 26, "dropout": 0.3}
    assert model.inputs["spelling"].column == "title"

    # evaluate.py gives the same numbers, and a report that names the branch.
    from evaluate import evaluate

    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        cfg = compose("evaluate", [f"ckpt_path={best}", "device=cpu"])
    assert evaluate(cfg, tmp_path / "evaluation") == result["test"]
    report = (tmp_path / "evaluation" / "report.html").read_text("utf-8")
    assert "spelling" in report

    # A prediction sums all three branches; without a title, only the poster branch counts.
    predictor = GenrePredictor.from_checkpoint(best, "cpu")
    poster = np.full((48, 32, 3), 90, np.uint8)
    scores = predictor.scores(["Lost Kiss (1968)", None], [poster, poster])
    items = {
        "title_tfidf": ["Lost Kiss (1968)", None],
        "poster_resnet": [model.inputs["poster_resnet"].read(poster)] * 2,
        "spelling": ["Lost Kiss (1968)", None],
    }
    from genre_lightning.inputs.encode import encode_items

    with torch.inference_mode():
        branch_logits = model.network.branch_logits(encode_items(model.inputs, items), 2)
        expected = torch.sigmoid(model.network.total(branch_logits))
    assert branch_logits["spelling"][0].any() and not branch_logits["spelling"][1].any()
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="it has no letter"):
        predictor.predict(["1984"])

    # The branch has no explainer, as the error says; its part of the score is still reported.
    assert find_explainer(model, "spelling") is None
    with pytest.raises(TypeError, match="branch spelling: a LetterHead on letters can't be"):
        explain_branch(model, "spelling", "Heat")
    with serving(predictor) as server:
        model_info = server.ask("GET", "/api/model").json()
        assert "spelling" in [branch["name"] for branch in model_info["branches"]]
        answer = server.ask("POST", "/api/predict", movie(title="Lost Kiss (1968)", poster=None))
        assert answer.status == 200
        genre = answer.json()["genres"][0]
        assert genre["branches"]["spelling"] != 0
        parts = genre["bias"] + sum(genre["branches"].values())
        assert parts == pytest.approx(genre["logit"], abs=1e-9)


class PretrainedHead(LetterHead):
    """Starts from weights that are all 7."""

    def load_pretrained(self) -> None:
        nn.init.constant_(self.head.weight, 7.0)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("members", [1, 2])
def test_new_network_starts_from_its_pretrained_weights(
    members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network_type = NetworkType(PretrainedHead, "letters", NETWORKS["letter_head"].limits)
    monkeypatch.setitem(NETWORKS, "letter_head", network_type)
    branches = {"spelling": {"name": "letter_head", "members": members}}
    network = build_network(3, branches, {"spelling": LettersInput("title")})
    weights = [value for name, value in network.named_parameters() if name.endswith("head.weight")]
    assert len(weights) == members
    assert all(torch.equal(weight, torch.full_like(weight, 7.0)) for weight in weights)


@pytest.mark.usefixtures("registered")
def test_mismatched_network_is_refused_with_the_branch_name(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    wrong = SPELLING.replace("name: letter_head", "name: terms_mlp")
    with pytest.raises((UserError, ValueError), match=r"model\.branches\.spelling"):
        train_here(tmp_path, tiny_overrides(wrong, model="title"))


def test_checkpoint_with_an_unregistered_input_is_refused(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        limits = {"letters": (1, 1000), "dropout": (0.0, 0.99)}
        patch.setitem(INPUTS, "letters", LettersInput)
        patch.setitem(NETWORKS, "letter_head", NetworkType(LetterHead, "letters", limits))
        overrides = tiny_overrides(SPELLING, "trainer.max_epochs=1", model="title")
        train_here(tmp_path, overrides)
    with pytest.raises(CheckpointError, match=r"input spelling .*its kind 'letters' is none of"):
        load_model(tmp_path / "checkpoints" / "best.ckpt")
