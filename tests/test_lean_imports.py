from __future__ import annotations

import subprocess
import sys

import pytest
import pytorch_lightning as pl
from pytorch_lightning.trainer.connectors import callback_connector

from genre_lightning import lean_imports


@pytest.mark.slow
def test_lightning_imports_without_what_the_encoders_brought():
    code = (
        "import sys\n"
        "from genre_lightning.lean_imports import without\n"
        "with without('torchvision', 'transformers'):\n"
        "    import pytorch_lightning, torchmetrics\n"
        "print(sorted({'torchvision', 'transformers'} & set(sys.modules)))\n"
        "from lightning_utilities.core.imports import RequirementCache\n"
        "print(bool(RequirementCache('torchvision')))\n"
        "import torchvision, timm\n"
        "ones = torch.ones(2)\n"
        "print(float(torchmetrics.functional.accuracy(ones, ones.int(), 'binary')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import torch\n" + code], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[]\nTrue\n1.0\n", "")


def test_plugins_of_lightning_are_looked_for_once(monkeypatch: pytest.MonkeyPatch):
    groups = []

    class Plugin:
        name = "mine"

        def load(self):
            return pl.Callback

    def entry_points(group):
        groups.append(group)
        return [Plugin()]

    names = vars(callback_connector)["_load_external_callbacks"].__globals__
    monkeypatch.setitem(names, "entry_points", names["entry_points"])
    monkeypatch.setattr(lean_imports, "entry_points", entry_points)
    lean_imports._entry_points.cache_clear()
    try:
        lean_imports.look_for_plugins_once()
        trainers = [pl.Trainer(logger=False, accelerator="cpu") for _ in range(2)]
    finally:
        lean_imports._entry_points.cache_clear()
    added = [
        [c for c in vars(trainer)["callbacks"] if type(c) is pl.Callback] for trainer in trainers
    ]
    assert [len(callbacks) for callbacks in added] == [1, 1] and added[0] != added[1]
    assert groups == ["pytorch_lightning.callbacks_factory"]
