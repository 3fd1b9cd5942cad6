"""A model that is not what it says is refused before it is loaded: file, reason, remedy. No torch is needed for it."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support import broken_models as broken
from support.tiny import silent, tiny_model
from zmqrt.worker.model_files import ModelError
from zmqrt.worker.model_sources import ModelFiles, check_fit, resolve
from zmqrt.worker.tokenizer import load_tokenizer

SMALL = "layers=1,hidden=32"
Break = Callable[[Path], object]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is right."""
    return tiny_model(tmp_path_factory.mktemp("models"), SMALL)


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return broken.copy(whole, tmp_path / "broken")


def look(model: Path | str, *, max_model_len: int = 0) -> ModelFiles:
    """Do what a node does before it starts an engine of ours."""
    files = resolve(str(model), progress=silent)
    check_fit(files, max_model_len=max_model_len)
    return files


def test_a_model_that_is_right_passes(model: Path) -> None:
    """In one file or in several, whatever else lies beside them."""
    assert look(model).kind == "generate"

    broken.shard(model, 3)
    (model / "consolidated.safetensors").write_bytes((model / "model-00001-of-00003.safetensors").read_bytes())

    assert look(model).kind == "generate"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (name, content)
        for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json")
        for content in sorted(broken.NOT_MODELS)
        if (name, content) != ("generation_config.json", "json")  # an object without known entries, as is allowed
    ],
)
def test_what_was_saved_instead_of_a_file_is_told_from_it(model: Path, name: str, content: str) -> None:
    """Nothing at all, a pointer of Git LFS, a page, an error as JSON, zeros: the file is named, and what to do."""
    (model / name).write_bytes(broken.NOT_MODELS[content])

    with pytest.raises(ModelError) as caught:
        look(model)

    words = {"empty": "is empty", "lfs": "git lfs pull", "html": "a web page"}.get(content, "")
    assert str(model / name) in str(caught.value)
    assert words in str(caught.value)
    assert "header too large" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.5, 0.999])
def test_weights_that_were_cut_off_say_so(model: Path, share: float) -> None:
    """Wherever it was: in the length, the header, a tensor."""
    broken.truncate(model / broken.WEIGHTS, share)

    with pytest.raises(ModelError, match=r"model\.safetensors (ends|has|is no).*fetch it again"):
        look(model)


def test_a_shard_that_is_missing_cut_off_or_of_another_model_is_named(model: Path) -> None:
    """So is an index that is missing, or lists nothing."""
    first, second = broken.shard(model, 2)
    content, second_tensors = second.read_bytes(), broken.read_tensors(second)

    second.unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of the 2 files.*model-00002-of-00002\.safetensors"):
        look(model)

    second.write_bytes(content[:-100])
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors has .* cut off"):
        look(model)

    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelError, match="tensors that are not in their files"):
        look(model)

    first_tensors = broken.read_tensors(first)
    broken.write_tensors(first, first_tensors | dict(list(second_tensors.items())[:1]))
    second.write_bytes(content)
    with pytest.raises(ModelError, match="tensors in more than one file: "):
        look(model)

    broken.write_tensors(first, first_tensors)
    index = (model / broken.INDEX).read_text()
    (model / broken.INDEX).write_text('{"weight_map": {}}')
    with pytest.raises(ModelError, match="lists no weights"):
        look(model)

    (model / broken.INDEX).write_text(index.replace("model-00001", "../model-00001"))
    with pytest.raises(ModelError, match="beside their index"):
        look(model)

    (model / broken.INDEX).unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors\.index\.json"):
        look(model)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_to_nothing_is_no_file(model: Path) -> None:
    """As in a hub's cache whose blobs were swept away."""
    (model / broken.WEIGHTS).unlink()
    (model / broken.WEIGHTS).symlink_to("../blobs/abc")

    with pytest.raises(ModelError, match=r"a link to .*blobs.abc, which is not there"):
        look(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_by_name(model: Path, name: str) -> None:
    """As a directory's only weights, and named themselves."""
    (model / broken.WEIGHTS).rename(model / name)

    with pytest.raises(ModelError, match=rf"{name}.*pickle.*safetensors"):
        look(model)
    with pytest.raises(ModelError, match=rf"{name} is a file of pickle"):
        look(model / name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["BertModel"], "model_type": "bert"}, r"an encoder \(BertModel\)"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, r"an encoder \(BertForMaskedLM\)"),
        ({"architectures": None, "model_type": "xlm-roberta"}, "an encoder"),
        ({"architectures": ["LlamaModel"]}, r"without a head for text \(LlamaModel\)"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "a classifier"),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "an encoder and a decoder"),
        ({"architectures": ["SomeForConditionalGeneration"], "is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"}, "an encoder and a decoder"),
        ({"architectures": ["ViTForImageClassification"], "model_type": "vit"}, "ViTForImageClassification"),
    ],
)
def test_what_is_no_generator_is_not_served_as_one(model: Path, changes: dict[str, object], words: str) -> None:
    """It would answer, and every word would be nonsense. What it is stands in the message."""
    broken.edit_json(model / "config.json", **changes)

    with pytest.raises(ModelError, match=f"cannot generate text: .*{words}"):
        look(model)
    assert resolve(str(model), progress=silent).kind != "generate"  # an engine of one's own may have a use for it


