"""Turn a GGUF file of a llama-family model into a directory that transformers and `tokenizers` load; without torch.

transformers can read GGUF itself, but parses it several times in Python at every start and names the wrong EOS token.
Here the file is parsed once, weights are dequantised tensor by tensor and written as bfloat16, and the rows of q and k
go back to the order that transformers expects (llama.cpp interleaves the two halves of each head for its rotary
embedding).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from .gguf_file import GgufFile, GgufTensor, find_parts, read_parts
from .model_cache import room_for
from .model_directory import enumerate_names
from .model_files import ModelError, write_json_object
from .weights import WeightEntry, llama_shapes, write_safetensors

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
_MOST_LAYERS: Final = 1000
_PARSED_PERCENT: Final = 10.0
_TOKENIZER_PERCENT: Final = 25.0
"""Measured for 135 M weights and a vocabulary of 49,152: 0.3 s, 0.5 s and 2.2 s."""


def convert_gguf(source: Path, directory: Path, progress: Callable[[float], None]) -> None:
    """Fill `directory` from the GGUF file `source` and those it is split over. Raises ModelError."""
    progress(0.0)
    parts = find_parts(source)
    try:
        _convert(read_parts(parts, _part(progress, 0.0, _PARSED_PERCENT)), directory, progress)
    except ModelError as error:
        raise error if source.name in str(error) else ModelError(f"{source}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Its metadata can be of any type and size. Whatever is wrong with them, no other file will come of this one.
        raise ModelError(f"{source} cannot be converted: {type(error).__name__}: {error}; fetch it again") from error


def _convert(file: GgufFile, directory: Path, progress: Callable[[float], None]) -> None:
    config = _config(file)
    ends = _end_ids(file, config)
    _check_tensors(file, config)
    entries = [_entry(tensor, config) for tensor in file.tensors]
    names = [f"{name}_token_id" for name in ("bos", "eos", "pad") if f"{name}_token_id" in config]
    generation: dict[str, Any] = {name: config[name] for name in names}
    if len(ends) > 1:
        generation["eos_token_id"] = ends
    with room_for(directory.parent, sum(entry.size_bytes for entry in entries)):
        write_json_object(directory / "config.json", config)
        write_json_object(directory / "generation_config.json", generation)
        _write_tokenizer(file, directory, config)
        progress(_TOKENIZER_PERCENT)
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
    heads, width = _number(file, f"{kind}.attention.head_count"), _number(file, f"{kind}.embedding_length")
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    tokens = _tokens(file)
    rows = shapes.get("token_embd.weight", (len(tokens),))[0]
    if len(tokens) > rows:
        raise ModelError(f"its tokenizer has {len(tokens)} tokens, but the model only {rows}: it is damaged")
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": _number(file, f"{kind}.feed_forward_length"),
        "num_hidden_layers": _number(file, f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(file, f"{kind}.attention.head_count_kv", heads),
        "head_dim": _number(file, f"{kind}.rope.dimension_count", width // heads),
        "max_position_embeddings": _number(file, f"{kind}.context_length"),
        "rope_theta": file.get(f"{kind}.rope.freq_base", 10000.0),
        "rms_norm_eps": file.get(f"{kind}.attention.layer_norm_rms_epsilon", 1e-5),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in shapes,
        "dtype": "bfloat16",
    }
    if "rope_freqs.weight" in shapes or file.get(f"{kind}.rope.scaling.type", "none") not in {"", "none"}:
        raise ModelError("a GGUF file with scaled rotary embeddings cannot be converted; use the model's safetensors")
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token_id = _token_id(file, theirs, len(tokens))
        if token_id is not None:
            config[f"{ours}_token_id"] = token_id
    return config


def _number(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.get(key, default)
    if value is None:
        raise ModelError(f"its metadata do not say {key}: it is damaged, or no model")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"its metadata say {key} = {str(value)[:80]}, which is not one number above zero")
    return value


def _tokens(file: GgufFile) -> list[str]:
    tokens = cast("list[object] | None", file.get("tokenizer.ggml.tokens"))
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ModelError(
            "it has no vocabulary (tokenizer.ggml.tokens); use a file that has, or the model's safetensors"
        )
    return cast("list[str]", tokens)


def _token_id(file: GgufFile, name: str, size: int) -> int | None:
    """Return the id of a named token; none if there is no such name, or it is of no token."""
    found = file.get(f"tokenizer.ggml.{name}_token_id")
    is_token = isinstance(found, int) and not isinstance(found, bool) and 0 <= found < size
    return found if is_token else None


def _end_ids(file: GgufFile, config: dict[str, Any]) -> list[int]:
    """Unite the ends of a text, of a turn and of a message: models end their answers with any of them."""
    found = [_token_id(file, name, config["vocab_size"]) for name in ("eos", "eot", "eom")]
    return sorted({token_id for token_id in found if token_id is not None})


def _check_tensors(file: GgufFile, config: dict[str, Any]) -> None:
    """Compare names and shapes with what the metadata announce: a file may lack some and look whole."""
    expected, found = _shapes(config), {tensor.name: tensor.shape for tensor in file.tensors}
    missing = [name for name in expected if name not in found]
    if missing:
        have = f"it has {len(found)} of them" if found else "it has none at all (a vocabulary by itself?)"
        raise ModelError(f"it lacks tensors of its model ({have}): {enumerate_names(missing)}; fetch it again")
    extra = [name for name in found if name not in expected and name != "output.weight"]
    if extra:
        raise ModelError(
            f"it has tensors that no {config['model_type']} model of {config['num_hidden_layers']} layers has: "
            f"{enumerate_names(extra)}; use the model's safetensors"
        )
    expected["output.weight"] = expected["token_embd.weight"]
    wrong = [
        f"{name} is {list(shape)}, not {list(expected[name])}"
        for name, shape in found.items()
        if shape != expected[name]
    ]
    if wrong:
        raise ModelError(f"its tensors are not what its metadata say: {enumerate_names(wrong)}")


def _hf_name(name: str) -> str | None:
    """Return what transformers calls a tensor of llama.cpp's; None if no llama has it."""
    stem = name.removesuffix(".weight")
    block, _, part = stem.removeprefix("blk.").partition(".")
    found = f"model.layers.{block}.{_LAYER_NAMES[part]}" if part in _LAYER_NAMES else _OUTER_NAMES.get(stem)
    return None if found is None else f"{found}.weight"


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """List llama.cpp's names of a model's tensors, and their shapes."""
    if config["num_hidden_layers"] > _MOST_LAYERS:
        raise ModelError(f"its metadata say that it has {config['num_hidden_layers']} layers: it is damaged")
    blocks = [f"blk.{number}.{part}" for number in range(config["num_hidden_layers"]) for part in _LAYER_NAMES]
    names = [f"{stem}.weight" for stem in ("token_embd", "output_norm", *blocks)]
    shapes = llama_shapes(config)
    return {name: shapes[hf_name] for name in names if (hf_name := _hf_name(name)) is not None}


