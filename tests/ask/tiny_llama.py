"""A tiny LLaVA with random weights, which takes text and images, for llama.cpp's own server.

``python tests/ask/tiny_llama.py FOLDER`` writes the two files of the model, serves them on a free
local port, prints the address and exits when standard input closes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

#: Sizes of both networks; an image becomes 16 patches and a class token.
EMBED, HEADS, FEED, LAYERS = 32, 2, 64, 2
IMAGE, PATCH = 56, 14
CONTEXT = 8192
SPECIAL = ("<unk>", "<s>", "</s>")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}assistant: "
)


def write_model(path: Path, seed: int = 0) -> None:
    """Write a Llama whose tokens are the bytes, yes and no."""
    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "yes", "no"]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * 2
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBED)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBED // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, *shape: int, ones: bool = False) -> None:
        values = np.ones(shape) if ones else draw.normal(0, shape[-1] ** -0.5, shape)
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", len(tokens), EMBED)
    for layer in range(LAYERS):
        for name, shape in (
            ("attn_q", (EMBED, EMBED)),
            ("attn_k", (EMBED, EMBED)),
            ("attn_v", (EMBED, EMBED)),
            ("attn_output", (EMBED, EMBED)),
            ("ffn_gate", (FEED, EMBED)),
            ("ffn_up", (FEED, EMBED)),
            ("ffn_down", (EMBED, FEED)),
        ):
            add(f"blk.{layer}.{name}.weight", *shape)
        add(f"blk.{layer}.attn_norm.weight", EMBED, ones=True)
        add(f"blk.{layer}.ffn_norm.weight", EMBED, ones=True)
    add("output_norm.weight", EMBED, ones=True)
    add("output.weight", len(tokens), EMBED)
    _finish(writer)


def write_image_encoder(path: Path, seed: int = 1) -> None:
    """Write a CLIP whose patches become tokens of the Llama."""
    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(IMAGE)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(EMBED)
    writer.add_vision_feed_forward_length(FEED)
    writer.add_vision_projection_dim(EMBED)
    writer.add_vision_block_count(LAYERS)
    writer.add_vision_head_count(HEADS)
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_use_gelu(True)

    def add(name: str, *shape: int) -> None:
        values = draw.normal(0, shape[-1] ** -0.5, shape)
        writer.add_tensor(name, values.astype(np.float32))

    def add_pair(name: str, outputs: int, inputs: int | None = None) -> None:
        add(f"{name}.weight", *((outputs,) if inputs is None else (outputs, inputs)))
        add(f"{name}.bias", outputs)

    add("v.class_embd", EMBED)
    add("v.patch_embd.weight", EMBED, 3, PATCH, PATCH)
    add("v.position_embd.weight", (IMAGE // PATCH) ** 2 + 1, EMBED)
    add_pair("v.pre_ln", EMBED)
    for layer in range(LAYERS):
        for name in ("ln1", "ln2"):
            add_pair(f"v.blk.{layer}.{name}", EMBED)
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            add_pair(f"v.blk.{layer}.{name}", EMBED, EMBED)
        add_pair(f"v.blk.{layer}.ffn_up", FEED, EMBED)
        add_pair(f"v.blk.{layer}.ffn_down", EMBED, FEED)
    add_pair("mm.0", EMBED, EMBED)
    add_pair("mm.2", EMBED, EMBED)
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(folder: Path, images: bool = True) -> None:
    """Serve the Llama, with the CLIP if it takes images, and print the address."""
    import xllamacpp

    model, image_encoder = folder / "tiny.gguf", folder / "eye.gguf"
    write_model(model)
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    if images:
        write_image_encoder(image_encoder)
        params.mmproj.path = str(image_encoder)
    params.model_alias = {"tiny-llava"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 4 * CONTEXT
    params.n_parallel = 4
    params.warmup = False
    params.n_gpu_layers = 0
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    serve(Path(sys.argv[1]), images="--text-only" not in sys.argv)
