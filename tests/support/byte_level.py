"""A vocabulary of bytes with the markers of turns, and the chat template that writes them."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


def byte_level_tokenizer() -> Tokenizer:
    """Make a byte-level vocabulary without merges: one token per byte, and the turn markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    add_specials(tokenizer, SPECIALS)
    return tokenizer


def add_specials(tokenizer: Any, texts: list[str]) -> None:  # its stubs leave out what lists hold
    """Add special tokens as models have them."""
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])