def _entry(tensor: GgufTensor, config: dict[str, Any]) -> WeightEntry:
    """Name a tensor as transformers does, and say how its values are made."""
    name = _hf_name(tensor.name)
    if name is None:
        raise ModelError(f"the GGUF file has a tensor {tensor.name!r} that no {config['model_type']} model has")
    heads = config["num_attention_heads"] if name.endswith("q_proj.weight") else None
    heads = config["num_key_value_heads"] if name.endswith("k_proj.weight") else heads

    def values() -> FloatArray:
        import numpy as np

        made = tensor.values()
        if not np.isfinite(made).all():
            raise ModelError(
                f"the tensor {tensor.name} holds numbers that are not finite: it is damaged; fetch it again"
            )
        return made if heads is None else _unpermute(made, heads)

    return WeightEntry(name, tensor.shape, values)


def _unpermute(values: FloatArray, heads: int) -> FloatArray:
    """Undo llama.cpp's order of the rows of one head: a0 b0 a1 b1 … becomes a0 a1 … b0 b1 …"""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(file: GgufFile, directory: Path, config: dict[str, Any]) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template."""
    tokens = _tokens(file)
    tokenizer = _tokenizer(file, tokens)
    if file.get("tokenizer.ggml.add_bos_token") is True and "bos_token_id" in config:
        _begin_with(tokenizer, tokens, int(config["bos_token_id"]))
    text = tokenizer.to_str(pretty=True)  # its own save() does not say what is wrong with a disk
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
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
    write_json_object(directory / "tokenizer_config.json", settings)


def _begin_with(tokenizer: Tokenizer, tokens: list[str], token_id: int) -> None:
    """Put the token that begins a text before every text."""
    from tokenizers import processors

    token = tokens[token_id]
    before = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, token_id)])
    cast("Any", tokenizer).post_processor = before


def _tokenizer(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """Build the byte-level BPE tokenizer that the file describes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    model, flavour = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre", "default")
    splits = _PRE_TOKENIZERS.get(str(flavour))
    if model != "gpt2" or splits is None:
        raise ModelError(f"the GGUF file's tokenizer ({model}, {flavour}) cannot be converted; use its safetensors")
    merges = [cast("tuple[str, str]", tuple(merge.split(" ", 1))) for merge in file.get("tokenizer.ggml.merges")]
    try:
        tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ModelError(f"its vocabulary and its merges do not fit together ({error}): it is damaged") from None
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if splits == "digits" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    types = file.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(cast("list[int]", types)) != len(tokens):
        raise ModelError("it does not say of what kind each token is (tokenizer.ggml.token_type): it is damaged")
    control = [token for token, kind in zip(tokens, cast("list[int]", types), strict=True) if kind == _CONTROL_TYPE]
    cast("Any", tokenizer).add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer


_PRE_TOKENIZERS: Final = {"smollm": "digits", "default": "plain", "gpt-2": "plain"}
"""How each flavour splits text before BPE: GPT-2's pattern, after cutting digits apart or not."""
