"""The header reader: facts from good files, a reason from bad ones, within bounds from all."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from llamaman.library.gguf import BrokenHeader, Header, NotAHeader, header_of
from llamaman.library.gguf_worker import (
    MAX_ELEMENTS,
    MAX_KEYS,
    MAX_LAYERS,
    MAX_STRING_BYTES,
    MAX_TENSORS,
    Broken,
    read_facts,
    to_json,
)
from llamaman.testing import write_tiny_model

U32, U64, STRING, ARRAY = 4, 10, 8, 9


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def head(keys: int, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def array(element: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", element, count) + data


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def read_header(path: Path) -> Header | BrokenHeader:
    """What the reader makes of a file, without the process around it."""
    try:
        facts = read_facts(os.fspath(path))
    except Broken as error:
        facts = {"broken": str(error)}
    return header_of(json.loads(to_json(facts)))


def good(path: Path) -> Header:
    header = read_header(path)
    assert isinstance(header, Header), header
    return header


class TestGoodFiles:
    def test_a_real_model(self, tmp_path: Path) -> None:
        path = write_tiny_model(tmp_path / "tiny.gguf", context_length=512, name="Tiny")
        header = good(path)
        assert (header.architecture, header.name, header.context_length) == ("llama", "Tiny", 512)
        assert (header.block_count, header.embedding_length) == (2, 64)
        assert header.vocab_size is not None
        assert header.vocab_size >= 256
        assert header.has_chat_template
        assert header.nextn_layers == 0
        assert header.pooling_type is None
        assert header.tensors > 0

    def test_marks_of_special_models(self, tmp_path: Path) -> None:
        mtp = write_tiny_model(tmp_path / "a.gguf", metadata={"llama.nextn_predict_layers": 1})
        assert good(mtp).nextn_layers == 1
        assert good(write_tiny_model(tmp_path / "b.gguf", embedding=True)).pooling_type == 1

    def test_the_order_of_keys_does_not_matter(self, tmp_path: Path) -> None:
        tokens = array(STRING, 50_000, text("tok") * 50_000)
        data = head(4) + pair("llama.context_length", U32, struct.pack("<I", 77))
        data += pair("tokenizer.ggml.tokens", ARRAY, tokens) + pair(
            "general.architecture", STRING, text("llama")
        )
        data += pair("general.file_type", U32, struct.pack("<I", 15 | 1024))
        header = good(written(tmp_path / "x.gguf", data))
        assert (header.context_length, header.vocab_size, header.quant) == (77, 50_000, "Q4_K_M")

    def test_values_per_layer_are_not_taken_for_one_value(self, tmp_path: Path) -> None:
        data = head(2) + pair("general.architecture", STRING, text("a"))
        data += pair("a.attention.head_count", ARRAY, array(U32, 2, struct.pack("<II", 4, 8)))
        header = good(written(tmp_path / "x.gguf", data))
        assert header.head_count is None
        assert header.numbers["attention.head_count"] == (4, 8)

    def test_lists_are_kept_up_to_a_length_and_a_number(self, tmp_path: Path) -> None:
        def lists(count: int, layers: int) -> Header:
            data = head(count + 1)
            for index in range(count):
                values = array(U32, layers, struct.pack("<I", 7) * layers)
                data += pair(f"a{index}.attention.head_count", ARRAY, values)
            data += pair("general.architecture", STRING, text(f"a{count - 1}"))
            return good(written(tmp_path / "x.gguf", data))

        assert lists(1, MAX_LAYERS).numbers["attention.head_count"] == (7,) * MAX_LAYERS
        assert lists(1, MAX_LAYERS + 1).numbers == {}
        assert lists(4000, 1).numbers == {}  # kept of the first ones alone, which are of no architecture here

    def test_bytes_of_layers_for_multi_token_prediction_are_told_apart(self, tmp_path: Path) -> None:
        tensors = [("blk.0.x.weight", 0), ("blk.2.nextn.weight", 512), ("blk.1.x.weight", 64), ("y", 1024)]
        data = head(3, len(tensors)) + pair("general.architecture", STRING, text("a"))
        data += pair("a.block_count", U32, struct.pack("<I", 3))
        data += pair("a.nextn_predict_layers", U32, struct.pack("<I", 1))
        for name, offset in tensors:
            data += text(name) + struct.pack("<IQIQ", 1, 8, 0, offset)
        header = good(written(tmp_path / "x.gguf", data + bytes(2048)))
        assert header.nextn_bytes == 512

    def test_names_hold_no_control_characters(self, tmp_path: Path) -> None:
        data = head(1) + pair("general.name", STRING, text("a\x1b[31m\nb"))
        assert good(written(tmp_path / "x.gguf", data)).name == "a[31mb"


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ends within"),
    "not gguf": (b"hello world, this is text", "not a GGUF"),
    "old version": (head(0, version=1), "version"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "cut head": (b"GGUF\x03\x00", "ends within"),
    "too many keys": (head(MAX_KEYS + 1), "keys"),
    "too many tensors": (head(0, MAX_TENSORS + 1), "tensors"),
    "endless key": (head(1) + struct.pack("<Q", 1 << 62), "a key is longer"),
    "endless string": (
        head(1) + pair("k", STRING, struct.pack("<Q", MAX_STRING_BYTES + 1)),
        "a string is longer",
    ),
    "long string that is not there": (
        head(1) + pair("k", STRING, struct.pack("<Q", MAX_STRING_BYTES)),
        "ends within",
    ),
    "endless array": (head(1) + pair("k", ARRAY, array(U32, MAX_ELEMENTS + 1)), "an array has more"),
    "array that is not there": (head(1) + pair("k", ARRAY, array(U64, MAX_ELEMENTS)), "ends within"),
    "endless string in an array": (
        head(1) + pair("k", ARRAY, array(STRING, 1, struct.pack("<Q", 1 << 63))),
        "a string is longer",
    ),
    "strings that are not there": (head(1) + pair("k", ARRAY, array(STRING, MAX_ELEMENTS)), "ends within"),
    "nested array": (head(1) + pair("k", ARRAY, array(ARRAY, 1, array(U32, 1, b"\0" * 4))), "holds arrays"),
    "unknown type": (head(1) + pair("k", 99, b""), "unknown type"),
    "unknown element type": (head(1) + pair("k", ARRAY, array(99, 1)), "array has an unknown type"),
    "cut in a value": (head(2) + pair("a", U32, b"\0\0\0\0") + text("b"), "ends within"),
}


@pytest.mark.parametrize(("data", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_gives_its_reason(tmp_path: Path, data: bytes, words: str) -> None:
    header = read_header(written(tmp_path / "x.gguf", data))
    assert isinstance(header, BrokenHeader)
    assert words in header.reason


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_real_file_cut_anywhere_in_its_header_is_broken(tmp_path: Path, cut: int) -> None:
    data = write_tiny_model(tmp_path / "t.gguf").read_bytes()
    assert isinstance(read_header(written(tmp_path / "x.gguf", data[:cut])), BrokenHeader)


class TestOddFiles:
    def test_a_fifo_does_not_block(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.gguf")
        assert isinstance(read_header(tmp_path / "x.gguf"), BrokenHeader)

    def test_devices_folders_and_missing_files_are_broken(self, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").symlink_to("/dev/zero")
        (tmp_path / "d.gguf").mkdir()
        for name in ("x.gguf", "d.gguf", "missing.gguf", "nul\0.gguf"):
            assert isinstance(read_header(tmp_path / name), BrokenHeader)

    def test_a_link_to_another_kind_of_file_shows_nothing_of_it(self, tmp_path: Path) -> None:
        secret = written(tmp_path / "secret", b"root:hunter2:0:0")
        (tmp_path / "x.gguf").symlink_to(secret)
        header = read_header(tmp_path / "x.gguf")
        assert isinstance(header, BrokenHeader)
        assert "hunter2" not in header.reason


def test_the_largest_allowed_file_stays_within_time_and_memory(tmp_path: Path) -> None:
    with (tmp_path / "x.gguf").open("wb") as file:
        file.write(head(60))
        for index in range(60):
            file.write(pair(f"k{index}", ARRAY, array(STRING, MAX_ELEMENTS // 2)))
            if index < 3:
                file.write(struct.pack("<Q", 0) * (MAX_ELEMENTS // 2))
            else:
                file.seek(8 * (MAX_ELEMENTS // 2), os.SEEK_CUR)
        file.truncate()
    script = (
        "import sys, resource, time; from llamaman.library.gguf_worker import Broken, read_facts\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; start = time.thread_time()\n"
        "try: read_facts(sys.argv[1]); kind = 'Header'\n"
        "except Broken: kind = 'BrokenHeader'\n"
        "spent = time.thread_time() - start\n"
        "print(kind, spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.gguf")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    kind, spent, grown = done.stdout.split()
    assert kind == "BrokenHeader"
    assert float(spent) < 2.0
    assert int(grown) < 20 * 1024


def test_a_file_that_shrinks_while_it_is_read_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(
        tmp_path / "x.gguf", head(2) + pair("k", ARRAY, array(STRING, 200_000, text("token") * 200_000))
    )
    real = os.pread

    def shrinking(descriptor: int, size: int, offset: int) -> bytes:
        os.truncate(path, 300_000)
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", shrinking)
    assert isinstance(read_header(path), BrokenHeader)


def test_reading_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", b"x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        read_header(path)
    assert len(os.listdir("/proc/self/fd")) == before


RUBBISH: dict[str, object] = {
    "no mapping": [],
    "nothing": {},
    "a count that is text": {
        "general": {},
        "numbers": {},
        "tensors": "9",
        "header_bytes": 1,
        "nextn_bytes": 0,
    },
    "a negative count": {"general": {}, "numbers": {}, "tensors": -1, "header_bytes": 1, "nextn_bytes": 0},
    "an unknown key": {"general": {}, "numbers": {"x": 1}, "tensors": 1, "header_bytes": 1, "nextn_bytes": 0},
    "too many layers": {
        "general": {},
        "numbers": {"attention.head_count": [1] * (MAX_LAYERS + 1)},
        "tensors": 1,
        "header_bytes": 1,
        "nextn_bytes": 0,
    },
}


@pytest.mark.parametrize("answer", RUBBISH.values(), ids=RUBBISH.keys())
def test_an_answer_of_another_shape_is_no_header(answer: object) -> None:
    with pytest.raises(NotAHeader):
        header_of(answer)


def test_a_reason_cannot_smuggle_control_characters_or_a_novel() -> None:
    header = header_of({"broken": "\x1b[2J" + "x" * 5000})
    assert isinstance(header, BrokenHeader)
    assert header.reason.isprintable()
    assert len(header.reason) <= 200


def test_what_the_worker_writes_is_json() -> None:
    value = {"a": [1, True, None, 'quo"te\\ \n\x00 \x7f é 😀'], "b": {"c": -5}}
    assert json.loads(to_json(value)) == value