def test_a_maker_of_sentence_vectors_is_no_generator(model: Path) -> None:
    """Even on top of a decoder."""
    (model / "modules.json").write_text("[]")

    with pytest.raises(ModelError, match="vectors of sentences"):
        look(model)


def test_an_adapter_is_no_model(model: Path) -> None:
    """It names its base."""
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')

    with pytest.raises(ModelError, match=r"an adapter of org/base.*merge"):
        look(model)


def test_numbers_that_nothing_explains_are_refused(model: Path) -> None:
    """Bytes without a quantization_config; and a way of quantising that is not run here, by its name."""
    broken.add(model, "model.layers.0.mlp.up_proj.weight", (88, 32), dtype="I8")
    with pytest.raises(ModelError, match=r"up_proj\.weight \(I8\)"):
        look(model)

    broken.edit_json(model / "config.json", quantization_config={"quant_method": "exl2", "bits": 4})
    with pytest.raises(ModelError, match=r"quantised \(exl2\), which is not run here"):
        look(model)

    broken.edit_json(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="needs the package gptqmodel"):
        look(model)


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        ({"type": "yarn", "factor": 4.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024}, 2048),
        ({"type": "linear", "factor": 2}, 4096),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256}, 2048),
        ({"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "default"}, 2048),
        (None, 2048),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_the_context_is_the_one_that_the_rotary_embedding_reaches(
    model: Path, key: str, scaling: object, context: int
) -> None:
    """Some ways of stretching have their factor in max_position_embeddings already, others have it on top."""
    broken.edit_json(model / "config.json", **{key: scaling})

    assert look(model, max_model_len=context).context == context
    with pytest.raises(ModelError, match=rf"--max-model-len {context + 1} .* its context is {context} tokens"):
        look(model, max_model_len=context + 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_position_embeddings": "2048"},
        {"max_position_embeddings": -1},
        {"rope_scaling": {"type": "linear", "factor": "two"}},
        {"rope_scaling": {"type": "yarn", "factor": float("inf")}},
    ],
)
def test_a_context_that_is_no_number_is_refused(model: Path, changes: dict[str, object]) -> None:
    """The file is named."""
    broken.edit_json(model / "config.json", **changes)

    with pytest.raises(ModelError, match=r"config\.json: "):
        look(model)


def test_directories_without_a_model_say_what_is_in_them(whole: Path, tmp_path: Path) -> None:
    """Nothing, a GGUF file, or a model one level down."""
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(ModelError, match="is empty"):
        look(place)

    (place / "model.Q4_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"did you mean .*place.model\.Q4_0\.gguf\?"):
        look(place)

    (place / "model.Q4_0.gguf").unlink()
    broken.copy(whole, place / "snapshots" / "abc")
    with pytest.raises(ModelError, match=r"did you mean .*snapshots.abc\?"):
        look(place)


def test_layers_that_are_missing_or_too_many_are_found_before_loading(model: Path) -> None:
    """Where a family's names are known; the rest is its loader's affair."""
    broken.edit_json(model / "config.json", num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"lacks 9 tensors .*model\.layers\.1\.input_layernorm\.weight.* and 4 more"):
        look(model)

    broken.edit_json(model / "config.json", num_hidden_layers=1)
    broken.add(model, "model.layers.1.mlp.up_proj.weight", (88, 32))
    with pytest.raises(ModelError, match=r"more layers than the 1 of its config\.json: model\.layers\.1\.mlp"):
        look(model)

    broken.edit_json(model / "config.json", num_hidden_layers=10**9)
    with pytest.raises(ModelError, match="says that the model has 1000000000 layers"):
        look(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_of_a_model_names_its_directory(model: Path, name: str) -> None:
    """Since that is what was meant."""
    with pytest.raises(ModelError, match=rf"name the directory that it lies in \({model}\)"):
        look(model / name)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("smolm2-135m", "smollm2-135m"),
        ("SmolLM2-135M", "smollm2-135m"),
        ("smollm2_135m", "smollm2-135m"),
        ("tiny-radom", "tiny-random"),
        ("tinyrandom:layers=1", "tiny-random"),
        ("minilm-l-6", "minilm-l6"),
    ],
)
def test_a_name_that_is_nearly_known_is_named(written: str, meant: str) -> None:
    """The nearest one."""
    with pytest.raises(ModelError, match=rf"did you mean {meant}\?"):
        look(written)


def test_a_path_that_is_nearly_there_is_named(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mistake at its end or further up; relative ones look like ids of a hub, too."""
    broken.copy(whole, tmp_path / "models" / "llama-small")
    (tmp_path / "models" / "llama-small.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)

    for written, meant in {
        str(tmp_path / "models" / "lama-small"): r"models.llama-small\?",
        str(tmp_path / "model" / "llama-small"): r"models\?",
        "./models/llama-smal.gguf": r"models.llama-small\.gguf\?",
        "models/lama-small": r"models.llama-small\?",
    }.items():
        with pytest.raises(ModelError, match=rf"did you mean .*{meant}"):
            look(written)


def test_a_repaired_model_passes_again(model: Path) -> None:
    """Nothing of the refusal is kept."""
    content = (model / broken.WEIGHTS).read_bytes()
    (model / broken.WEIGHTS).write_bytes(b"")
    with pytest.raises(ModelError):
        look(model)

    (model / broken.WEIGHTS).write_bytes(content)

    assert look(model).context == 2048


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
        {"a": [1, 2]},
        {},
        [1],
    ],
)
def test_a_header_that_makes_no_sense_is_refused(model: Path, header: object) -> None:
    """Whatever stands in it, nothing else escapes."""
    text = json.dumps(header).encode()
    (model / broken.WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))

    with pytest.raises(ModelError, match=r"model\.safetensors"):
        look(model)


STRANGE: list[object] = [
    None,
    True,
    -1,
    2**70,
    float("nan"),
    "",
    "x",
    [],
    [1],
    [None],
    {},
    {"content": 5},
    [[]],
    {"0": 1},
]
ENTRIES = {
    "config.json": [
        *("architectures", "model_type", "text_config", "max_position_embeddings", "rope_scaling", "rope_parameters"),
        *("vocab_size", "num_hidden_layers", "quantization_config", "eos_token_id"),
    ],
    "tokenizer_config.json": [
        *("bos_token", "eos_token", "added_tokens_decoder", "chat_template", "additional_special_tokens"),
        "extra_special_tokens",
    ],
    "generation_config.json": ["eos_token_id", "text_config"],
    "special_tokens_map.json": ["bos_token", "additional_special_tokens"],
    "added_tokens.json": ["<z>"],
    "sentence_bert_config.json": ["max_seq_length"],
    "tokenizer.json": ["model", "added_tokens", "decoder", "post_processor"],
}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_an_editor_saved_in_another_encoding_is_named(model: Path, encoding: str) -> None:
    """The library does not read it: that was an error of its own, after three engine processes."""
    path = model / "config.json"
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))

    with pytest.raises(ModelError, match=r"config\.json is not JSON .*: it was cut off or edited"):
        look(model)


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in ENTRIES.items() for name in names])
def test_whatever_stands_in_an_entry_the_words_are_ours(model: Path, file: str, name: str) -> None:
    """It passes, or is refused in a sentence; nothing else comes out of a file that somebody edited."""
    path = model / file
    before = path.read_bytes() if path.exists() else b"{}"
    if name == "chat_template":
        (model / "chat_template.jinja").unlink()  # else it would win

    for value in STRANGE:
        path.write_bytes(before)
        broken.edit_json(path, **{name: value})
        with contextlib.suppress(ModelError):
            look(model)
            load_tokenizer(model).encode("a text", is_raw=True)
