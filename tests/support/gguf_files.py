"""A small GGUF model as llama.cpp would write it, whole or in several files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from zmqrt.worker.tiny_model import SPECIALS
from zmqrt.worker.tokenizer import byte_alphabet

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 16, 2, 1, 24, 2
HEAD_DIM = HIDDEN // HEADS


def vocabulary() -> list[str]:
    """Bytes, one merge, and specials, as byte-level BPE writes them."""
    return [*byte_alphabet(), "he", *SPECIALS]


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    flavour: str = "smollm",
    parts: int = 1,
    changes: dict[str, object] | None = None,
) -> dict[str, np.ndarray]:
    """Write a small model as llama.cpp would; return the weights as transformers would name and order them.

    `changes` are values of the metadata, by the ends of their keys (`eot_token_id`); None leaves one out.
    """
    tokens = vocabulary()
    most = -(-len(tensors(len(tokens))) // parts) if parts > 1 else 0
    writer: Any = gguf.GGUFWriter(path, architecture, split_max_tensors=most)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(flavour)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_chat_template("{{ messages }}")
    expected: dict[str, np.ndarray] = {}
    random = np.random.RandomState(0)
    for ours, theirs, shape, heads in tensors(len(tokens)):
        values = random.standard_normal(shape).astype(np.float32)
        writer.add_tensor(theirs, permuted(values, heads) if heads else values)
        expected[ours] = values
    _change(writer, changes or {})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def tensors(vocab: int) -> list[tuple[str, str, tuple[int, ...], int]]:
    """List our name, llama.cpp's name, shape, and in how many heads the rows are interleaved."""
    found: list[tuple[str, str, tuple[int, ...], int]] = [
        ("model.embed_tokens.weight", "token_embd.weight", (vocab, HIDDEN), 0),
        ("model.norm.weight", "output_norm.weight", (HIDDEN,), 0),
    ]
    for layer in range(LAYERS):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        key = KV_HEADS * HEAD_DIM
        found += [
            (f"{ours}input_layernorm.weight", f"{theirs}attn_norm.weight", (HIDDEN,), 0),
            (f"{ours}self_attn.q_proj.weight", f"{theirs}attn_q.weight", (HIDDEN, HIDDEN), HEADS),
            (f"{ours}self_attn.k_proj.weight", f"{theirs}attn_k.weight", (key, HIDDEN), KV_HEADS),
            (f"{ours}self_attn.v_proj.weight", f"{theirs}attn_v.weight", (key, HIDDEN), 0),
            (f"{ours}self_attn.o_proj.weight", f"{theirs}attn_output.weight", (HIDDEN, HIDDEN), 0),
            (f"{ours}post_attention_layernorm.weight", f"{theirs}ffn_norm.weight", (HIDDEN,), 0),
            (f"{ours}mlp.gate_proj.weight", f"{theirs}ffn_gate.weight", (INNER, HIDDEN), 0),
            (f"{ours}mlp.up_proj.weight", f"{theirs}ffn_up.weight", (INNER, HIDDEN), 0),
            (f"{ours}mlp.down_proj.weight", f"{theirs}ffn_down.weight", (HIDDEN, INNER), 0),
        ]
    return found


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's own converter does to q and k."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _change(writer: Any, changes: dict[str, object]) -> None:
    values: dict[str, Any] = writer.kv_data[0]
    for end, value in changes.items():
        keys = [key for key in values if key.rpartition(".")[2] == end]
        key = keys[0] if keys else f"tokenizer.ggml.{end}"
        values.pop(key, None)
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)


def split_gguf(folder: Path, *, parts: int = 3, name: str = "model") -> list[Path]:
    """Write one model over several files, as gguf-split names them."""
    write_gguf(folder / f"{name}.gguf", parts=parts)
    return sorted(folder.glob(f"{name}-*-of-{parts:05}.gguf"))


def copy_of(files: list[Path], folder: Path) -> list[Path]:
    """Copy files into a folder of their own."""
    folder.mkdir()
    return [Path(shutil.copy(file, folder)) for file in files]
