"""Names of images: Docker's grammar, one form for each image, and what a list of patterns allows."""

from __future__ import annotations

import pytest

from llamaman.core.config_values import IMAGE
from llamaman.core.setting import read
from llamaman.core.settings_table import CORE_SETTINGS
from llamaman.errors import InvalidField
from llamaman.runtimes.docker.image_names import (
    check_pattern,
    default_image,
    is_allowed,
    looks_like_image,
    parse,
    same,
)

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
LLAMA = "ghcr.io/ggml-org/llama.cpp"
ALLOWED = next(setting for setting in CORE_SETTINGS if setting.name == "images.allowed")


@pytest.mark.parametrize(
    ("text", "canonical", "shown"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/library/busybox:1", "docker.io/library/busybox:1", "busybox:1"),
        ("me/llama:x", "docker.io/me/llama:x", "me/llama:x"),
        (f"{LLAMA}:server", f"{LLAMA}:server", f"{LLAMA}:server"),
        ("localhost/mine", "localhost/mine:latest", "localhost/mine:latest"),
        ("127.0.0.1:5000/mine:a.b-C_1", "127.0.0.1:5000/mine:a.b-C_1", "127.0.0.1:5000/mine:a.b-C_1"),
        ("host:5000/mine", "host:5000/mine:latest", "host:5000/mine:latest"),
        (f"{LLAMA}@{DIGEST}", f"{LLAMA}@{DIGEST}", f"{LLAMA}@{DIGEST}"),
        (f"{LLAMA}:server@{DIGEST}", f"{LLAMA}@{DIGEST}", f"{LLAMA}:server@{DIGEST}"),
        ("a__b/c-d--e.f", "docker.io/a__b/c-d--e.f:latest", "a__b/c-d--e.f:latest"),
    ],
)
def test_a_name_has_one_form_for_docker_and_one_for_people(text: str, canonical: str, shown: str) -> None:
    name = parse(text)
    assert (name.canonical, str(name)) == (canonical, shown)
    assert parse(str(name)) == name
    assert parse(canonical).canonical == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "@",
        "/x",
        "x/",
        "x//y",
        "X/y",
        "me/Llama:x",
        "me/llama:",
        "me/llama:.x",
        "me/llama:-x",
        "me/llama:" + "t" * 129,
        "me/llama:x:y",
        "me/llama@sha256:abc",
        "me/llama@md5:" + "a" * 64,
        f"me/llama@{DIGEST}@{DIGEST}",
        "me/llama:*",
        "me/ llama:x",
        "me/llama:x\n",
        "me/../llama:x",
        "http://me/llama:x",
        "ghcr.io:port/x:y",
        "-x.io/y:z",
        DIGEST,
        "a" * 64,
        "a/" * 127 + "aa:x",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".{10}"):
        parse(text)
    assert not is_allowed(text, ["me/llama:*", "*:*"])


def test_no_name_becomes_an_image_id_for_the_daemon() -> None:
    for text in ("abcdef123456", "sha256", "sha256:abc"):
        assert parse(text).canonical.startswith("docker.io/library/")


def test_plain_words_are_names_of_engines_and_not_of_images() -> None:
    assert not looks_like_image("llama-server")
    assert not looks_like_image("embedded")
    assert looks_like_image("me/llama")
    assert looks_like_image("llama:x")


def test_two_spellings_of_one_image_are_the_same() -> None:
    assert same("busybox", "docker.io/library/busybox:latest")
    assert not same("busybox", "busybox:1")
    assert same("no name!", "no name!")


# --- the list of allowed images ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "pattern"),
    [
        (f"{LLAMA}:server", f"{LLAMA}:*"),
        (f"{LLAMA}:server-cuda-b11434", f"{LLAMA}:server-cuda-b*"),
        (f"{LLAMA}:server", f"{LLAMA}:server"),
        (f"{LLAMA}:server1", f"{LLAMA}:server?"),
        (f"{LLAMA}:Server", f"{LLAMA}:S*"),
        (f"{LLAMA}@{DIGEST}", f"{LLAMA}@{DIGEST}"),
        (f"{LLAMA}:server@{DIGEST}", f"{LLAMA}@{DIGEST}"),
        (f"{LLAMA}@{DIGEST}", f"{LLAMA}:*"),
        ("docker.io/library/busybox", "busybox:latest"),
        ("busybox", "docker.io/library/busybox:*"),
    ],
)
def test_a_pattern_allows(ref: str, pattern: str) -> None:
    check_pattern(pattern)
    assert is_allowed(ref, ["something/else:*", pattern])


