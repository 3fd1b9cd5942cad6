"""Can an engine of ours generate text with this model? Asked of its files, before anything is loaded.

An encoder that is loaded as a generator answers, and every word is nonsense: what the configuration says is believed
before the weights are read.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final, cast

from .context import context_of
from .model_error import ModelError
from .model_look import Look, enumerate_names

_GENERATORS: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_OTHERS: Final = {
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
_ENCODERS: Final = frozenset({
    "albert", "bert", "camembert", "clip", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
    "electra", "ernie", "esm", "eurobert", "fnet", "hubert", "ibert", "jina_bert", "layoutlm", "layoutlmv3",
    "longformer", "luke", "megatron-bert", "modernbert", "mpnet", "nomic_bert", "roberta", "roberta-prelayernorm",
    "roc_bert", "roformer", "siglip", "squeezebert", "vit", "wav2vec2", "wavlm", "xlm-roberta", "xlm-roberta-xl",
    "xmod",
})
# fmt: on
"""Model types that read and do not write; transformers has heads for some that nobody has trained."""
# fmt: off
_TWO_PARTS: Final = frozenset({
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
_PLAIN: Final = frozenset({"F64", "F32", "F16", "BF16"})
_SENTENCES: Final = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


def makes_text(directory: Path, config: dict[str, Any]) -> bool:
    """Tell a generator from an encoder."""
    return why_no_generator(directory, config) is None


def why_no_generator(directory: Path, config: dict[str, Any]) -> str | None:
    """Say what a model is instead of a generator of text; None if it is one."""
    kind = str(config.get("model_type") or "")
    names = [str(one) for one in cast("list[object]", config.get("architectures") or [])]
    named = names[0] if names else f"of type {kind}"
    if config.get("is_encoder_decoder") or kind in _TWO_PARTS:
        return f"it is a model of an encoder and a decoder ({named}); only decoders are served"
    if (directory / "modules.json").is_file() or (not names and any((directory / one).is_file() for one in _SENTENCES)):
        return f"it makes vectors of sentences ({named})"
    if kind in _ENCODERS and not config.get("is_decoder"):
        return f"it is an encoder ({named})"
    if names and not any(one.endswith(_GENERATORS) for one in names):
        what = next(
            (words for end, words in _OTHERS.items() if names[0].endswith(end)), "a model without a head for text"
        )
        return f"it is {what} ({named})"
    return None


def check_generator(directory: Path, look: Look, *, max_model_len: int = 0) -> None:
    """Raise ModelError if no engine of ours can run the model, or not with so large a context."""
    why = why_no_generator(directory, look.config)
    if why is not None:
        raise ModelError(
            f"{directory} cannot generate text: {why}; name a model whose architecture ends in ForCausalLM"
        )
    _check_numbers(directory, look)
    context = context_of(look.config)
    if context is not None and max_model_len > context:
        raise ModelError(
            f"--max-model-len {max_model_len} is more than the model has: its context is {context} tokens "
            f"({directory}/config.json); lower it, or leave it out"
        )


def _check_numbers(directory: Path, look: Look) -> None:
    """Compare how the weights are stored with what the configuration says of it."""
    quantisation = cast("dict[str, Any] | None", look.config.get("quantization_config"))
    if quantisation is None:
        strange = {name: one.dtype for name, one in look.tensors.items() if one.dtype not in _PLAIN}
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
            f"{directory} is quantised ({method}), which {need}; use the unquantised model of the same name"
        )


_BUFFERS: Final = ("attn.bias", "masked_bias", "position_ids", "num_batches_tracked", "attention.bias")
"""Masks and counters that old checkpoints keep among their weights; transformers leaves them out."""
