"""The header reader: facts from good files, a reason from bad ones, within bounds from all."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamaman.library import gguf_worker, header_reader
from llamaman.library.gguf import BrokenHeader, Header, NotAHeader, header_of
from llamaman.library.gguf_worker import (
    MAX_ELEMENTS,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_LAYERS,
    MAX_METADATA_BYTES,
    MAX_STRING_BYTES,
    MAX_TEMPLATE_BYTES,
    MAX_TENSORS,
    MAX_TEXT_BYTES,
    NUMBERS,
    Broken,
    read_facts,
    to_json,
)
from llamaman.testing import write_tiny_model

U32, F32, U64, F64, STRING, ARRAY = 4, 6, 10, 12, 8, 9


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


def tensor(name: str | bytes, *shape: int, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)


class TestMetadata:
    def test_a_real_model_tells_all_its_keys(self, tmp_path: Path) -> None:
        import gguf

        path = write_tiny_model(tmp_path / "tiny.gguf", chat_template="{{ 'é' }}", metadata={"x.flag": True})
        header = good(path)
        assert header.template == "{{ 'é' }}"
        assert header.metadata["general.architecture"] == "llama"
        assert header.metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-5
        assert header.metadata["x.flag"] is True
        assert header.metadata["tokenizer.ggml.tokens"] is None
        fields = set(gguf.GGUFReader(path).fields)
        assert header.metadata.keys() == {n for n in fields if n[:5] != "GGUF."} - {"tokenizer.chat_template"}
        assert header.parameters == sum(int(t.n_elements) for t in gguf.GGUFReader(path).tensors)

    @pytest.mark.parametrize("meant", [1e-5, 0.1, 1.0, 3.4028235e38, -2.5, 10000.0, 0.33333334])
    def test_a_float_of_32_bits_is_told_as_it_was_meant(self, tmp_path: Path, meant: float) -> None:
        data = head(1) + pair("f", F32, struct.pack("<f", meant))
        assert good(written(tmp_path / "x.gguf", data)).metadata["f"] == meant

    @pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
    def test_what_json_has_no_number_for_is_null(self, tmp_path: Path, value: str) -> None:
        data = head(2) + pair("d", F64, struct.pack("<d", float(value)))
        data += pair("f", F32, struct.pack("<f", float(value)))
        assert good(written(tmp_path / "x.gguf", data)).metadata == {"d": None, "f": None}

    def test_a_long_text_is_left_out(self, tmp_path: Path) -> None:
        data = head(2) + pair("fits", STRING, text("x" * MAX_TEXT_BYTES))
        data += pair("long", STRING, text("x" * (MAX_TEXT_BYTES + 1)))
        metadata = good(written(tmp_path / "x.gguf", data)).metadata
        assert metadata == {"fits": "x" * MAX_TEXT_BYTES, "long": None}

    def test_rubbish_crowds_out_metadata_but_no_facts_and_no_template(self, tmp_path: Path) -> None:
        rubbish = [pair(f"junk{n}", STRING, text("\x01" * 1000)) for n in range(4000)]
        data = head(4003) + b"".join(rubbish) + pair("general.architecture", STRING, text("llama"))
        data += pair("llama.context_length", U32, struct.pack("<I", 77))
        data += pair("tokenizer.chat_template", STRING, text("{{ x }}"))
        header = good(written(tmp_path / "x.gguf", data))
        assert (header.architecture, header.context_length, header.template) == ("llama", 77, "{{ x }}")
        assert 10 < len(header.metadata) < 20
        assert header.text_size <= MAX_METADATA_BYTES + MAX_TEMPLATE_BYTES

    @pytest.mark.parametrize("template", ["x" * MAX_TEMPLATE_BYTES, "\x01" * (MAX_TEMPLATE_BYTES // 4)])
    def test_a_template_beyond_the_bound_is_known_to_be_there(self, tmp_path: Path, template: str) -> None:
        data = head(1) + pair("tokenizer.chat_template", STRING, text(template))
        header = good(written(tmp_path / "x.gguf", data))
        assert (header.has_chat_template, header.template) == (True, None)

    def test_bytes_that_are_no_text_are_replaced(self, tmp_path: Path) -> None:
        data = head(1) + pair(b"k\xff", STRING, text(b"\xed\xa0\x80v\0"))
        assert good(written(tmp_path / "x.gguf", data)).metadata == {"k\ufffd": "\ufffd\ufffd\ufffdv\0"}

    def test_the_longest_answer_is_one_that_is_read(self, tmp_path: Path) -> None:
        """Lists with one number per layer, general texts, metadata and a template, each as long as it may be."""
        most = struct.pack("<Q", (1 << 64) - 1) * MAX_LAYERS
        parts = [pair("general.architecture", STRING, text("\x01" * 950))]
        parts += [pair("\x01" * 950 + f".{n}", ARRAY, array(U64, MAX_LAYERS, most)) for n in NUMBERS]
        parts += [pair(f"general.{n}", STRING, text("\x01" * 1024)) for n in ("name", "size_label", "type")]
        parts += [pair(f"junk{n}", STRING, text("x" * 1000)) for n in range(200)]
        parts.append(pair("tokenizer.chat_template", STRING, text("x" * (MAX_TEMPLATE_BYTES - 2))))
        path = written(tmp_path / "x.gguf", head(len(parts)) + b"".join(parts))
        answer = to_json(read_facts(os.fspath(path)))
        assert (
            700_000 < len(answer) < header_reader._LONGEST_ANSWER
        )  # the one bound that the answer must keep


class TestTensors:
    def test_parameters_are_the_elements_of_all_tensors(self, tmp_path: Path) -> None:
        tensors = [tensor("a", 3, 5), tensor("b" * MAX_KEY_BYTES, 7), tensor("c"), tensor("d", *[2] * 8)]
        header = good(written(tmp_path / "x.gguf", head(0, 4) + b"".join(tensors)))
        assert (header.tensors, header.parameters) == (4, 15 + 7 + 1 + 256)

    def test_a_table_longer_than_what_is_read_at_once_is_read_whole(self, tmp_path: Path) -> None:
        tensors = [tensor("x" * (n % 900), n) for n in range(3000)]
        header = good(written(tmp_path / "x.gguf", head(0, 3000) + b"".join(tensors)))
        assert header.parameters == sum(range(3000))

    def test_what_nobody_could_have_is_no_count(self, tmp_path: Path) -> None:
        data = head(0, 1) + tensor("a", *[(1 << 64) - 1] * 8)
        header = good(written(tmp_path / "x.gguf", data))
        assert (header.tensors, header.parameters) == (1, None)


def vocabulary(path: Path, tokens: list[str]) -> Header:
    listed = array(STRING, len(tokens), b"".join(map(text, tokens)))
    return good(written(path, head(1) + pair("tokenizer.ggml.tokens", ARRAY, listed)))


class TestFillIn:
    @pytest.mark.parametrize(
        "token",
        ["<|fim_prefix|>", "<fim-prefix>", "<\uff5cfim\u2581begin\uff5c>", "\u2581<PRE>", "<|code_prefix|>"],
    )
    def test_a_token_for_it_is_found_at_either_end_of_a_vocabulary(self, tmp_path: Path, token: str) -> None:
        others = ["<fim_", "x<fim_prefix>", "fim", "<PRE", "token"] * 4000
        assert vocabulary(tmp_path / "x.gguf", [token, *others]).fills_in
        assert vocabulary(tmp_path / "x.gguf", [*others, token]).fills_in
        assert not vocabulary(tmp_path / "x.gguf", others).fills_in

    @pytest.mark.parametrize("shift", range(0, 34, 2))
    def test_a_token_that_is_read_in_two_parts_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int
    ) -> None:
        monkeypatch.setattr(gguf_worker, "_CHUNK", 400)
        assert vocabulary(tmp_path / "x.gguf", ["x" * (296 + shift), "<|fim_prefix|>", "y" * 900]).fills_in

    def test_a_flood_of_look_alikes_costs_little(self, tmp_path: Path) -> None:
        flood = ["fim" * 100_000] * 20
        assert not vocabulary(tmp_path / "x.gguf", [*flood, "<|fim_prefix|>"]).fills_in  # it gave up before


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
    "too many dimensions": (head(0, 1) + tensor("a", *[1] * 9), "dimensions"),
    "endless name of a tensor": (
        head(0, 1) + struct.pack("<Q", MAX_KEY_BYTES + 1),
        "a tensor's name is longer",
    ),
    "tensors that are not there": (head(0, 2) + tensor("a", 1), "ends within"),
    "cut in a tensor": (head(0, 1) + tensor("a", 1)[:-1], "ends within"),
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


PLAIN: dict[str, Any] = {
    "general": {},
    "numbers": {},
    "metadata": {},
    "tensors": 1,
    "header_bytes": 1,
    "nextn_bytes": 0,
}
LIES: dict[str, dict[str, Any]] = {
    "no metadata": {"metadata": None},
    "a list": {"metadata": {"k": [1]}},
    "an object": {"metadata": {"k": {}}},
    "no number": {"metadata": {"k": float("nan")}},
    "infinity": {"metadata": {"k": float("inf")}},
    "a number beyond 64 bits": {"metadata": {"k": 1 << 64}},
    "half a character": {"metadata": {"k": "\ud800"}},
    "half a character in a key": {"metadata": {"\ud800": 1}},
    "too many keys": {"metadata": dict.fromkeys(map(str, range(MAX_KEYS + 1)))},
    "too much text": {"metadata": {"k": "x" * MAX_METADATA_BYTES}},
    "a long template": {"template": "x" * (MAX_TEMPLATE_BYTES + 1)},
    "half a template": {"template": "\udfff"},
    "parameters beyond belief": {"parameters": (1 << 48) + 1},
    "parameters that are text": {"parameters": "7B"},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_metadata_of_another_shape_is_no_header(lie: dict[str, Any]) -> None:
    assert isinstance(header_of(PLAIN), Header)
    with pytest.raises(NotAHeader):
        header_of(PLAIN | lie)


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
    value = {"f": [0.1, -1e300, 1e-05], "a": [1, True, None, 'quo"te\\ \n\x00 \x7f é 😀'], "b": {"c": -5}}
    assert json.loads(to_json(value)) == value
