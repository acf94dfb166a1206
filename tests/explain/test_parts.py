from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.explain.parts import (
    heat_pictures,
    overlay,
    poster_heat_maps,
    score_parts,
    title_contributions,
)
from genre_lightning.inputs.augment import normalise_posters
from genre_lightning.inputs.terms import TitleVectorizer
from genre_lightning.models.poster_resnet import PosterResNet

TITLES = {
    "plain": "Heat (1995)",
    "repeated word": "The Last of the Mohicans (1992)",
    "apostrophe": "Schindler's List (1993)",
    "slash": "Face/Off (1997)",
    "accent": "Léon: The Professional (1994)",
    "no year": "Night of the Living Dead",
    "unknown": "qqq",
    "empty": "",
    "only a year": "(1994)",
}
ANALYZERS = {
    "char_wb": {},
    "char_wb from 1": {"ngram_range": [1, 3]},
    "char": {"analyzer": "char", "ngram_range": [1, 4]},
    "word": {"analyzer": "word", "ngram_range": [1, 2]},
    "no decade": {"decade": False},
}


@pytest.fixture(scope="module", params=[*ANALYZERS, "linear skip"])
def model(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> TrainedModel:
    if request.param == "linear skip":
        return load_model(make_checkpoint(title={"hidden": 16, "skip": True}, seed=1))
    return load_model(make_checkpoint(vectorizer=ANALYZERS[request.param], seed=1))


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> TrainedModel:
    return load_model(tiny_checkpoint)


def poster(seed: int = 0, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def title_logits(model: TrainedModel, title: str, share: float = 1.0) -> torch.Tensor:
    """Logits of the title branch with every weight of the title's row scaled by `share`."""
    row = model.titles.transform([title])
    assert model.network.title is not None
    logits: torch.Tensor = model.network.title(
        torch.from_numpy(row.indices.astype(np.int64)),
        torch.zeros(1, dtype=torch.int64),
        torch.from_numpy(row.weights) * share,
    )[0]
    return logits


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES.keys())
def test_parts_of_a_title_add_up(model: TrainedModel, title: str):
    explained = title_contributions(model, title)
    change = (title_logits(model, title) - title_logits(model, "")).detach().double().numpy()
    words = sum((part.contributions for part in explained.parts), np.zeros(4))
    np.testing.assert_allclose(explained.contributions.sum(0), change, atol=1e-4)
    np.testing.assert_allclose(words, change, atol=1e-4)
    np.testing.assert_allclose(explained.total, change, atol=1e-6)


def test_a_title_matters_at_all(model: TrainedModel):
    assert np.abs(title_contributions(model, TITLES["plain"]).total).max() > 0.05


@pytest.mark.parametrize("title", [TITLES["plain"], TITLES["repeated word"], TITLES["no year"]])
def test_terms_equal_gradients_integrated_numerically(model: TrainedModel, title: str):
    row = model.titles.transform([title])
    branch = model.network.title
    assert branch is not None
    indices = torch.from_numpy(row.indices.astype(np.int64))
    whole = torch.from_numpy(row.weights)
    steps = 4000
    integral = np.zeros((len(indices), 4))
    offsets = torch.arange(steps) * len(indices)
    shares = (torch.arange(steps) + 0.5) / steps
    weights = (shares[:, None] * whole).requires_grad_()
    logits = branch(indices.repeat(steps), offsets, weights.flatten())
    for genre in range(4):
        (gradient,) = torch.autograd.grad(logits[:, genre].sum(), weights, retain_graph=True)
        integral[:, genre] = gradient.double().mean(0).numpy() * whole.double().numpy()
    found = title_contributions(model, title).contributions
    np.testing.assert_allclose(found, integral, atol=2e-4)


def test_a_branch_that_has_grown_is_noticed(tiny_checkpoint: Path):
    model = load_model(tiny_checkpoint)
    assert model.network.title is not None
    model.network.title.register_forward_hook(lambda module, args, output: output**2)
    with pytest.raises(RuntimeError, match="differ from their sum"):
        title_contributions(model, TITLES["plain"])


@pytest.mark.parametrize(
    ("title", "texts"),
    [
        ("Heat (1995)", ["Heat", "released in 1995"]),
        ("Schindler's List (1993)", ["Schindler's", "List", "released in 1993"]),
        ("Face/Off", ["Face", "Off"]),
        ("Léon: The Professional (1994)", ["Léon", "The", "Professional", "released in 1994"]),
        ("Le\u0301on (1994)", ["Le\u0301on", "released in 1994"]),
        ("1984 (1984)", ["1984", "released in 1984"]),
        ("Empire (1980/I)", ["Empire", "released in 1980"]),
        ("E.T. the Extra-Terrestrial", ["E.T", "the", "Extra", "Terrestrial"]),
        ("", []),
    ],
)
def test_parts_are_words_as_written(tiny: TrainedModel, title: str, texts: list[str]):
    parts = title_contributions(tiny, title).parts
    assert [part.text for part in parts] == texts
    for part in parts:
        assert part.span is not None
        if part.kind == "word":
            assert title[slice(*part.span)] == part.text
        else:
            assert title[slice(*part.span)].startswith(part.text[-4:])


def test_a_title_that_normalisation_changes_beyond_telling_has_no_spans(tiny: TrainedModel):
    # A capital sigma becomes another letter at a word's end than elsewhere.
    parts = title_contributions(tiny, "ΟΔΟΣ (1995)").parts
    assert [(part.text, part.span) for part in parts] == [
        ("οδος", None),
        ("released in 1995", None),
    ]


def test_an_ngram_within_a_word_counts_for_this_word_alone(tiny: TrainedModel):
    explained = title_contributions(tiny, "Heat Alien")
    heat, alien = explained.parts
    of_heat = [" heat ".find(term) >= 0 for term in explained.terms]
    assert 0 < sum(of_heat) < len(of_heat)
    expected = explained.contributions[of_heat].sum(0)
    np.testing.assert_allclose(heat.contributions, expected, atol=1e-9)
    expected = explained.contributions[np.logical_not(of_heat)].sum(0)
    np.testing.assert_allclose(alien.contributions, expected, atol=1e-9)


def test_an_ngram_of_two_words_is_shared(tiny: TrainedModel):
    explained = title_contributions(tiny, "Heat Night")
    heat = explained.parts[0]
    own = [explained.terms.index(term) for term in explained.terms if term in " heat "]
    shared = explained.terms.index("t ")
    expected = explained.contributions[own].sum(0) - explained.contributions[shared] / 2
    np.testing.assert_allclose(heat.contributions, expected, atol=1e-9)


def test_an_unknown_word_adds_nothing_and_is_not_ranked(tiny: TrainedModel):
    explained = title_contributions(tiny, "Heat qqq (1995)")
    assert [part.text for part in explained.parts if not part.contributions.any()] == ["qqq"]
    for genre in range(4):
        ranked = explained.ranked(genre)
        assert sorted(part.text for part in ranked) == ["Heat", "released in 1995"]
        sizes = [abs(part.contributions[genre]) for part in ranked]
        assert sizes == sorted(sizes, reverse=True)
        assert explained.ranked(genre, 1) == ranked[:1]


@pytest.mark.parametrize("settings", ANALYZERS.values(), ids=ANALYZERS.keys())
def test_located_terms_are_those_of_the_features(settings: dict):
    titles = ["the night of the living dead", "a", "a b", "of", ""]
    vectorizer = TitleVectorizer(vocabulary_size=512, sublinear_tf=False, **settings).fit(titles)
    for title in titles:
        located = vectorizer.locate(title)
        row = vectorizer.transform([title])
        columns, counts = np.unique([column for column, _, _ in located], return_counts=True)
        assert columns.tolist() == row.indices.tolist()
        assert len(vectorizer._idf) >= len(columns)
        raw = counts * vectorizer._idf[columns.astype(int)]
        np.testing.assert_allclose(row.weights, raw / np.linalg.norm(raw), rtol=1e-6)
        for column, start, end in located:
            assert title[start:end].strip() == vectorizer.name(column).strip()


@pytest.mark.parametrize(
    ("title", "with_poster"),
    [("Heat (1995)", True), ("Heat (1995)", False), ("", True), (None, True), (None, False)],
)
def test_parts_of_a_score_add_up(tiny: TrainedModel, title: str | None, with_poster: bool):
    pixels = poster() if with_poster else None
    parts = score_parts(tiny, title, pixels)
    expected = (tiny.network.prior + title_logits(tiny, title or "")).detach().double()
    if with_poster:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        image = ((torch.from_numpy(poster()) / 255 - mean) / std).permute(2, 0, 1)[None]
        assert tiny.network.poster is not None
        expected = expected + tiny.network.poster(image)[0].detach().double()
    np.testing.assert_allclose(parts.logits, expected.numpy(), atol=1e-5)
    assert bool(parts.title.any()) == bool(title)
    assert bool(parts.poster.any()) == with_poster
    np.testing.assert_array_equal(parts.bias, score_parts(tiny, "", None).logits)


def test_parts_add_up_to_what_the_network_answers(tiny: TrainedModel):
    row = tiny.titles.transform(["Heat (1995)"])
    pixels = normalise_posters(torch.from_numpy(poster()).permute(2, 0, 1)[None])
    logits = tiny.network(
        torch.from_numpy(row.indices.astype(np.int64)),
        torch.zeros(1, dtype=torch.int64),
        torch.from_numpy(row.weights),
        pixels,
        torch.zeros(1, dtype=torch.int64),
    )[0]
    parts = score_parts(tiny, "Heat (1995)", poster())
    np.testing.assert_allclose(parts.logits, logits.detach().numpy(), atol=1e-5)
    assert tiny.network.prior.all()


def test_words_add_up_to_the_titles_part(tiny: TrainedModel):
    title = TITLES["repeated word"]
    explained = title_contributions(tiny, title)
    words = sum((part.contributions for part in explained.parts), np.zeros(4))
    np.testing.assert_allclose(words, score_parts(tiny, title, poster()).title, atol=1e-4)


def test_a_model_of_one_branch_has_the_other_parts_zero(make_checkpoint: Callable[..., Path]):
    title = load_model(make_checkpoint(poster=None))
    parts = score_parts(title, "Heat", poster())
    assert parts.title.any()
    assert not parts.poster.any()
    with pytest.raises(ValueError, match="no poster branch"):
        poster_heat_maps(title, poster(), [0])
    image = load_model(make_checkpoint(title=None))
    parts = score_parts(image, "Heat", poster())
    assert parts.poster.any()
    assert not parts.title.any()
    np.testing.assert_allclose(parts.bias, image.network.prior.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="no title branch"):
        title_contributions(image, "Heat")


def test_heat_maps_equal_class_activation_maps(tiny: TrainedModel):
    # With pooling and one linear layer on top, Grad-CAM is the map of Zhou et al. 2016: the
    # features weighted by the genre's row of the last layer.
    network = tiny.network.poster
    assert isinstance(network, PosterResNet)
    pixels = poster()
    heat = poster_heat_maps(tiny, pixels, [2, 0])
    assert heat.shape == (2, 32, 32)
    assert heat.dtype == np.float32
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1)[None]
    features = network.stages(network.stem(image))[0].detach()
    for found, genre in zip(heat, [2, 0], strict=True):
        weights = network.head.weight[genre].detach()
        small = torch.relu((features * weights[:, None, None]).sum(0))
        big = nn.functional.interpolate(small[None, None], (32, 32), mode="bilinear")[0, 0]
        np.testing.assert_allclose(found, (big / big.max().clamp(min=1e-9)).numpy(), atol=1e-5)
    assert heat.any()


