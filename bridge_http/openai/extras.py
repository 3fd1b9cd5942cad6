"""Fields that other servers and SDKs send along, and at which values they ask for nothing that is not done anyway.

One row for each name, with the reason. A field that changes no answer is let pass at any value; one that would change
the answer is let pass where its value asks for what is done anyway, and refused by name elsewhere, since an answer that
ignored it would be another one than the one asked for. What is obeyed stands in `schema.py`; `docs/openai_fields.md` is
made from here. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, cast

Fields = Mapping[str, object]


class Extra(NamedTuple):
    """One row: the values that ask for nothing (null is always one), and why others are refused, or none is.

    `at` None: any value. A function: whether a value asks for nothing beside the other fields; `when` says it in words.
    """

    why: str
    at: tuple[object, ...] | Callable[[object, Fields], bool] | None
    when: str = ""

    def is_neutral(self, value: object, fields: Fields) -> bool:
        """Whether a request with this value is the same one without it."""
        if value is None or self.at is None:
            return True
        if callable(self.at):
            return self.at(value, fields)
        return any(same(value, neutral) for neutral in self.at)


def same(value: object, other: object) -> bool:
    """Compare as JSON does: true is not 1, but 1.0 is."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _rows(why: str, at: tuple[object, ...] | None, names: str) -> dict[str, Extra]:
    return {name: Extra(why, at) for name in names.split()}


def _no_penalty(value: object, fields: Fields) -> bool:
    """Whether a window of the repetition penalty says nothing: there is no penalty, or it sees everything."""
    penalty = fields.get("repetition_penalty", fields.get("repeat_penalty"))
    return penalty is None or same(penalty, 1) or same(value, -1)


def _as_many_as_wanted(value: object, fields: Fields) -> bool:
    """Whether every answer that is made is wanted, so that none has to be chosen."""
    wanted = fields.get("n", fields.get("n_cmpl"))
    return same(value, 1) or same(value, -1) or (wanted is not None and same(value, wanted))


def _usual_samplers(value: object, _fields: Fields) -> bool:
    """Whether a list of samplers has all that we have; others do nothing at their neutral values."""
    names = value.split(";") if isinstance(value, str) else value
    if not isinstance(names, list):
        return False
    return not names or {"top_k", "top_p", "min_p", "temperature"} <= {
        str(name) for name in cast("list[object]", names)
    }


_NOTHING: Final[tuple[object, ...]] = ("", False, [])
_BEAMS: Final = "there is no search with beams"
_SAMPLER: Final = "no engine here draws tokens so"
_GRAMMAR: Final = "say what the answer keeps to as response_format, or as structured_outputs"
_THINKING: Final = "how long a model thinks is its own affair; max_tokens bounds all of an answer"
_NO_THOUGHTS: Final = "chats say how their model thinks, by its chat template"
_RAW: Final = "this bridge answers with text, and keeps the rest for itself"
_TEMPLATE: Final = "a conversation is rendered by its model's own chat template; chat_template_kwargs are given to that"
_NO_CHAT: Final = "no chat template sees what is no conversation"
_TOOLS: Final = "tools are understood in chats, as tools"
_WEIGHTS: Final = "models are served as they were loaded"
_ONLY_WITH: Final = "says more about something that is refused"

