"""Extra arguments: an allow-list, read exactly as the engine reads them."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from llamaman.core.extra_args import parse_extra_args
from llamaman.core.extra_args_table import FLAGS, Value
from llamaman.errors import InvalidField

ENGINE = os.environ.get("LLAMA_SERVER_BIN", "")
needs_engine = pytest.mark.skipif(not ENGINE, reason="LLAMA_SERVER_BIN is not set")


def no_file(text: str) -> Path | None:
    return None


def parse(text: str, *, unlisted: bool = False, file: str = "") -> tuple[str, ...]:
    return parse_extra_args(
        text,
        allow_unlisted=unlisted,
        is_model_file=lambda given: Path("/models/a.gguf") if given == file else None,
    )


def refused(text: str, *, unlisted: bool = False) -> str:
    with pytest.raises(InvalidField) as caught:
        parse(text, unlisted=unlisted)
    assert caught.value.field == "extra_args"
    return caught.value.message


SAMPLES = re.findall(
    r"\S+",
    "none 1 on f16 0-1 0.5 auto chatml distribute linear deepseek greedy ngram-mod mean low top_k CPU "
    "1-1 a=CPU a=int:1 {} x",
)


def sample(value: Value) -> str:
    """Some text that a value takes."""
    for text in SAMPLES:
        try:
            return value.check(text)
        except ValueError:
            continue
    raise AssertionError(f"no sample for {value.allowed}")


@cache
def engine_spellings() -> tuple[str, ...]:
    """Every spelling in the engine's own --help."""
    done = subprocess.run([ENGINE, "--help"], capture_output=True, text=True, timeout=30, check=True)
    spellings = []
    for line in done.stdout.splitlines():
        rest = line if not line.startswith("-----") else ""
        while match := re.match(r"\s{0,8}(--?[A-Za-z][\w.-]*)(,?)", rest):
            spellings.append(match[1])
            rest = rest[match.end() :] if match[2] else ""
    return tuple(spellings)


class TestFlashAttention:
    @pytest.mark.parametrize("flag", ["--flash-attn", "-fa", "--flash_attn"])
    def test_bare_means_on(self, flag: str) -> None:
        assert parse(flag)[1] == "on"
        assert parse(f"{flag} --no-warmup")[1:] == ("on", "--no-warmup")

    def test_a_value_is_kept(self) -> None:
        assert parse("-fa off") == ("-fa", "off")

    def test_another_value_is_refused(self) -> None:
        assert "on, off, auto" in refused("-fa maybe")


class TestClasses:
    def test_safe_flags_pass_with_their_values(self) -> None:
        text = "--temp 0.2 --no-warmup -s -1 --reverse-prompt 'a b' --chat_template_kwargs '{\"a\":1}'"
        assert parse(text) == (
            *("--temp", "0.2", "--no-warmup", "-s", "-1", "--reverse-prompt", "a b"),
            *("--chat-template-kwargs", '{"a":1}'),
        )

    @pytest.mark.parametrize("flag", ["--host", "-m", "--api_key", "--api-key", "--port", "-a", "--no-ui"])
    def test_owned_flags_are_refused(self, flag: str) -> None:
        assert "LlamaMan sets this" in refused(f"{flag} x")
        refused(f"{flag} x", unlisted=True)

    def test_option_flags_name_their_field(self) -> None:
        assert "use the field ctx_size" in refused("-c 100")
        assert "use the field load_mode" in refused("--no-mmap")

    @pytest.mark.parametrize(
        "flag", ["--rpc", "--tools", "-jf", "--log-prompts-dir", "-hf", "--fim-qwen-7b-spec"]
    )
    def test_refused_flags_stay_refused_whatever_the_setting(self, flag: str) -> None:
        assert "refused flag" in refused(f"{flag} x")
        assert "refused flag" in refused(f"{flag} x", unlisted=True)

    def test_an_unlisted_flag_needs_the_setting(self) -> None:
        assert "launch.allow_unlisted_args" in refused("--brand-new 3")
        assert parse("--brand_new 3 -4 --top-k 5", unlisted=True) == (
            "--brand-new",
            "3",
            "-4",
            "--top-k",
            "5",
        )

    def test_no_flag_hides_behind_an_unlisted_one(self) -> None:
        assert "owned" in refused("--brand-new --host 0.0.0.0", unlisted=True)