def test_heat_maps_are_taken_where_places_are_left(make_checkpoint: Callable[..., Path]):
    # 32 x 32 pixels are 16 x 16, 8 x 8 and 4 x 4 places after the three stages.
    model = load_model(make_checkpoint(poster={"widths": [4, 6, 8], "blocks": [1, 1, 1]}, seed=5))
    network = model.network.poster
    assert isinstance(network, PosterResNet)
    pixels = poster()
    inputs = normalise_posters(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    features = network.stages[:2](network.stem(inputs)).detach().requires_grad_()
    assert features.shape[2:] == (8, 8)
    logits = network.head(network.stages[2](features).mean(dim=(2, 3)))
    hot = 0
    for genre in range(4):
        (gradient,) = torch.autograd.grad(logits[0, genre], features, retain_graph=True)
        weights = gradient[0].mean(dim=(1, 2))
        small = torch.relu((features[0].detach() * weights[:, None, None]).sum(0))
        big = nn.functional.interpolate(small[None, None], (32, 32), mode="bilinear")[0, 0]
        found = poster_heat_maps(model, pixels, [genre])[0]
        np.testing.assert_allclose(found, (big / big.max().clamp(min=1e-9)).numpy(), atol=1e-5)
        hot += bool(found.any())
    assert hot > 0


def test_heat_maps_have_the_posters_size(tiny: TrainedModel):
    heat = poster_heat_maps(tiny, poster(size=(90, 60)), [0, 1, 2, 3])
    assert heat.shape == (4, 90, 60)
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert poster_heat_maps(tiny, poster(), []).shape == (0, 32, 32)


def test_a_genre_that_nothing_speaks_for_has_a_map_of_zeros(tiny_checkpoint: Path):
    model = load_model(tiny_checkpoint)
    assert isinstance(model.network.poster, PosterResNet)
    with torch.no_grad():
        model.network.poster.head.weight[1] = -1.0  # features are at least zero
    heat = poster_heat_maps(model, poster(), [0, 1])
    assert heat[0].max() == pytest.approx(1.0)
    assert not heat[1].any()


def test_explaining_leaves_the_model_as_it_was(tiny_checkpoint: Path):
    model = load_model(tiny_checkpoint)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    poster_heat_maps(model, poster(), [0])
    title_contributions(model, "Heat")
    after = model.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_heat_maps_from_many_threads_are_each_ones_own(tiny: TrainedModel):
    expected = [poster_heat_maps(tiny, poster(seed), [0, 1]) for seed in range(8)]
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        found[seed] = poster_heat_maps(tiny, poster(seed % 8), [0, 1])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(24):
        np.testing.assert_allclose(found[seed], expected[seed % 8], atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 4), np.uint8), np.zeros((32, 32, 3))],
    ids=["gray", "four channels", "float"],
)
def test_what_is_no_poster_is_refused(tiny: TrainedModel, bad: np.ndarray):
    with pytest.raises(ValueError, match="uint8"):
        score_parts(tiny, None, bad)