EXTRAS: Final[dict[str, Extra]] = {
    # --- changes no answer -------------------------------------------------------------------------------------------
    **_rows(
        "says who asks, or in which connection",
        None,
        "user metadata store safety_identifier session_id request_id rid extra_key custom_labels",
    ),
    **_rows(
        "is about speed, price or memory",
        None,
        "service_tier priority prediction prompt_cache_key prompt_cache_retention prompt_cache_options cache_salt "
        "cache_prompt id_slot slot_id n_cache_reuse keep_alive ttl draft_model stream_interval provider "
        "ngram_corpus_id routed_dp_rank data_parallel_rank disagg_prefill_dp_rank speculative.n_max speculative.n_min "
        "speculative.p_min backend_sampling num_batch num_gpu main_gpu num_thread low_vram f16_kv use_mmap use_mlock "
        "numa vocab_only",
    ),
    **_rows(
        "asks for figures beside the answer, which this bridge has in its metrics",
        None,
        "timings_per_token return_progress sse_ping_interval verbose usage return_cached_tokens_details "
        "return_token_offsets return_mm_kwargs return_meta_info routed_experts_prompt_start routed_experts_start_len",
    ),
    **_rows("says more about tools", None, "parallel_tool_calls tool_prompt parse_tool_calls"),
    **_rows(
        "says more about images, audio and video",
        None,
        "mm_processor_kwargs media_io_kwargs images_config max_dynamic_patch min_dynamic_patch",
    ),
    **_rows("special tokens have no text here", None, "spaces_between_special_tokens"),
    **_rows(
        "the context is the worker's, and never shifts", None, "num_ctx truncation_length n_keep num_keep n_discard"
    ),
    **_rows(
        "what a model thinks first stands in reasoning_content",
        None,
        "reasoning_format separate_reasoning stream_reasoning",
    ),
    **_rows(
        _ONLY_WITH,
        None,
        "length_penalty early_stopping mirostat_tau mirostat_eta dynatemp_exponent dynatemp_low dynatemp_high "
        "xtc_threshold dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers smoothing_curve "
        "adaptive_decay guided_decoding_backend guided_whitespace_pattern grammar_lazy grammar_triggers "
        "truncation_side",
    ),
    # --- how many answers, and of what -------------------------------------------------------------------------------
    "best_of": Extra(
        "which answer is best is not judged here: n has them all", _as_many_as_wanted, "1, -1, as many as n"
    ),
    **_rows(_BEAMS, (1,), "num_beams"),
    **_rows(_BEAMS, (False,), "use_beam_search"),
    **_rows("the answer is text", (["text"],), "modalities"),
    **_rows("the answer is text", (), "audio"),
    **_rows("only text is understood", ([], False), "images image_data use_audio_in_video"),
    **_rows(_TOOLS, ([],), "tools functions"),
    **_rows(_TOOLS, ("none", "auto"), "tool_choice function_call"),
    **_rows("nothing is looked up elsewhere", _NOTHING, "web_search_options moderation"),
    # --- thinking ----------------------------------------------------------------------------------------------------
    **_rows(_NO_THOUGHTS, ("none",), "reasoning_effort"),
    **_rows(_NO_THOUGHTS, ({}, {"enabled": False}, {"effort": "none"}), "reasoning"),
    **_rows(_NO_THOUGHTS, ({"type": "disabled"},), "thinking"),
    **_rows(_NO_THOUGHTS, (False,), "think enable_thinking"),
    **_rows("what a model thinks first stands in reasoning_content", (True,), "include_reasoning"),
    **_rows(_THINKING, (-1,), "thinking_token_budget reasoning_budget thinking_budget_tokens"),
    **_rows("no engine here controls how much a model says", ("medium",), "verbosity"),
    # --- the prompt --------------------------------------------------------------------------------------------------
    **_rows("the answer comes without its prompt", (False,), "echo return_full_text"),
    **_rows("text is gone on with, not filled in", ("",), "suffix"),
    **_rows(_TEMPLATE, (False,), "raw safe_prompt"),
    **_rows(_TEMPLATE, _NOTHING, "documents chat_template template system prompt_mode guideline context"),
    **_rows("text gets its model's own prefix", (True,), "add_special_tokens add_bos_token"),
    **_rows("a prompt that is too long is refused, not cut", (-1,), "truncate_prompt_tokens"),
    **_rows("a prompt that is too long is refused, not cut", (False, 0, "NONE", []), "truncate transforms"),
    **_rows("a prompt is text or token ids", _NOTHING, "prompt_embeds input_ids"),
    # --- how tokens are drawn ----------------------------------------------------------------------------------------
    **_rows(_SAMPLER, (1,), "typical_p typical tfs_z tfs encoder_repetition_penalty guidance_scale cfg_scale"),
    **_rows(
        _SAMPLER,
        (0, False),
        "mirostat mirostat_mode dynatemp_range dynamic_temperature xtc_probability dry_multiplier top_a epsilon_cutoff "
        "eta_cutoff smoothing_factor no_repeat_ngram_size penalty_alpha min_keep n_indent temperature_last",
    ),
    **_rows(_SAMPLER, (*_NOTHING, {}), "negative_prompt logits_processors custom_logit_processor custom_params"),
    **_rows(_SAMPLER, (False,), "watermark watermarking"),
    **_rows(_SAMPLER, (-1,), "top_n_sigma adaptive_target"),
    **_rows("say temperature: 0 where the likeliest token is meant", (True,), "do_sample"),
    "samplers": Extra(
        "their order is fixed here, and all of them count",
        _usual_samplers,
        "a list with top_k, top_p, min_p, temperature",
    ),
    "repeat_last_n": Extra("the repetition penalty sees the whole context", _no_penalty, "-1; any without a penalty"),
    "penalize_nl": Extra("the repetition penalty sees every token", _no_penalty, "any without a penalty"),
    "penalize_newline": Extra("the repetition penalty sees every token", _no_penalty, "any without a penalty"),
    # --- what may be written, and where it ends ----------------------------------------------------------------------
    **_rows(
        _GRAMMAR,
        _NOTHING,
        "structural_tag grammar grammar_string allowed_token_ids bad_words",
    ),
    **_rows("stops are texts and token ids", _NOTHING, "stop_regex"),
    **_rows("a stop is no part of the answer", (False,), "include_stop_str_in_output no_stop_trim"),
    **_rows("an answer ends by its tokens, not by the clock", (0, -1), "t_max_predict_ms t_max_prompt_ms"),
    **_rows("an answer ends by its tokens", (*_NOTHING, {}), "repetition_detection"),
    **_rows("special tokens have no text here", (True,), "skip_special_tokens detokenize"),
    # --- what is told beside the text --------------------------------------------------------------------------------
    **_rows("ask by logprobs", (0, -1), "n_probs top_n_tokens"),
    **_rows("log probabilities are of the answer, not of its prompt", (False,), "prompt_logprobs"),
    **_rows("log probabilities are of the likeliest tokens", ([],), "logprob_token_ids"),
    **_rows("log probabilities are those before anything is left out", (False,), "post_sampling_probs"),
    **_rows(
        _RAW,
        _NOTHING,
        "return_token_ids return_tokens return_prompt_token_ids return_prompt_text return_hidden_states "
        "return_routed_experts details decoder_input_details response_fields",
    ),
    # --- which model, and where --------------------------------------------------------------------------------------
    **_rows(_WEIGHTS, _NOTHING, "lora lora_path adapter_id"),
    **_rows(
        "prompt and answer are computed on one node",
        ({},),
        "kv_transfer_params ec_transfer_params vllm_xargs session_params",
    ),
    **_rows("prompt and answer are computed on one node", (), "bootstrap_host bootstrap_port bootstrap_room"),
    # --- embeddings, rerankers, classifiers --------------------------------------------------------------------------
    **_rows("vectors are 32-bit floats, little-endian", ("float32", "auto"), "embed_dtype"),
    **_rows("vectors are 32-bit floats, little-endian", ("native", "little"), "endianness"),
    **_rows("models get each text as it is", _NOTHING, "input_type task late_chunking"),
    **_rows("models give vectors as they are", (), "normalize use_activation"),
    **_rows("what does not fit the model is cut off, and no more", (4096,), "max_tokens_per_doc"),
    **_rows("documents are judged whole", (), "max_chunks_per_doc"),
    **_rows("of a document that is an object, its text counts", (["text"],), "rank_fields"),
    **_rows("a model has labels of its own", _NOTHING, "labels examples"),
}
"""For every path. A name that a path's schema has is obeyed there instead."""

