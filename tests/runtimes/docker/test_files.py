"""Which files a container sees, tried on a real file system."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from llamaman.errors import LaunchError
from llamaman.records import Engine, LaunchPlan, Mount
from llamaman.runtimes.docker.files import EngineFiles, engine_files, model_target


def plan(model: Path, *flags: str) -> LaunchPlan:
    return LaunchPlan(
        instance_id="i1",
        node="n",
        install="s",
        generation=1,
        engine=Engine("server", "image", "x:y"),
        model_path=model,
        alias="tiny",
        options={},
        flags=flags,
        env={},
        host="127.0.0.1",
        port=0,
        log_path=Path("/nowhere"),
        config_hash="",
        api_key="k",
    )


def make(path: Path, text: str = "GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def seen(files: EngineFiles) -> dict[str, str]:
    return {file.target: str(file.source) for file in files.files}


def test_a_model_is_mounted_alone_and_read_only(tmp_path: Path) -> None:
    model = make(tmp_path / "a" / "tiny.gguf")
    make(tmp_path / "a" / "other.gguf")
    files = engine_files(plan(model))
    assert files.mounts(lambda path: f"/host{path}") == (Mount(f"/host{model}", "/models/tiny.gguf", True),)
    assert files.statuses == {model: model.stat()}
    assert model_target(plan(model)) == "/models/tiny.gguf"


def test_all_parts_of_a_model_lie_side_by_side(tmp_path: Path) -> None:
    parts = [make(tmp_path / f"big-{number:05d}-of-00003.gguf") for number in (1, 2, 3)]
    assert seen(engine_files(plan(parts[0]))) == {f"/models/{part.name}": str(part) for part in parts}


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = make(tmp_path / "big-00001-of-00002.gguf")
    with pytest.raises(
        LaunchError, match=r"part 2 of 2 of the model, 'big-00002-of-00002.gguf' cannot be found"
    ):
        engine_files(plan(first))


def test_a_link_keeps_its_name_and_its_file_is_mounted(tmp_path: Path) -> None:
    blob = make(tmp_path / "blobs" / "sha256-abc")
    link = tmp_path / "snapshots" / "tiny.gguf"
    link.parent.mkdir()
    link.symlink_to("../blobs/sha256-abc")
    assert seen(engine_files(plan(link))) == {"/models/tiny.gguf": str(blob)}


def test_files_that_flags_name_are_mounted_and_the_flags_follow(tmp_path: Path) -> None:
    model, projector, draft = (make(tmp_path / name) for name in ("tiny.gguf", "mmproj.gguf", "draft.gguf"))
    one, two = make(tmp_path / "l" / "one.gguf"), make(tmp_path / "l" / "two.gguf")
    files = engine_files(
        plan(
            model,
            *("--ctx-size", "2048", "--mmproj", str(projector), "--model-draft", str(draft)),
            *("--lora", f"{one},{two}", "--lora_scaled", f"{one}:0.5,{two}:-1", "--metrics"),
        )
    )
    assert files.flags == (
        *("--ctx-size", "2048", "--mmproj", "/models/mmproj.gguf", "--model-draft", "/models/draft.gguf"),
        *("--lora", "/models/one.gguf,/models/two.gguf"),
        *("--lora_scaled", "/models/one.gguf:0.5,/models/two.gguf:-1", "--metrics"),
    )
    wanted = {f"/models/{path.name}": str(path) for path in (model, projector, draft, one, two)}
    assert seen(files) == wanted


def test_a_short_flag_ends_the_values_of_the_one_before(tmp_path: Path) -> None:
    model, projector = make(tmp_path / "tiny.gguf"), make(tmp_path / "mmproj.gguf")
    files = engine_files(plan(model, "--ctx-size", "2048", "-mm", str(projector), "-r", str(projector)))
    assert files.flags == ("--ctx-size", "2048", "-mm", "/models/mmproj.gguf", "-r", str(projector))


def test_two_files_of_one_name_get_different_places(tmp_path: Path) -> None:
    model, adapter, draft = (make(tmp_path / folder / "tiny.gguf") for folder in "abc")
    files = engine_files(
        plan(model, "--lora", f"{adapter}", "-md", f"{draft}", "--lora-scaled", f"{adapter}:2")
    )
    assert seen(files) == {
        "/models/tiny.gguf": str(model),
        "/models/2/tiny.gguf": str(adapter),
        "/models/3/tiny.gguf": str(draft),
    }
    assert files.flags == (
        *("--lora", "/models/2/tiny.gguf", "-md", "/models/3/tiny.gguf"),
        *("--lora-scaled", "/models/2/tiny.gguf:2"),
    )


def test_a_name_is_no_place_for_another_file(tmp_path: Path) -> None:
    odd, model, adapter = make(tmp_path / "2"), make(tmp_path / "a" / "2"), make(tmp_path / "b" / "2")
    files = engine_files(plan(odd, "--mmproj", str(model), "--lora", str(adapter)))
    assert list(seen(files)) == ["/models/2", "/models/3/2", "/models/4/2"]


def test_a_name_with_commas_and_colons_is_one_file_where_it_exists(tmp_path: Path) -> None:
    model, projector = make(tmp_path / "tiny.gguf"), make(tmp_path / "a,b:1")
    assert engine_files(plan(model, "--mmproj", str(projector))).flags == ("--mmproj", "/models/a,b:1")


def test_values_that_are_no_files_of_the_engine_stay_as_they_are(tmp_path: Path) -> None:
    model, secret = make(tmp_path / "tiny.gguf"), make(tmp_path / "secret")
    flags = (
        *("--reverse-prompt", str(secret), "--chat-template-kwargs", f'{{"a": "{secret}"}}'),
        *(
            "--mmproj",
            "relative.gguf",
            "--alias",
            str(model),
            "--unlisted",
            str(secret),
            "--other",
            "/nowhere.gguf",
        ),
        *("--unlisted", str(tmp_path), "-c", "2048", "--lora-scaled", "", "--lora", ",:1"),
    )
    files = engine_files(plan(model, *flags))
    assert files.flags == flags
    assert seen(files) == {"/models/tiny.gguf": str(model)}


def test_a_flag_of_no_table_may_name_a_model_file(tmp_path: Path) -> None:
    model, other = make(tmp_path / "tiny.gguf"), make(tmp_path / "vision.gguf")
    files = engine_files(plan(model, "--brand-new", str(other), "--parallel", "1"))
    assert files.flags == ("--brand-new", "/models/vision.gguf", "--parallel", "1")
    assert "/models/vision.gguf" in seen(files)


@pytest.mark.parametrize("as_flag", [False, True])
@pytest.mark.parametrize(
    ("kind", "said"),
    [("folder", "is a folder"), ("pipe", "is a pipe"), ("socket", "is a socket"), ("missing", "cannot be found"),
     ("dangling", "is a link that leads nowhere"), ("circle", "is a link that leads nowhere"),
     ("device", "is a device"), ("to-folder", "is a folder")],
)  # fmt: skip
def test_what_is_no_regular_file_is_refused_with_what_it_is(
    tmp_path: Path, kind: str, said: str, as_flag: bool
) -> None:
    model, odd = make(tmp_path / "tiny.gguf"), tmp_path / "odd.gguf"
    server = socket.socket(socket.AF_UNIX)
    if kind == "folder":
        odd.mkdir()
    elif kind == "pipe":
        os.mkfifo(odd)
    elif kind == "socket":
        server.bind(os.path.relpath(odd))
    elif kind in ("dangling", "circle", "device", "to-folder"):
        odd.symlink_to({"dangling": "gone", "circle": odd, "device": "/dev/zero", "to-folder": "/etc"}[kind])
    with server, pytest.raises(LaunchError, match=f"'odd.gguf' {said}") as caught:
        engine_files(plan(model, "--mmproj", str(odd)) if as_flag else plan(odd))
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("content", ["root:x:0:0:root:/root:/bin/sh\n", "GGU", ""])
@pytest.mark.parametrize("place", ["model", "part", "flag"])
@pytest.mark.parametrize("link", [True, False])
def test_what_does_not_begin_as_a_model_does_is_nothing_for_an_engine(
    tmp_path: Path, content: str, place: str, link: bool
) -> None:
    model, second = make(tmp_path / "m-00001-of-00002.gguf"), tmp_path / "m-00002-of-00002.gguf"
    eye = tmp_path / "mmproj.gguf"
    for path, which in ((model, "model"), (second, "part"), (eye, "flag")):
        if which != place:
            make(path)
        elif link:
            path.unlink(missing_ok=True)
            path.symlink_to(make(tmp_path / "etc" / "secret", content))
        else:
            make(path, content)
    with pytest.raises(LaunchError, match=r"'.*\.gguf' is not a GGUF file") as caught:
        engine_files(plan(model, "--mmproj", str(eye)))
    assert "secret" not in caught.value.message


def test_our_own_data_is_never_mounted_by_any_path(tmp_path: Path) -> None:
    own = make(tmp_path / "data" / "keys.gguf")
    link = tmp_path / "tiny.gguf"
    link.symlink_to(own)
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    for private in (tmp_path / "data", tmp_path / "alias"):
        with pytest.raises(LaunchError, match="LlamaMan's own data"):
            engine_files(plan(link), private=[private])


def test_a_name_that_docker_cannot_be_told_is_refused(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.gguf")
    with pytest.raises(LaunchError, match=r"not valid UTF-8.*rename") as caught:
        engine_files(plan(make(tmp_path / name)))
    caught.value.message.encode()
