from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_lightning_imports_without_packages_of_the_encoders():
    code = (
        "import sys\n"
        "from genre_lightning.lean_imports import hide_packages\n"
        "with hide_packages('torchvision', 'transformers'):\n"
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