CHAT_EXTRAS: Final[dict[str, Extra]] = {
    **_rows("special tokens come from the chat template alone", (False,), "add_special_tokens"),
}
"""What differs in conversations."""

TEXT_EXTRAS: Final[dict[str, Extra]] = {
    **_rows(_NO_CHAT, (True,), "add_generation_prompt"),
    **_rows(_NO_CHAT, (False,), "continue_final_message"),
    **_rows(_NO_CHAT, ({},), "chat_template_kwargs"),
}
"""What differs where there is no conversation."""

MESSAGE_EXTRAS: Final[dict[str, Extra]] = {
    **_rows(
        "models get role, content and calls alone",
        None,
        "id created created_at timestamp status metadata annotations citations cache_control weight "
        "reasoning reasoning_content reasoning_details thinking thinking_blocks provider_specific_fields parsed",
    ),
    **_rows("calls are understood as tool_calls", (), "function_call"),
    **_rows("only text is understood", (), "audio"),
    **_rows("only text is understood", ([],), "images videos audios"),
    **_rows("models get role, content and calls alone: say it as content", ("",), "refusal"),
    **_rows("say continue_final_message beside the messages", (False,), "prefix partial"),
}
"""What stands in messages beside role and content: histories that come back hold what other servers answered."""

PART_EXTRAS: Final[dict[str, Extra]] = _rows(
    "models get the text alone", None, "cache_control annotations id logprobs prompt_cache_breakpoint"
)
"""What stands in parts of type text beside their text."""

ALIASES: Final = {
    "n_cmpl": "n",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "repeat_penalty": "repetition_penalty",
    "random_seed": "seed",
}
"""Other names of what is obeyed: of llama.cpp, Ollama, TGI, SGLang and Mistral. OpenAI's name wins where both stand."""
