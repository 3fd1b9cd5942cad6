"""Tiny random encoders as transformers and sentence-transformers save them; made in a fifth of a second each."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any, Final

CONTEXT: Final = 64
WIDTH: Final = 32
_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALPHABET: Final = string.ascii_lowercase + string.digits


def tiny_encoder(folder: Path, model_class: str = "BertModel", *, seed: int = 1, **config: Any) -> Path:
    """Write a model of one of transformers' classes with its tokenizer; `config` are fields of its configuration."""
    from zmqrt.worker.engines.generate.hf_loader import untyped

    transformers = untyped("transformers")
    untyped("torch").manual_seed(seed)
    kind = getattr(transformers, model_class)
    settings = {
        "vocab_size": len(_SPECIAL) + 2 * len(_ALPHABET),
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 0,
        "initializer_range": 0.5,
    }
    model = kind(kind.config_class(**(settings | config))).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a word-piece tokenizer of single letters, as BERT's: lower case, `[CLS] a [SEP] b [SEP]`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces = [*_SPECIAL, *_ALPHABET, *(f"##{letter}" for letter in _ALPHABET)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer: Any = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT, **names}
    about["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def add_modules(folder: Path, *, pooling: str = "mean_tokens", is_normalised: bool = True) -> Path:
    """Add the files of sentence-transformers."""
    path = "sentence_transformers.models."
    steps = [
        {"idx": 0, "name": "0", "path": "", "type": f"{path}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{path}Pooling"},
        *([{"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{path}Normalize"}] if is_normalised else []),
    ]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "lasttoken")}
    about = {"word_embedding_dimension": WIDTH, **modes}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(about))
    return folder


class PlainEncoder:
    """The same model as plain transformers runs it: one text at a time, with its own tokenizer."""

    def __init__(self, folder: Path, model_class: str = "AutoModel") -> None:
        import torch

        from zmqrt.worker.engines.generate.hf_loader import untyped

        transformers = untyped("transformers")
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self._model: Any = getattr(transformers, model_class).from_pretrained(folder, dtype=torch.float32).eval()

    def tokens(self, *texts: str, **options: Any) -> Any:
        """Cut a text, or a pair, into tokens."""
        return self._tokenizer(*texts, return_tensors="pt", **options)

    def vector(self, text: str, pooling: str = "mean", *, is_normalised: bool = True, **options: Any) -> Any:
        """Make the vector of a text."""
        import torch

        with torch.inference_mode():
            hidden = self._model(**self.tokens(text, **options)).last_hidden_state[0]
        vector = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1], "max": hidden.max(0).values}[pooling]
        return (vector / vector.norm() if is_normalised else vector).numpy()

    def logits(self, *texts: str, **options: Any) -> Any:
        """Compute the logits of a text, or a pair."""
        import torch

        with torch.inference_mode():
            return self._model(**self.tokens(*texts, **options)).logits[0]
