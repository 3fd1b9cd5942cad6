"""Look at a model's directory before anything is loaded: is all there, is it whole, and does it fit together?

What would fail in an engine half a minute later, or would be served as nonsense, is said here at once, with the file,
the reason and the remedy. Knows files and their headers; whether an engine can run the model is `model_fit`'s question.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from .model_files import ModelError, Stored, damage, read_header, read_json_object

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SHARD: Final = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
_NAMED: Final = 5
"""Names in one message at most: a cut file can lack hundreds."""


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """What was seen: the configuration, and every tensor by its name."""

    config: dict[str, Any]
    tensors: dict[str, Stored]


def read_model_directory(directory: Path) -> ModelDirectory:
    """Look at a directory that transformers and `tokenizers` are to load. Raises ModelError."""
    config = _config(directory)
    _check_tokenizer(directory)
    return ModelDirectory(config, read_tensors(directory))


def enumerate_names(names: list[str]) -> str:
    """List some names, and say how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(_not_a_model(directory))
    config = read_json_object(path)
    if not config.get("model_type") and not config.get("architectures"):
        begin = ", ".join(list(config)[:_NAMED])
        raise ModelError(f"{path} describes no model: it has no model_type (its keys: {begin or 'none'})")
    return config


def _not_a_model(directory: Path) -> str:
    """Say what a directory without config.json is, if that can be seen."""
    adapter = directory / "adapter_config.json"
    if adapter.is_file():
        base = read_json_object(adapter).get("base_model_name_or_path") or "its base model"
        return (
            f"{directory} is an adapter of {base} and no model by itself: merge it into its base "
            "(peft: merge_and_unload, then save_pretrained) and name the result"
        )
    inside = sorted(directory.iterdir())
    if not inside:
        return f"{directory} is empty: there is no model in it"
    files = [path for path in inside if path.suffix.lower() == ".gguf"]
    if files:
        return f"{directory} is no model directory (it has no config.json), but it holds {_name_one(files)}"
    below = [path for path in inside if (path / "config.json").is_file()]
    below += sorted(path.parent for path in directory.glob("snapshots/*/config.json"))
    if below:
        return (
            f"{directory} is no model directory (it has no config.json), but there are some in it: {_name_one(below)}"
        )
    return f"{directory} is no model directory: it has no config.json"


def _name_one(found: list[Path]) -> str:
    first, others = found[0], len(found) - 1
    return f"{first.name}; did you mean {first}?" + (f" ({others} more are there)" if others else "")


def _check_tokenizer(directory: Path) -> None:
    path = directory / "tokenizer.json"
    if not path.is_file():
        sources = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (directory / name).is_file()]
        source = f" (there is {', '.join(sources)})" if sources else ""
        raise ModelError(
            f"{directory} has no tokenizer.json{source}; make one with transformers' AutoTokenizer…save_pretrained"
        )
    found = read_json_object(path)
    if "model" not in found:
        raise ModelError(f"{path} is no tokenizer: it has no entry 'model'; fetch it again")
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        read_json_object(directory / name)  # a missing one says nothing, a damaged one would be served as if it did
    template = directory / "chat_template.jinja"
    if template.is_file() and (words := damage(template)) is not None:
        raise ModelError(words)


# --- weights ---------------------------------------------------------------------------------------------------------


def read_tensors(directory: Path) -> dict[str, Stored]:
    """Read the headers of the weights that transformers would take: the one file, else what the index lists.

    Raises ModelError.
    """
    single = directory / WEIGHTS
    if single.exists() or single.is_symlink():
        return _header(single)
    if (directory / INDEX).exists():
        return _indexed(directory)
    raise ModelError(_no_weights(directory))


def _header(path: Path) -> dict[str, Stored]:
    if not path.exists():
        raise ModelError(f"{path} is a link to {path.readlink()}, which is not there: fetch the model again")
    if not path.is_file():
        raise ModelError(f"{path} is no file")
    return read_header(path)


def _indexed(directory: Path) -> dict[str, Stored]:
    index = directory / INDEX
    try:
        listed = msgspec.convert(read_json_object(index).get("weight_map"), dict[str, str])
    except msgspec.ValidationError:
        listed = {}
    if not listed:
        raise ModelError(f"{index} lists no weights (weight_map): fetch it again")
    files = sorted(set(listed.values()))
    outside = [name for name in files if Path(name).name != name]
    if outside:
        raise ModelError(f"{index} lists {enumerate_names(outside)}: weights lie beside their index")
    missing = [name for name in files if not (directory / name).exists()]
    if missing:
        raise ModelError(
            f"{directory} lacks {len(missing)} of the {len(files)} files of weights that {INDEX} lists: "
            f"{enumerate_names(missing)}; fetch them"
        )
    found = {name: read_header(directory / name) for name in files}
    absent = sorted(name for name, file in listed.items() if name not in found[file])
    if absent:
        raise ModelError(
            f"{index} lists tensors that are not in their files: {enumerate_names(absent)}; the index and the files "
            "are not of one model, or a file is of another one: fetch the model again"
        )
    places = Counter(name for tensors in found.values() for name in tensors)
    twice = sorted(name for name, times in places.items() if times > 1)
    if twice:
        raise ModelError(f"{directory} has tensors in more than one file: {enumerate_names(twice)}; fetch it again")
    return {name: tensor for tensors in found.values() for name, tensor in tensors.items()}


def _no_weights(directory: Path) -> str:
    inside = [path.name for path in sorted(directory.iterdir())]
    ours = [name for name in inside if name.endswith(".safetensors")]
    shards = [name for name in ours if _SHARD.fullmatch(name)]
    if shards:
        return f"{directory} has {enumerate_names(shards)} but no {INDEX}, which says what is in them: fetch it"
    if ours:
        return f"{directory} has no {WEIGHTS}, but {enumerate_names(ours)}: rename it if it holds the model's weights"
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        return (
            f"{directory} has no weights as safetensors but {enumerate_names(pickles)}: files of pickle can run code "
            "and are not loaded here; save the model as safetensors (transformers' save_pretrained)"
        )
    files = [directory / name for name in inside if name.lower().endswith(".gguf")]
    if files:
        return f"{directory} has no weights (*.safetensors), but it holds {_name_one(files)}"
    return f"{directory} has no weights (*.safetensors)"
