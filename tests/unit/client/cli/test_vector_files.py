"""Files of vectors: numpy reads the one, anybody the other, and there is never half of one."""

import json
import os
from array import array
from pathlib import Path

import numpy as np
import pytest

from zmqrt.client.cli.vector_files import npy_header, vector_file
from zmqrt.protocol.errors import ZmqrtError

VECTORS = [array("f", [0.1, -2.5]), array("f", [1e-30, 3.0]), array("f", [0.0, 1 / 3])]
TEXTS = ["a", "b\u2028", "c"]


def write(path: Path, stop_at: int | None = None) -> None:
    """Write the three of them, or fail before that one."""
    with vector_file(path, len(VECTORS)) as put:
        for at, (text, vector) in enumerate(zip(TEXTS, VECTORS, strict=True)):
            if at == stop_at:
                raise KeyError(at)
            put(text, vector)


def test_numpy_reads_what_was_written_without_it(tmp_path: Path) -> None:
    """To the last bit, and memory-mapped."""
    path = tmp_path / "out.npy"
    write(path)

    found = np.load(path, mmap_mode="r")
    assert (found.shape, found.dtype) == ((3, 2), np.dtype("<f4"))
    assert [list(row) for row in found] == [list(vector) for vector in VECTORS]


@pytest.mark.parametrize("columns", [1, 10, 384, 10**6])
def test_numbers_begin_where_they_can_be_mapped(columns: int) -> None:
    """At a multiple of 64 bytes, as numpy itself writes them."""
    assert len(npy_header(10**5, columns)) % 64 == 0


def test_lines_of_json_have_text_and_numbers(tmp_path: Path) -> None:
    """Each number says its 32 bits exactly."""
    path = tmp_path / "out.jsonl"
    write(path)

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["text"] for row in rows] == TEXTS
    assert [array("f", row["embedding"]) for row in rows] == VECTORS


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_a_file_that_could_not_be_written_whole_is_not_there(tmp_path: Path, suffix: str) -> None:
    """What stood in its place still does, and nothing beside it."""
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(KeyError):
        write(path, stop_at=2)

    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path: Path) -> None:
    """What it leads to is written."""
    link = tmp_path / "out.npy"
    try:
        link.symlink_to(tmp_path / "elsewhere.npy")
    except OSError:
        pytest.skip("this user may make no links")
    write(link)

    assert link.is_symlink()
    assert np.load(tmp_path / "elsewhere.npy").shape == (3, 2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_or_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """Whoever reads it would wait for ever; it is said before anything is asked."""
    pipe, folder = tmp_path / "pipe.jsonl", tmp_path / "folder.npy"
    os.mkfifo(pipe)
    folder.mkdir()

    for path in (pipe, folder):
        with pytest.raises(ZmqrtError, match="is no file"):
            write(path)
    assert sorted(tmp_path.iterdir()) == [folder, pipe]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """By the name that was given, not by that of the file beside it."""
    with pytest.raises(ZmqrtError, match=r"nowhere.out\.npy cannot be written: No such file or directory"):
        write(tmp_path / "nowhere" / "out.npy")
