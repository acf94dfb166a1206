"""Frozen pretrained text encoders, which turn texts into vectors."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from genre_lightning.garbage import without_garbage_collection
from genre_lightning.inputs.encoders.libraries import import_sentence_transformers
from genre_lightning.inputs.encoders.spec import TOKEN_STAGES, EncoderError, EncoderSpec
from genre_lightning.inputs.encoders.weights import find_weights, text_files
from genre_lightning.inputs.one_core import one_core_threads

#: Tokens, padding included, that go through the network together.
CPU_TOKENS = 1_024
GPU_TOKENS = 65_536

#: Texts that are tokenised before any of them is embedded.
_TEXTS_PER_CHUNK = 4_096


class Tokens(NamedTuple):
    """Texts as a text encoder takes them: one row per chunk, padded to the longest.

    Attributes:
        input_ids: (C, L) int64.
        attention_mask: (C, L) int64, 1 for a token, 0 for padding.
        rows: (C,) int64, ascending, the index of each chunk's text.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    rows: np.ndarray


@final
class TextModule(nn.Module):
    """Network from (C, L) token ids and mask to (C, D) vectors, with pooling; also for export.

    Args:
        layers: modules of sentence-transformers, the transformer first.
        stages: number of blocks before the last whose mean over tokens, scaled to length 1, is
            appended. The last block is trained to compare meanings; earlier blocks hold other
            features.
    """

    def __init__(self, layers: nn.Module, stages: int = 0) -> None:
        super().__init__()
        self.layers = layers
        self.stages = stages
        if stages:
            network: Any = next(layers.children())
            network.auto_model.config.output_hidden_states = True

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map (C, L) int64 token ids and mask to (C, D) float32 vectors."""
        features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        for layer in self.layers.children():
            features = layer(features)
        vector: Tensor = features["sentence_embedding"].float()
        if not self.stages:
            return vector
        # The first entry is the input of the first block, so there is one more entry than blocks.
        blocks = features["all_layer_embeddings"][-1 - self.stages : -1]
        mask = attention_mask.unsqueeze(2).float()
        means = [(block.float() * mask).sum(1) / mask.sum(1) for block in blocks]
        return torch.cat([vector, *(nn.functional.normalize(mean) for mean in means)], dim=1)


@final
class TextEncoder:
    """A frozen text encoder with its weights.

    Attributes:
        name: as recorded in checkpoints.
        sha256: of the weights, tokenizer and settings, see
            :func:`genre_lightning.inputs.encoders.weights.hash_weights`; or ``random-SEED``.
        width: D, including the stages if the spec asks for them.
        max_tokens: maximum length of a chunk, special tokens included.
        module: :class:`TextModule`, frozen, in evaluation mode.
        device: where the module is.
    """

    def __init__(self, spec: EncoderSpec, model: Any, sha256: str, device: torch.device) -> None:
        self.spec = spec
        self.name = spec.name
        self.sha256 = sha256
        self.device = device
        width = int(model.get_embedding_dimension())
        if spec.width is not None and spec.width != width:
            raise EncoderError(f"the encoder {spec.name!r} gives {width} numbers, not {spec.width}")
        stages, stage_width = _text_stages(model, spec) if spec.stages else (0, 0)
        self.width = width + stages * stage_width
        self.module = TextModule(model, stages).eval().requires_grad_(False)
        self._tokenizer = model.tokenizer
        # Tokenizers hold state and fail if two threads use one.
        self._lock = threading.Lock()
        self._prompt = model.prompts.get(model.default_prompt_name) or ""
        self._prefix, self._suffix = self._special_tokens()
        self.max_tokens = int(model.max_seq_length or 512)
        self._padding = int(self._tokenizer.pad_token_id or 0)

    def embed(
        self,
        texts: Sequence[str],
        prompt_after: str = "",
        report_progress: Callable[[float], object] | None = None,
    ) -> Tensor:
        """Turn texts into vectors.

        A text of more than ``max_tokens`` is split between tokens into the fewest chunks that fit,
        whose lengths differ by at most one token. The text's vector is the mean of the chunks'.

        Args:
            texts: N texts. The vector of an empty text comes from the special tokens alone.
            prompt_after: appended to every chunk of every text.
            report_progress: called now and then, from any thread, with the share that is done, from
                0 to 1.

        Returns: (N, D) float32 on the encoder's device. Other texts in the call affect a text's
            vector only by rounding.
        """
        vectors = torch.zeros((len(texts), self.width), device=self.device)
        for start in range(0, len(texts), _TEXTS_PER_CHUNK):
            text_chunks = self._chunks(texts[start : start + _TEXTS_PER_CHUNK], prompt_after)

            def report_overall(
                share: float, before: int = start, count: int = len(text_chunks)
            ) -> None:
                if report_progress is not None:
                    report_progress((before + share * count) / len(texts))

            vectors[start : start + _TEXTS_PER_CHUNK] = self._embed_chunks(
                text_chunks, report_overall
            )
        return vectors

    def _embed_chunks(
        self, texts: list[list[list[int]]], report_progress: Callable[[float], object]
    ) -> Tensor:
        """Return (P, D) float32 vectors of P texts, each the mean over its chunks.

        Args:
            texts: for each text at least one chunk, for each chunk its token ids.
            report_progress: see :meth:`embed`.
        """
        rows = [row for row, chunks in enumerate(texts) for _ in chunks]
        chunks = [chunk for chunks in texts for chunk in chunks]
        # Batch chunks of similar length, since padding costs as much as text.
        order = sorted(range(len(chunks)), key=lambda number: len(chunks[number]))
        chunk_vectors = torch.empty((len(chunks), self.width), device=self.device)
        budget = CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS
        batches = []
        while order:
            batch_size = max(1, budget // max(1, len(chunks[order[-1]])))
            # The longest come first, so that a lack of memory shows at once.
            batches.append(order[-batch_size:])
            order = order[:-batch_size]

        tokens, lock, done = max(1, sum(map(len, chunks))), threading.Lock(), 0

        def embed(batch: list[int]) -> None:
            nonlocal done
            ids, mask = self._pad([chunks[number] for number in batch])
            with torch.inference_mode():
                chunk_vectors[batch] = self.module(
                    torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)
                )
            with lock:  # progress by tokens, since the longest texts come first
                done += int(mask.sum())
                report_progress(done / tokens)

        workers = min(torch.get_num_threads(), len(batches))
        if self.device.type == "cpu" and workers > 1:
            with one_core_threads(workers, "texts") as pool:
                list(pool.map(embed, batches))
        else:
            for batch in batches:
                embed(batch)
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        counts = torch.bincount(index, minlength=len(texts)).unsqueeze(1)
        sums = torch.zeros((len(texts), self.width), device=self.device).index_add_(
            0, index, chunk_vectors
        )
        return sums / counts

    def tokenize(self, texts: Sequence[str], prompt_after: str = "") -> Tokens:
        """Tokenise texts for ``module``; :meth:`embed` averages the vectors of a text's rows."""
        text_chunks = self._chunks(texts, prompt_after)
        rows = [row for row, chunks in enumerate(text_chunks) for _ in chunks]
        ids, mask = self._pad([chunk for chunks in text_chunks for chunk in chunks])
        return Tokens(ids, mask, np.array(rows, dtype=np.int64))

    def tokenizer_settings(self, prompt_after: str = "") -> dict[str, Any]:
        """Return what a program without this library needs, besides the tokenizer, to tokenise.

        ``prompt`` is put before every text; ``prefix`` and ``suffix`` are token ids around every
        chunk, which has up to ``max_tokens`` including them; ``padding`` is the id of padding.
        """
        return {
            "prompt": self._prompt,
            "prefix": list(self._prefix),
            "suffix": self._chunk_suffix(prompt_after),
            "max_tokens": self.max_tokens,
            "padding": self._padding,
        }

    def save_tokenizer(self, folder: str | Path) -> None:
        """Write the tokenizer in the format of Hugging Face's libraries (``tokenizer.json``)."""
        self._tokenizer.save_pretrained(str(folder))

    def _chunk_suffix(self, prompt_after: str) -> list[int]:
        """Return the token ids that end every chunk."""
        prompt_ids = self._ids([prompt_after], special=False)[0] if prompt_after else []
        return [*prompt_ids, *self._suffix]

    def _chunks(self, texts: Sequence[str], prompt_after: str) -> list[list[list[int]]]:
        """Return the token ids of each chunk of each text, special tokens included."""
        if not texts:
            return []
        all_ids = self._ids([self._prompt + text for text in texts], special=False)
        suffix = self._chunk_suffix(prompt_after)
        max_text_tokens = self.max_tokens - len(self._prefix) - len(suffix)
        if max_text_tokens < 1:
            raise EncoderError(
                f"{prompt_after!r:.80} leaves no room for a text in the {self.max_tokens} tokens "
                f"of encoder {self.name!r}"
            )
        result = []
        for ids in all_ids:
            count = max(1, -(-len(ids) // max_text_tokens))
            length, longer = divmod(len(ids), count)
            starts = [number * length + min(number, longer) for number in range(count + 1)]
            result.append(
                [
                    [*self._prefix, *ids[start:end], *suffix]
                    for start, end in itertools.pairwise(starts)
                ]
            )
        return result

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        """Return each text's token ids, with the tokenizer's special ones if ``special``."""
        # verbose=False: no warnings about texts that exceed the network's maximum length.
        with self._lock:
            encoded = self._tokenizer(
                texts,
                add_special_tokens=special,
                truncation=False,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """Return the ids of the special tokens before and after a text."""
        (plain,), (with_special,) = self._ids(["a"], special=False), self._ids(["a"], special=True)
        for start in range(len(with_special) - len(plain) + 1):
            end = start + len(plain)
            if with_special[start:end] == plain:
                return with_special[:start], with_special[end:]
        raise EncoderError(
            f"the tokenizer of encoder {self.name!r} changes a text's own tokens when it adds "
            "special ones"
        )

    def _pad(self, chunks: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array([len(chunk) for chunk in chunks], dtype=np.int64)
        longest = int(lengths.max(initial=0))
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        ids = np.full((len(chunks), longest), self._padding, dtype=np.int64)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk)] = chunk
        return ids, mask


def open_text_encoder(
    spec: EncoderSpec, sha256: str, device: torch.device, seed: int | None
) -> TextEncoder:
    """Load a text encoder, see :func:`genre_lightning.inputs.encoders.opening.open_encoder`.

    Args:
        spec: of the encoder.
        sha256: of the weights, already checked.
        device: where the encoder computes.
        seed: of random weights; None for the pretrained ones.
    """
    folder = find_weights(spec)
    _check_text_folder(folder)
    with _without_wandb_line():
        library = import_sentence_transformers(spec.name)
    # The library logs a line for every model that it loads, at the level that training shows.
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    # The first model triggers further imports.
    with without_garbage_collection(), _without_progress_bar():
        try:
            model = library.SentenceTransformer(
                str(folder),
                device=str(device),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        except (OSError, ValueError, KeyError) as error:
            raise EncoderError(
                f"sentence-transformers can't read the model in {folder}: {error!s:.300}"
            ) from error
    if seed is not None:
        _draw_weights(model, seed)
    return TextEncoder(spec, model, sha256, device)


def _text_stages(model: nn.Module, spec: EncoderSpec) -> tuple[int, int]:
    """Return how many blocks append their means to a text's vector, and the width of each."""
    network: Any = next(model.children())
    config: Any = getattr(getattr(network, "auto_model", None), "config", None)
    if int(getattr(config, "num_hidden_layers", 0)) < TOKEN_STAGES:
        raise EncoderError(
            f"the encoder {spec.name!r} has fewer than {TOKEN_STAGES} blocks: set stages=false"
        )
    return TOKEN_STAGES - 1, int(config.hidden_size)


def _check_text_folder(folder: Path) -> None:
    """Refuse a folder with code or pickled weights."""
    files = text_files(folder)
    if not any(name.endswith(".safetensors") for name in files):
        raise EncoderError(f"{folder} holds no safetensors file")
    for part in {Path(name).parent for name in files}:
        part_folder = folder / part
        pickled = [
            name for name in ("pytorch_model.bin", "model.bin") if (part_folder / name).exists()
        ]
        if pickled and not any(part_folder.glob("*.safetensors")):
            raise EncoderError(
                f"{part_folder / pickled[0]} is not a safetensors file: convert it first"
            )
    config = folder / "config.json"
    if config.exists() and "auto_map" in json.loads(config.read_text("utf-8")):
        raise EncoderError(f"the model in {folder} brings its own code, which is never run")


def _draw_weights(model: nn.Module, seed: int) -> None:
    """Initialise weights like BERT's: N(0, .02) for matrices, 1 and 0 in normalisations."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim > 1:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(0.02 * noise)
                else:
                    parameter.fill_(1.0 if name == "weight" else 0.0)


@contextmanager
def _without_wandb_line() -> Iterator[None]:
    """Hide the line that transformers prints to stdout on import if ``WANDB_MODE`` is offline."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        sys.stdout.write(printed.getvalue().replace("[INFO] Running in WANDB offline mode\n", ""))


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Hide the bar that transformers draws while it reads a file; no argument does this."""
    settings = importlib.import_module("transformers.utils.logging")
    before = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            settings.enable_progress_bar()
