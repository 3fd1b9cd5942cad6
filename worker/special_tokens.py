"""Which tokens a model's files call special, and which of them end an answer.

A model directory names them in up to five places, and each is known to be wrong or silent in some model: a generation
configuration that ends texts but not turns, a tokenizer that was saved before a chat template came. What any of them
calls an end is one; what a chat template writes behind an answer is one too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from .model_files import entry, read_json_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMES: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """Read tokenizer_config.json, with what older models keep in special_tokens_map.json, as transformers does.

    That file wins, unless the configuration lists its added tokens: then it was written later and knows all of them.
    """
    config = read_json_object(directory / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    return config | read_json_object(directory / "special_tokens_map.json")


def special_tokens(config: dict[str, Any]) -> dict[str, Any]:
    """Return the names that transformers gives a template; a token may stand as text or as an object with content."""
    named = {name: content_of(config[name]) for name in NAMES if config.get(name)}
    extra = config.get("additional_special_tokens")
    listed = cast("list[object]", extra) if isinstance(extra, list) else []
    return named | ({"additional_special_tokens": [content_of(token) for token in listed]} if listed else {})


def content_of(token: object) -> str:
    """Return the text of a token that stands as text or as an object."""
    return str(cast("dict[str, Any]", token).get("content", "")) if isinstance(token, dict) else str(token)


def complete(tokenizer: Tokenizer, directory: Path, config: dict[str, Any]) -> None:
    """Add the tokens that only other files name, as transformers does: by their numbers, then those with a name."""
    from tokenizers import AddedToken

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    listed = entry(config, "added_tokens_decoder", dict[str, Any], directory / "tokenizer_config.json")
    numbered = [token for _, token in sorted(listed.items(), key=lambda pair: _number(pair[0]))]
    if not listed:
        added = read_json_object(directory / "added_tokens.json")
        numbered = [text for text, _ in sorted(added.items(), key=lambda pair: _number(pair[1]))]
    plain = [config.get(name) for name in NAMES]
    for name in ("extra_special_tokens", "additional_special_tokens"):
        more = config.get(name)
        plain += cast("list[object]", more) if isinstance(more, list) else []
    named = {content_of(token) for token in plain if token}
    for listed_token in (*numbered, *plain):
        text = content_of(listed_token) if listed_token else ""
        if not text or text in known:
            continue
        known.add(text)
        flags = cast("dict[str, Any]", listed_token) if isinstance(listed_token, dict) else {}
        is_special = bool(flags.get("special")) or text in named
        token = AddedToken(
            text,
            special=is_special,
            single_word=bool(flags.get("single_word")),
            lstrip=bool(flags.get("lstrip")),
            rstrip=bool(flags.get("rstrip")),
            normalized=bool(flags.get("normalized", not is_special)),
        )
        cast("Any", tokenizer).add_tokens([token])


def _number(value: object) -> int:
    try:
        return int(cast("str", value))
    except (TypeError, ValueError):
        return 0


def end_ids(
    directory: Path, tokenizer: Tokenizer, config: dict[str, Any], closers: Iterable[str] = ()
) -> frozenset[int]:
    """Unite what the generation configuration, the model's and the tokenizer call an end, and the closers of turns."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        content = read_json_object(directory / name)
        found |= ids_in(content.get("eos_token_id"))
        found |= ids_in(entry(content, "text_config", dict[str, Any], directory / name).get("eos_token_id"))
    tokens = [content_of(config["eos_token"])] if config.get("eos_token") else []
    for text in (*tokens, *closers):
        token_id = tokenizer.token_to_id(text)
        found |= ids_in(token_id)
    return frozenset(found)


def ids_in(value: object) -> set[int]:
    """Read an id, a list of them, or nothing."""
    listed = cast("list[object]", value) if isinstance(value, list) else [value]
    return {one for one in listed if isinstance(one, int) and not isinstance(one, bool) and one >= 0}
