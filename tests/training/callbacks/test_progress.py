"""Training progress in the terminal."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from genre_lightning.training.callbacks.progress import Progress, epoch_label


@pytest.mark.parametrize(
    ("max_epochs", "text"), [(10, "Epoch 4/10"), (-1, "Epoch 4"), (None, "Epoch 4")]
)
def test_epoch_label_counts_from_1(max_epochs: int | None, text: str) -> None:
    assert epoch_label(3, max_epochs) == text
    progress = Progress("val/loss")
    progress._trainer = Mock(max_epochs=max_epochs)
    assert progress._get_train_description(3).strip() == text
