"""How a model makes one vector of a text, from the files that sentence-transformers keeps beside it.

`modules.json` lists the steps; `1_Pooling/config.json` says what is made of the tokens' vectors. A step that is not
computed here is refused by name, for without it the vectors would be another model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, cast, get_args

import msgspec

from .model_files import ModelError, damage, entry, read_json_object

Pooling = Literal["cls", "mean", "last", "max"]
POOLINGS: Final[tuple[Pooling, ...]] = get_args(Pooling)
_MODES: Final[dict[str, Pooling]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
"""In the order in which sentence-transformers puts the vectors of several one behind the other."""
_NAMES: Final[dict[str, Pooling]] = {"cls": "cls", "mean": "mean", "lasttoken": "last", "last": "last", "max": "max"}

_FOLDER: Final = r"^(\w[\w.-]{0,60}/?)?$|^\.$"
"""Of the model and within it: what somebody else wrote names no other file of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceConfig:
    """What comes before and behind the encoder; of a model that says nothing of it, what other servers do.

    `prompt` is put before each text; `max_tokens` is what the model was made for (0: not said).
    """

    pooling: tuple[Pooling, ...] = ("mean",)
    is_normalised: bool = True
    prompt: str = ""
    is_lowered: bool = False
    max_tokens: int = 0

    def with_options(self, options: Mapping[str, str]) -> Self:
        """Return what an operator has chosen instead (`pooling`, `normalize`). Raises ModelError."""
        pooling, is_normalised = self.pooling, self.is_normalised
        if "pooling" in options:
            asked = [known for known in POOLINGS if known == options["pooling"]]
            if not asked:
                raise ModelError(f"--engine-opt pooling={options['pooling']}: there are {', '.join(POOLINGS)}")
            pooling = tuple(asked)
        if "normalize" in options:
            is_normalised = options["normalize"] == "1"
        return replace(self, pooling=pooling, is_normalised=is_normalised)


class _Step(msgspec.Struct):
    """One entry of modules.json."""

    type: str
    path: Annotated[str, msgspec.Meta(pattern=_FOLDER)] = ""

    @property
    def kind(self) -> str:
        return self.type.rpartition(".")[2]


def read_sentence_config(directory: Path) -> SentenceConfig:
    """Read the files. Raises ModelError with the step or entry that is not understood."""
    sentences = directory / "sentence_bert_config.json"
    about = read_json_object(sentences)
    max_tokens = entry(about, "max_seq_length", int, sentences)
    if max_tokens < 0:
        raise ModelError(f"{sentences}: max_seq_length is {max_tokens}, which is no length of a text")
    steps = _steps(directory / "modules.json")
    if steps is None:
        plain = SentenceConfig()
        pooling, is_normalised = plain.pooling, plain.is_normalised
    else:
        pooling, is_normalised = _pooling(directory, steps), any(step.kind == "Normalize" for step in steps)
    return SentenceConfig(
        pooling=pooling,
        is_normalised=is_normalised,
        prompt=_prompt(directory / "config_sentence_transformers.json"),
        is_lowered=entry(about, "do_lower_case", bool, sentences),
        max_tokens=max_tokens,
    )


def _steps(path: Path) -> list[_Step] | None:
    """Return the steps that follow the encoder; None if nothing is said."""
    if not path.is_file():
        return None
    words = damage(path)
    if words is not None:
        raise ModelError(words)
    try:
        steps = msgspec.json.decode(path.read_bytes(), type=list[_Step])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path} is no list of steps ({error}); fetch it again") from None
    if not steps or steps[0].kind != "Transformer":
        raise ModelError(f"{path}: the first step is {steps[0].kind if steps else 'missing'}, and no Transformer")
    if steps[0].path not in {"", "."}:
        raise ModelError(f"{path}: the encoder lies in {steps[0].path}; name that directory, or move it up")
    return steps[1:]


def _pooling(directory: Path, steps: list[_Step]) -> tuple[Pooling, ...]:
    kinds = [step.kind for step in steps]
    if kinds not in (["Pooling"], ["Pooling", "Normalize"]):
        raise ModelError(
            f"{directory}/modules.json: behind the encoder come {', '.join(kinds) or 'no steps'}; only Pooling and "
            "Normalize, in that order, are computed here"
        )
    path = directory / steps[0].path / "config.json"
    if not path.is_file():
        raise ModelError(f"{directory} lacks {steps[0].path}/config.json, which says how vectors are pooled: fetch it")
    return _modes(read_json_object(path), path)


def _modes(about: dict[str, Any], path: Path) -> tuple[Pooling, ...]:
    if isinstance(named := about.get("pooling_mode"), str):
        on, known = [named], _NAMES
    else:
        on = [name for name, value in about.items() if name.startswith("pooling_mode_") and value is True]
        known = _MODES
    strange = [name for name in on if name not in known]
    if strange or not on:
        raise ModelError(f"{path}: pooling by {', '.join(strange) or 'nothing'}; there are {', '.join(POOLINGS)}")
    return tuple(pooling for name, pooling in known.items() if name in on)


def _prompt(path: Path) -> str:
    about = read_json_object(path)
    name = about.get("default_prompt_name")
    if name is None:
        return ""
    found = cast("dict[object, object]", entry(about, "prompts", dict[str, Any], path)).get(name)
    if not isinstance(found, str):
        raise ModelError(f"{path}: default_prompt_name is {name!r}, and prompts has no such text")
    return found