class TestPaths:
    def test_a_scanned_file_is_replaced_by_its_path(self) -> None:
        assert parse("--lora my.gguf", file="my.gguf") == ("--lora", "/models/a.gguf")
        assert parse("--lora-scaled my.gguf:0.5", file="my.gguf") == ("--lora-scaled", "/models/a.gguf:0.5")
        assert parse("--lora x,x", file="x") == ("--lora", "/models/a.gguf,/models/a.gguf")

    @pytest.mark.parametrize(
        "text", ["--lora /etc/passwd", "-md ''", "--lora-scaled my.gguf", "--lora --host"]
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        refused(text)

    def test_a_file_name_that_the_engine_would_split_is_refused(self) -> None:
        with pytest.raises(InvalidField):
            parse_extra_args(
                "--lora x", allow_unlisted=False, is_model_file=lambda _: Path("/models/a,b.gguf")
            )


class TestReading:
    @pytest.mark.parametrize(
        "text",
        [
            "--temp",  # no value
            "--temp nan",
            "--temp inf",
            "--temp --host",  # a value never looks like a flag
            "--top-k 1.5",
            "--reverse-prompt --host",
            "--temp=0.5",
            "0.5",
            "--no-warmup 1",
            "- x",
            "--",
            "'unbalanced",
            "--temp 0.5\n--host x",
            "--reverse-prompt \x1b[31m",
            "--reverse-prompt \ud800",
            "--chat-template-kwargs '[1]'",
            "--chat-template-kwargs '" + "[" * 3000 + "'",
            "--reverse-prompt " + "x" * 600,
            "--no-warmup " * 65,
            "--reverse-prompt " + "é" * 2100,
        ],
    )
    def test_nonsense_is_refused(self, text: str) -> None:
        refused(text)
        refused(text, unlisted=True)

    def test_an_error_does_not_repeat_a_long_value(self) -> None:
        assert len(refused("--numa " + "x" * 4000)) < 250


def test_every_listed_spelling_is_of_one_class_and_reads_its_own_values() -> None:
    for name, flag in FLAGS.items():
        values = (
            ["/m" for _ in flag.values] if flag.kind == "path" else [sample(value) for value in flag.values]
        )
        if flag.kind == "safe":
            text = " ".join((name, *(f"'{value}'" for value in values)))
            assert parse(text) == (name, *values)
        elif name not in ("-fa", "--flash-attn"):
            refused(" ".join((name, *values)))


@pytest.mark.real
@needs_engine
class TestAgainstTheEngine:
    def test_nothing_outside_safe_path_and_flash_attention_gets_through(self) -> None:
        spellings = engine_spellings()
        assert len(spellings) > 200
        unlisted = []
        for spelling in spellings:
            dashes = spelling[: len(spelling) - len(spelling.lstrip("-"))]
            body = spelling.lstrip("-")
            for form in {spelling, dashes + body.replace("-", "_"), dashes + body.replace("-", "_", 1)}:
                for tail in ("", " 1", " on", " a b", " /etc/passwd", " none", "=1"):
                    try:
                        result = parse_extra_args(form + tail, allow_unlisted=False, is_model_file=no_file)
                    except InvalidField:
                        continue
                    assert FLAGS[result[0]].kind == "safe" or result[0] in ("-fa", "--flash-attn"), form
            if spelling not in FLAGS:
                unlisted.append(spelling)
        # a newer engine may know more flags; they are refused, and this line says which they are
        print("refused as unlisted:", *unlisted)
        for spelling in unlisted:
            assert "unlisted" in refused(spelling)

    @pytest.mark.parametrize("name", sorted(name for name, flag in FLAGS.items() if flag.kind == "safe"))
    def test_the_engine_takes_exactly_the_values_of_the_table(self, name: str) -> None:
        if name not in engine_spellings():
            return  # a build from before or after this flag; the table is not about it
        values = [sample(value) for value in FLAGS[name].values]
        done = subprocess.run(
            [ENGINE, name, *values, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
        # --version is only reached as a flag when the words before it were read as the table says
        assert done.returncode == 0, done.stderr
        assert "version:" in done.stdout + done.stderr