@pytest.mark.parametrize(
    ("ref", "pattern"),
    [
        (f"{LLAMA}:full", f"{LLAMA}:server*"),
        (f"{LLAMA}-evil:server", f"{LLAMA}:*"),
        (f"evil.io/{LLAMA}:server", f"{LLAMA}:*"),
        ("ghcr.io/ggml-org/llama:server", f"{LLAMA}:*"),
        ("ghcr.io/ggml-org/llama.cpp/sub:server", f"{LLAMA}:*"),
        ("ghcrxio/ggml-org/llama.cpp:server", f"{LLAMA}:*"),
        (f"{LLAMA}:SERVER", f"{LLAMA}:server"),
        (f"{LLAMA}@{OTHER}", f"{LLAMA}@{DIGEST}"),
        (f"{LLAMA}:server", f"{LLAMA}@{DIGEST}"),
        (f"{LLAMA}:server@{OTHER}", f"{LLAMA}:server"),
        (f"{LLAMA}:server@{OTHER}", f"{LLAMA}:server*"),
        (f"{LLAMA}:server]", f"{LLAMA}:*"),
        ("ghcr.io/evil/llama.cpp:server", "ghcr.io/*/llama.cpp:*"),
        ("evil/llama:x", "*"),
        ("evil/llama:x", "*:*"),
        ("evil/llama:latest", "evil/llama"),
        ("evil/llama:a", "evil/llama:[a-z]"),
    ],
)
def test_nothing_else_is_allowed(ref: str, pattern: str) -> None:
    assert not is_allowed(ref, [pattern])


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        (LLAMA, r"write ghcr\.io/ggml-org/llama\.cpp:\* for every tag"),
        ("*", "tag is missing"),
        ("*:*", "lower-case"),
        ("ghcr.io/*/x:*", "lower-case"),
        (f"{LLAMA}:server@{DIGEST}", "not both"),
        (f"{LLAMA}@sha256:abc", "64 hexadecimal"),
        (f"{LLAMA}:[a-z]", "wildcards"),
        ("", "tag is missing"),
    ],
)
def test_a_pattern_of_another_form_is_refused_with_what_to_write(pattern: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        check_pattern(pattern)


def setting_takes(pattern: str) -> bool:
    try:
        read(ALLOWED, [pattern])
    except InvalidField:
        return False
    return True


@pytest.mark.parametrize(
    "pattern",
    [
        *(f"{LLAMA}:*", f"{LLAMA}:server-?", "busybox:latest", "127.0.0.1:5000/x:*", f"{LLAMA}@{DIGEST}"),
        *("a__b/c-d--e.f:*", "localhost/x:y"),
        *(LLAMA, "*", "*:*", "", "ghcr.io/*/x:*", f"{LLAMA}:[a]", f"{LLAMA}:x@{DIGEST}", f"{LLAMA}@sha256:a"),
        *("a/" * 500 + "a", "a-" * 2000, "x:y\n", "x:y z"),
    ],
)
def test_the_setting_takes_what_can_be_read_here(pattern: str) -> None:
    try:
        check_pattern(pattern)
    except ValueError:
        assert not setting_takes(pattern)
    else:
        assert setting_takes(pattern)


# --- which image launches use ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "vendor", "image"),
    [
        (None, None, f"{LLAMA}:server"),
        (None, "cuda", f"{LLAMA}:server-cuda"),
        (None, "rocm", f"{LLAMA}:server-rocm"),
        (None, "intel", f"{LLAMA}:server-intel"),
        ("mine:1", "cuda", "mine:1"),
    ],
)
def test_the_default_image_follows_llama_image_then_the_gpu(
    given: str | None, vendor: str | None, image: str
) -> None:
    assert default_image(given, vendor) == image
    assert IMAGE.parse(image) == image
