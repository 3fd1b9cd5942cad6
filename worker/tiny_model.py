"""`tiny-random`: a llama of 0.8 M random parameters and a byte-level tokenizer, made from a seed in an instant.

For tests, and for trying every command where no model can be had. The weights are drawn wider than usual (0.2): with
the usual 0.02 greedy output repeats itself, and equal outputs would prove little.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .model_error import ModelError
from .weights import WeightEntry, write_safetensors

if TYPE_CHECKING:
    from .weights import FloatArray

_SPREAD: Final = 0.2
_MAX_POSITIONS: Final = 131_072

END_OF_TEXT: Final = 256
TURN_START: Final = 257
TURN_END: Final = 258
SPECIALS: Final = {"<|endoftext|>": END_OF_TEXT, "<|im_start|>": TURN_START, "<|im_end|>": TURN_END}

_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class TinyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a variant may change: `tiny-random:positions=8192,seed=1`."""

    seed: int = 0
    positions: int = 2048
    layers: int = 4
    hidden: int = 128
    vocabulary: int = 512

    @classmethod
    def parse(cls, text: str) -> TinyConfig:
        """Read `name=value,name=value`. Raises ModelError."""
        pairs = [pair.partition("=") for pair in text.split(",") if pair]
        try:
            config = msgspec.convert({name: int(value) for name, _, value in pairs}, cls)
            unknown = {name for name, _, _ in pairs} - set(cls.__struct_fields__)
            if unknown or not (1 <= config.positions <= _MAX_POSITIONS and config.hidden % 32 == 0 < config.layers):
                raise ValueError(text)
        except ValueError:
            names = ", ".join(cls.__struct_fields__)
            raise ModelError(f"tiny-random:{text} is not a variant; write name=number of {names}") from None
        if config.vocabulary < 512:
            raise ModelError("tiny-random needs a vocabulary of at least 512: 256 bytes, 3 special tokens, syllables")
        return config

    @property
    def slug(self) -> str:
        """Name the variant in the cache: only what differs from the default."""
        default = TinyConfig()
        changed = [name for name in self.__struct_fields__ if getattr(self, name) != getattr(default, name)]
        return "".join(f"-{name}{getattr(self, name)}" for name in changed)


def write_tiny_model(directory: Path, config: TinyConfig, progress: Callable[[float], None]) -> None:
    """Fill a directory with everything that loads and tokenizes: the same bytes for the same variant."""
    model = _llama_config(config)
    _write_json(directory / "config.json", model)
    _write_json(directory / "generation_config.json", {"eos_token_id": TURN_END, "pad_token_id": END_OF_TEXT})
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.positions,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": _TEMPLATE,
        },
    )
    (directory / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    _write_json(directory / "tokenizer.json", _tokenizer(config.vocabulary))
    write_safetensors(directory / "model.safetensors", _entries(model, config.seed), progress)


def _llama_config(config: TinyConfig) -> dict[str, Any]:
    heads = config.hidden // 32
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": config.hidden * 11 // 4,
        "num_hidden_layers": config.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 2, 1),
        "head_dim": 32,
        "max_position_embeddings": config.positions,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "eos_token_id": TURN_END,
        "pad_token_id": END_OF_TEXT,
        "dtype": "bfloat16",
    }


def _entries(model: dict[str, Any], seed: int) -> list[WeightEntry]:
    """List the tensors in drawing order: the order is part of what the seed means."""
    import numpy as np

    # The legacy generator on purpose: its stream is frozen for ever, that of the newer ones is not.
    random = np.random.RandomState(seed)

    def drawn(*shape: int) -> FloatArray:
        return (random.standard_normal(shape) * _SPREAD).astype(np.float32)

    def entry(name: str, *shape: int) -> WeightEntry:
        return WeightEntry(name, shape, lambda: drawn(*shape))

    def ones(name: str, size: int) -> WeightEntry:
        return WeightEntry(name, (size,), lambda: np.ones(size, np.float32))

    hidden, inner, head_dim = model["hidden_size"], model["intermediate_size"], model["head_dim"]
    query, key = model["num_attention_heads"] * head_dim, model["num_key_value_heads"] * head_dim
    entries = [entry("model.embed_tokens.weight", model["vocab_size"], hidden)]
    for layer in range(model["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        entries += [
            ones(prefix + "input_layernorm.weight", hidden),
            entry(prefix + "self_attn.q_proj.weight", query, hidden),
            entry(prefix + "self_attn.k_proj.weight", key, hidden),
            entry(prefix + "self_attn.v_proj.weight", key, hidden),
            entry(prefix + "self_attn.o_proj.weight", hidden, query),
            ones(prefix + "post_attention_layernorm.weight", hidden),
            entry(prefix + "mlp.gate_proj.weight", inner, hidden),
            entry(prefix + "mlp.up_proj.weight", inner, hidden),
            entry(prefix + "mlp.down_proj.weight", hidden, inner),
        ]
    return [*entries, ones("model.norm.weight", hidden)]


def _tokenizer(vocabulary: int) -> dict[str, Any]:
    """One token per byte (id = byte) and the specials; the other ids are syllables, so that all output is text."""
    vocab = {char: value for value, char in enumerate(byte_alphabet())}
    vocab |= {syllable: len(vocab) + len(SPECIALS) + n for n, syllable in enumerate(_syllables(vocabulary - 259))}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for content, token_id in SPECIALS.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab | SPECIALS,
            "merges": [],
        },
    }


def byte_alphabet() -> list[str]:
    """Write each byte as one printable character: itself where it is one, else from U+0100 on (GPT-2)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value if value in printable else next(others)) for value in range(256)]


def _syllables(count: int) -> list[str]:
    """Make words of two letters and more, no two alike."""
    found: list[str] = []
    shorter = [""]
    while len(found) < count:
        shorter = [
            start + consonant + vowel for start in shorter for consonant in "bdfgklmnprstvz" for vowel in "aeiou"
        ]
        found += shorter
    return found[:count]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
