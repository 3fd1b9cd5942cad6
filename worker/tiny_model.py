"""`tiny-random`: a llama of 0.8 M random parameters and a byte-level tokenizer, made from a seed in an instant.

For tests, and for trying every command where no model can be had. The weights are drawn wider than usual (0.2): with
the usual 0.02 greedy output repeats itself, and equal outputs would prove little.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from .model_files import ModelError, write_json_object
from .tokenizer import byte_alphabet
from .weights import WeightEntry, llama_shapes, write_safetensors

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
    write_json_object(directory / "config.json", model)
    write_json_object(directory / "generation_config.json", {"eos_token_id": TURN_END, "pad_token_id": END_OF_TEXT})
    write_json_object(
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
    (directory / "tokenizer.json").write_text(_tokenizer(config.vocabulary), encoding="utf-8")
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

    def values(shape: tuple[int, ...]) -> FloatArray:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return (random.standard_normal(shape) * _SPREAD).astype(np.float32)

    return [WeightEntry(name, shape, partial(values, shape)) for name, shape in llama_shapes(model).items()]


def _tokenizer(vocabulary: int) -> str:
    """One token per byte (id = byte) and the specials; the other ids are syllables, so that all output is text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {char: value for value, char in enumerate(byte_alphabet())} | SPECIALS
    vocab |= {syllable: len(vocab) + n for n, syllable in enumerate(_syllables(vocabulary - len(vocab)))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    cast("Any", tokenizer).add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIALS])
    return tokenizer.to_str(pretty=True)


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
