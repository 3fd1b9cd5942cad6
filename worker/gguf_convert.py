"""Turn a GGUF file of a llama-family model into a directory that transformers and `tokenizers` load; without torch.

transformers can read GGUF itself, but parses it several times in Python at every start and names the wrong EOS token.
Here the file is parsed once, weights are dequantised tensor by tensor and written as bfloat16, and the rows of q and k
go back to the order that transformers expects (llama.cpp interleaves the two halves of each head for its rotary
embedding).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from .gguf_file import GgufFile, Tensor, read_gguf
from .model_cache import ModelError
from .weights import Entry, write_safetensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .weights import FloatArray

_ARCHITECTURES: Final = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER_NAMES: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL_TYPE: Final = 3
_PARSED_PERCENT: Final = 10.0
_TOKENIZER_PERCENT: Final = 25.0
"""Measured for 135 M weights and a vocabulary of 49,152: 0.3 s, 0.5 s and 2.2 s."""


def convert_gguf(source: Path, directory: Path, progress: Callable[[float], None]) -> None:
    """Fill `directory` from the GGUF file `source`. Raises ModelError for what cannot be converted."""
    progress(0.0)
    file = read_gguf(source, _part(progress, 0.0, _PARSED_PERCENT))
    config = _config(file)
    _write_json(directory / "config.json", config)
    _write_json(
        directory / "generation_config.json",
        {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config},
    )
    _write_tokenizer(file, directory, config)
    progress(_TOKENIZER_PERCENT)
    entries = [_entry(tensor, config) for tensor in file.tensors]
    write_safetensors(directory / "model.safetensors", entries, _part(progress, _TOKENIZER_PERCENT, 100.0))


def _part(progress: Callable[[float], None], begin: float, end: float) -> Callable[[float], None]:
    """Report the percentages of one part as a stretch of the whole."""
    return lambda percent: progress(begin + (end - begin) * percent / 100.0)


def _config(file: GgufFile) -> dict[str, Any]:
    """Build config.json from the file's metadata."""
    kind = str(file.get("general.architecture", "nothing"))
    if kind not in _ARCHITECTURES:
        known = " and ".join(_ARCHITECTURES)
        raise ModelError(
            f"a GGUF file of architecture {kind!r} cannot be converted (only {known}); use its safetensors"
        )
    names = {tensor.name for tensor in file.tensors}
    heads, width = file.get(f"{kind}.attention.head_count"), file.get(f"{kind}.embedding_length")
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": file.get(f"{kind}.vocab_size", len(file.get("tokenizer.ggml.tokens", []))),
        "hidden_size": width,
        "intermediate_size": file.get(f"{kind}.feed_forward_length"),
        "num_hidden_layers": file.get(f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get(f"{kind}.attention.head_count_kv", heads),
        "head_dim": file.get(f"{kind}.rope.dimension_count", width // heads),
        "max_position_embeddings": file.get(f"{kind}.context_length"),
        "rope_theta": file.get(f"{kind}.rope.freq_base", 10000.0),
        "rms_norm_eps": file.get(f"{kind}.attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in names,
        "dtype": "bfloat16",
    }
    if "rope_freqs.weight" in names or file.get(f"{kind}.rope.scaling.type"):
        raise ModelError("a GGUF file with scaled rotary embeddings cannot be converted; use the model's safetensors")
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token_id = file.get(f"tokenizer.ggml.{theirs}_token_id")
        if token_id is not None:
            config[f"{ours}_token_id"] = int(token_id)
    return config


def _entry(tensor: Tensor, config: dict[str, Any]) -> Entry:
    """Name a tensor as transformers does, and say how its values are made."""
    stem = tensor.name.removesuffix(".weight")
    block, _, part = stem.removeprefix("blk.").partition(".")
    name = f"model.layers.{block}.{_LAYER_NAMES[part]}" if part in _LAYER_NAMES else _OUTER_NAMES.get(stem)
    if name is None:
        raise ModelError(f"the GGUF file has a tensor {tensor.name!r} that no {config['model_type']} model has")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(part)

    def values() -> FloatArray:
        return tensor.values() if heads is None else _unpermute(tensor.values(), heads)

    return Entry(f"{name}.weight", tensor.shape, values)


def _unpermute(values: FloatArray, heads: int) -> FloatArray:
    """Undo llama.cpp's order of the rows of one head: a0 b0 a1 b1 … becomes a0 a1 … b0 b1 …"""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(file: GgufFile, directory: Path, config: dict[str, Any]) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template."""
    tokens = cast("list[str]", file.get("tokenizer.ggml.tokens"))
    tokenizer = _tokenizer(file, tokens)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    for name in ("bos", "eos", "pad"):
        if f"{name}_token_id" in config:
            settings[f"{name}_token"] = tokens[config[f"{name}_token_id"]]
    template = file.get("tokenizer.chat_template")
    if template:
        settings["chat_template"] = template
        (directory / "chat_template.jinja").write_text(str(template), encoding="utf-8")
    _write_json(directory / "tokenizer_config.json", settings)


def _tokenizer(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """Build the byte-level BPE tokenizer that the file describes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    model, flavour = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre", "default")
    splits = _PRE_TOKENIZERS.get(str(flavour))
    if model != "gpt2" or splits is None:
        raise ModelError(f"the GGUF file's tokenizer ({model}, {flavour}) cannot be converted; use its safetensors")
    merges = [cast("tuple[str, str]", tuple(merge.split(" ", 1))) for merge in file.get("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if splits == "digits" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    types = file.get("tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TYPE]
    cast("Any", tokenizer).add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer


_PRE_TOKENIZERS: Final = {"smollm": "digits", "default": "plain", "gpt-2": "plain"}
"""How each flavour splits text before BPE: GPT-2's pattern, after cutting digits apart or not."""


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