def test_a_genre_that_is_not_there_is_refused(tiny: TrainedModel):
    with pytest.raises(IndexError, match="genre 4 of 4"):
        poster_heat_maps(tiny, poster(), [4])


def test_an_overlay_is_hot_where_the_map_is(tiny: TrainedModel):
    heat = np.zeros((32, 48), dtype=np.float32)
    heat[:, 24:] = 1.0
    image = overlay(np.full((32, 48, 3), 128, np.uint8), heat)
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (48, 32))
    pixels = np.asarray(image).astype(int)
    assert pixels[:, 24:].mean() > 1.5 * pixels[:, :24].mean()
    with pytest.raises(ValueError, match="heat map of"):
        overlay(poster(), heat)


@pytest.mark.parametrize("kind", ["path", "bytes", "image"])
def test_heat_pictures_keep_the_posters_proportions(tiny: TrainedModel, tmp_path: Path, kind: str):
    picture = Image.fromarray(poster(size=(90, 60)))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: upright it is 90 wide and 60 high
    path = tmp_path / "poster.png"
    picture.save(path, exif=exif)
    if kind == "image":
        with Image.open(path) as image:
            found = heat_pictures(tiny, image, [0, 3], side=120)
    else:
        found = heat_pictures(tiny, path if kind == "path" else path.read_bytes(), [0, 3], side=120)
    assert [image.size for image in found] == [(120, 80), (120, 80)]
    assert {image.mode for image in found} == {"RGB"}
