"""Can an engine of ours generate text with this model? Asked of its files, before anything is loaded.

An encoder that is loaded as a generator answers, and every word is nonsense: what the configuration says is believed
before the weights are read.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

from .context import context_of
from .model_directory import ModelDirectory, enumerate_names
from .model_files import ModelError, entry

_GENERATORS: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
OTHERS: Final = {
    "ForSequenceClassification": "a classifier (or a cross-encoder that ranks)",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "a finder of answers in a text",
    "ForMultipleChoice": "a chooser among answers",
    "ForMaskedLM": "an encoder that fills gaps",
    "ForPreTraining": "an encoder",
    "ForImageClassification": "a classifier of images",
    "ForCTC": "a recogniser of speech",
    "ForAudioClassification": "a classifier of sounds",
    "ForSpeechSeq2Seq": "a recogniser of speech",
}
# fmt: off
ENCODERS: Final = frozenset({
    "albert", "bert", "camembert", "clip", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
    "electra", "ernie", "esm", "eurobert", "fnet", "hubert", "ibert", "jina_bert", "layoutlm", "layoutlmv3",
    "longformer", "luke", "megatron-bert", "modernbert", "mpnet", "nomic_bert", "roberta", "roberta-prelayernorm",
    "roc_bert", "roformer", "siglip", "squeezebert", "vit", "wav2vec2", "wavlm", "xlm-roberta", "xlm-roberta-xl",
    "xmod",
})
# fmt: on
"""Model types that read and do not write; transformers has heads for some that nobody has trained."""
# fmt: off
TWO_PARTS: Final = frozenset({
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "led", "longt5", "m2m_100",
    "marian", "mbart", "mt5", "mvp", "nllb-moe", "pegasus", "pegasus_x", "plbart", "prophetnet", "seamless_m4t",
    "speech_to_text", "switch_transformers", "t5", "t5gemma", "umt5", "whisper",
})
# fmt: on
"""Model types of an encoder and a decoder."""
_QUANTISERS: Final = {
    "bitsandbytes": "bitsandbytes",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed_tensors",
    "torchao": "torchao",
    "hqq": "hqq",
}
"""Ways of storing weights in fewer bits that transformers reads, and the package it needs for each."""
ANOTHER_ENGINE: Final = "--engine vllm, which knows more ways of keeping weights in few bits"
_LLAMAS: Final = ("llama", "mistral", "qwen2", "qwen3")
_PARTS: Final = (
    "input_layernorm",
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    "post_attention_layernorm",
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
"""What each layer of these has; of other types, and of what else these may have, the loader knows."""
MOST_LAYERS: Final = 1000
_PLAIN: Final = frozenset({"F64", "F32", "F16", "BF16"})
_SENTENCES: Final = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


def why_no_generator(directory: Path, config: dict[str, Any]) -> str | None:
    """Say what a model is instead of a generator of text; None if it is one."""
    kind = str(config.get("model_type") or "")
    names = architectures(directory, config)
    named = names[0] if names else f"of type {kind}"
    if config.get("is_encoder_decoder") or kind in TWO_PARTS:
        return f"it is a model of an encoder and a decoder ({named}); only decoders are served"
    if (directory / "modules.json").is_file() or (
        not names and any((directory / name).is_file() for name in _SENTENCES)
    ):
        return f"it makes vectors of sentences ({named})"
    if kind in ENCODERS and not config.get("is_decoder"):
        return f"it is an encoder ({named})"
    if names and not any(name.endswith(_GENERATORS) for name in names):
        what = next(
            (words for end, words in OTHERS.items() if names[0].endswith(end)), "a model without a head for text"
        )
        return f"it is {what} ({named})"
    return None


def check_generator(directory: Path, model: ModelDirectory, *, max_model_len: int = 0) -> None:
    """Raise ModelError if no engine of ours can run the model, or not with so large a context."""
    why = why_no_generator(directory, model.config)
    if why is not None:
        raise ModelError(
            f"{directory} cannot generate text: {why}; name a model whose architecture ends in ForCausalLM"
        )
    check_numbers(directory, model)
    _check_layers(directory, model)
    check_length(directory, model, max_model_len)


def architectures(directory: Path, config: dict[str, Any]) -> list[str]:
    """Return the names of classes that a configuration gives. Raises ModelError."""
    return [str(name) for name in entry(config, "architectures", list[object], directory / "config.json")]


def check_length(directory: Path, model: ModelDirectory, max_model_len: int) -> None:
    """Raise ModelError if the model has not so many positions, or what it says of them is no number."""
    try:
        context = context_of(model.config)
    except ValueError as error:
        raise ModelError(f"{directory}/config.json: {error}") from None
    if context is not None and max_model_len > context:
        raise ModelError(
            f"--max-model-len {max_model_len} is more than the model has: its context is {context} tokens "
            f"({directory}/config.json); lower it, or leave it out"
        )


def _check_layers(directory: Path, model: ModelDirectory) -> None:
    """Find layers that are missing or too many, where their names are known: a loader would find them after minutes."""
    count = model.config.get("num_hidden_layers")
    is_known = model.config.get("model_type") in _LLAMAS and "model.embed_tokens.weight" in model.tensors
    if not is_known or "quantization_config" in model.config or not isinstance(count, int):
        return
    if not 0 < count <= MOST_LAYERS:
        raise ModelError(f"{directory}/config.json says that the model has {count} layers")
    names = [f"model.layers.{layer}.{part}.weight" for layer in range(count) for part in _PARTS]
    missing = [name for name in [*names, "model.norm.weight"] if name not in model.tensors]
    if missing:
        what = "1 tensor" if len(missing) == 1 else f"{len(missing)} tensors"
        raise ModelError(
            f"{directory} lacks {what} that its config.json asks for: {enumerate_names(missing)}; fetch the model "
            "again, or the config.json that belongs to it"
        )
    over = sorted(name for name in model.tensors if name.startswith(f"model.layers.{count}."))
    if over:
        raise ModelError(
            f"{directory} has more layers than the {count} of its config.json: {enumerate_names(over)}; fetch the "
            "config.json that belongs to the weights"
        )


def check_numbers(directory: Path, model: ModelDirectory) -> None:
    """Compare how the weights are stored with what the configuration says of it."""
    quantisation = entry(model.config, "quantization_config", dict[str, Any], directory / "config.json")
    if not quantisation:
        strange = {name: tensor.dtype for name, tensor in model.tensors.items() if tensor.dtype not in _PLAIN}
        odd = sorted(f"{name} ({dtype})" for name, dtype in strange.items() if not name.endswith(_BUFFERS))
        if odd:
            raise ModelError(
                f"{directory}: these tensors are no floating-point numbers of 16 bits and more, and config.json has no "
                f"quantization_config that says how to read them: {enumerate_names(odd)}; use the unquantised model"
            )
        return
    method = str(quantisation.get("quant_method") or "unnamed")
    package = _QUANTISERS.get(method)
    if package is None or importlib.util.find_spec(package) is None:
        need = f"needs the package {package}, which is not installed" if package else "is not run here"
        raise ModelError(
            f"{directory} is quantised ({method}), which {need}; use the unquantised model of the same name, or "
            f"{ANOTHER_ENGINE}"
        )


_BUFFERS: Final = ("attn.bias", "masked_bias", "position_ids", "num_batches_tracked", "attention.bias")
"""Masks and counters that old checkpoints keep among their weights; transformers leaves them out."""
