"""The library: what is below MODELS_DIR, found by name and path, with presets that last."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llamaman.core.config import Config
from llamaman.core.launch import ModelFacts
from llamaman.core.store import Changes
from llamaman.errors import InvalidField, ModelNotFound, NotFound
from llamaman.library import Library
from llamaman.library import library as library_module
from llamaman.library import scan as scanning
from llamaman.library.gguf import BrokenHeader, Header
from llamaman.library.header_reader import HeaderReader
from llamaman.records import ModelDetails
from llamaman.testing import write_tiny_model

from .conftest import MemoryStore


class Events:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Any]] = []

    def publish(self, topic: str, kind: str, data: Mapping[str, Any], *, actor: str, reason: str) -> None:
        self.seen.append((topic, kind, data))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def opened(*folders: Path, store: MemoryStore | None = None, **more: Any) -> Library:
    environ = {"LLAMAMAN_NODE_NAME": "srv1", "MODELS_DIR": ":".join(str(folder) for folder in folders)}
    library = Library(Config.from_environ(environ), store or MemoryStore(), **more)
    library.rescan()
    return library


def names(library: Library) -> list[str]:
    return [model.name for model in library.models()]


def copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


class TestScan:
    def test_a_model_is_described(self, models: Path, tiny: Path) -> None:
        path = copy(tiny, models / "sub" / "Tiny-Q8_0.GGUF")
        (model,) = opened(models).models()
        assert (model.name, model.path, model.files) == ("tiny-q8_0", path, (path,))
        assert (model.kind, model.runnable, model.quant) == ("gguf", True, "Q8_0")
        assert (model.size, model.modified) == (path.stat().st_size, path.stat().st_mtime)
        assert (model.embedding, model.context_length) == (False, 16_384)

    def test_an_embedding_model_is_known_by_its_header(self, models: Path) -> None:
        write_tiny_model(models / "e.gguf", embedding=True)
        assert opened(models).find("e").embedding

    def test_without_a_quantisation_in_the_name_the_file_type_counts(self, models: Path, tiny: Path) -> None:
        copy(tiny, models / "plain.gguf")
        library = opened(models)
        header = library.header(models / "plain.gguf")
        assert header is not None
        assert library.find("plain").quant == header.quant
        assert header.quant is not None

    def test_a_set_of_shards_is_one_model(self, models: Path, tiny: Path) -> None:
        paths = tuple(copy(tiny, models / f"big-0000{number}-of-00003.gguf") for number in (1, 2, 3))
        library = opened(models)
        (model,) = library.models()
        assert (model.name, model.path, model.files) == ("big", paths[0], paths)
        assert model.size == 3 * tiny.stat().st_size
        assert library.by_path(paths[2]) == model

    @pytest.mark.parametrize("present", [(1, 3), (2, 3), (1,)])
    def test_a_set_with_missing_shards_cannot_run(
        self, models: Path, tiny: Path, present: tuple[int, ...]
    ) -> None:
        for number in present:
            copy(tiny, models / f"big-0000{number}-of-00003.gguf")
        library = opened(models)
        (model,) = library.models()
        assert (model.name, model.runnable) == ("big", False)
        assert f"{len(present)} of its 3 files" in (library.reason(model.path) or "")

    def test_a_renamed_shard_cannot_run(self, models: Path) -> None:
        write_tiny_model(models / "a.gguf", metadata={"split.count": 3})
        assert not opened(models).find("a").runnable

    def test_projectors_and_adapters_are_files_but_not_models(self, models: Path, tiny: Path) -> None:
        copy(tiny, models / "mmproj-model-f16.gguf")
        write_tiny_model(models / "lora.gguf", metadata={"general.type": "adapter"})
        library = opened(models)
        assert library.models() == ()
        assert library.model_file("lora.gguf") == models / "lora.gguf"

    def test_a_broken_file_is_listed_and_says_why_it_cannot_run(self, models: Path) -> None:
        (models / "bad.gguf").write_bytes(b"this is no model")
        library = opened(models)
        assert not library.find("bad").runnable
        assert "not a GGUF file" in (library.reason(models / "bad.gguf") or "")
        assert library.header(models / "bad.gguf") is None
        assert library.facts(models / "bad.gguf") == ModelFacts()

    def test_a_huggingface_folder_is_listed_as_not_runnable(self, models: Path, tiny: Path) -> None:
        (models / "Llama-3").mkdir()
        (models / "Llama-3" / "config.json").write_text("{}")
        (models / "Llama-3" / "model.safetensors").write_bytes(b"x" * 100)
        copy(tiny, models / "with-gguf" / "m.gguf")
        (models / "with-gguf" / "config.json").write_text("{}")
        library = opened(models)
        assert names(library) == ["llama-3", "m"]
        model = library.find("llama-3")
        assert (model.kind, model.runnable, model.size) == ("hf", False, 102)
        assert "HuggingFace" in (library.reason(model.path) or "")

    def test_the_second_file_of_a_stem_gets_its_folder_as_prefix(self, models: Path, tiny: Path) -> None:
        copy(tiny, models / "x" / "a.gguf")
        copy(tiny, models / "y" / "A.gguf")
        assert names(opened(models)) == ["a", "y-a"]

    def test_several_folders_are_scanned_in_order(self, tmp_path: Path, tiny: Path) -> None:
        copy(tiny, tmp_path / "one" / "a.gguf")
        copy(tiny, tmp_path / "two" / "a.gguf")
        library = opened(tmp_path / "two", tmp_path / "one")
        assert library.find("a").path == tmp_path / "two" / "a.gguf"
        assert library.find("one-a").path == tmp_path / "one" / "a.gguf"

    def test_links_are_named_by_the_link_and_loops_end(self, models: Path, tiny: Path) -> None:
        (models / "linked.gguf").symlink_to(tiny)
        (models / "dangling.gguf").symlink_to(models / "nothing")
        (models / "loop").symlink_to(models)
        assert names(opened(models)) == ["linked"]

    def test_odd_entries_are_passed_over(self, models: Path, tiny: Path) -> None:
        os.mkfifo(models / "fifo.gguf")
        (models / "folder.gguf").mkdir()
        (models / "notes.txt").write_text("x")
        (models / ".hidden").mkdir()
        copy(tiny, models / ".hidden" / "h.gguf")
        copy(tiny, models / "bad\nname.gguf")
        (models / os.fsdecode(b"latin-\xe9.gguf")).write_bytes(b"x")
        copy(tiny, models / "good.gguf")
        library = opened(models)
        assert names(library) == ["good"]
        assert len(library.problems) == 2

    def test_a_missing_folder_is_a_problem_and_not_an_error(self, tmp_path: Path, tiny: Path) -> None:
        library = opened(tmp_path / "later")
        assert library.models() == ()
        assert "later" in library.problems[0]
        copy(tiny, tmp_path / "later" / "a.gguf")
        assert library.refresh()
        assert names(library) == ["a"]


def projector(path: Path, **encoders: bool) -> Path:
    return write_tiny_model(
        path, metadata={f"clip.has_{name}_encoder": has for name, has in encoders.items()}
    )


def told(library: Library, name: str) -> ModelDetails:
    details = library.find(name).details
    assert details is not None
    return details


class TestDetails:
    def test_a_model_tells_what_its_header_says(self, models: Path, tiny: Path) -> None:
        copy(tiny, models / "a.gguf")
        details = told(opened(models), "a")
        assert (details.architecture, details.name, details.embedding_length) == ("llama", "tiny", 64)
        assert details.capabilities == {"completion"}
        assert details.template is not None
        assert "add_generation_prompt" in details.template
        assert details.metadata["llama.block_count"] == 2
        assert details.projector == {}

    def test_parameters_are_those_of_all_shards(self, models: Path, tiny: Path) -> None:
        copy(tiny, models / "one.gguf")
        for number in (1, 2):
            copy(tiny, models / f"two-0000{number}-of-00002.gguf")
        copy(tiny, models / "half-00001-of-00002.gguf")
        (models / "half-00002-of-00002.gguf").write_bytes(b"GGUF")
        library = opened(models)
        one = told(library, "one").parameters
        assert one
        assert told(library, "two").parameters == 2 * one
        assert told(library, "half").parameters is None

    def test_a_file_without_a_header_has_no_details(self, models: Path) -> None:
        (models / "bad.gguf").write_bytes(b"this is no model")
        assert opened(models).find("bad").details is None

    def test_digests_differ_stay_over_restarts_and_change_with_the_file(
        self, models: Path, tiny: Path
    ) -> None:
        copy(tiny, models / "a.gguf")
        copy(tiny, models / "b.gguf")
        library = opened(models)
        first, second = told(library, "a").digest, told(library, "b").digest
        assert first != second
        assert told(opened(models), "a").digest == first
        library.rescan()
        assert told(library, "a").digest == first
        os.utime(models / "a.gguf", (1, 1))
        library.refresh()
        assert told(library, "a").digest != first
        assert told(library, "b").digest == second

    def test_a_projector_beside_a_model_gives_it_senses(self, models: Path, tiny: Path) -> None:
        copy(tiny, models / "sees" / "gemma-Q4_0.gguf")
        path = projector(models / "sees" / "mmproj-F16.gguf", vision=True, audio=True)
        copy(tiny, models / "plain.gguf")
        library = opened(models)
        assert told(library, "gemma-q4_0").capabilities == {"completion", "vision", "audio"}
        assert told(library, "gemma-q4_0").projector["clip.has_audio_encoder"] is True
        assert library.projector(models / "sees" / "gemma-Q4_0.gguf") == path
        assert told(library, "plain").capabilities == {"completion"}
        assert library.projector(models / "plain.gguf") is None
        before = told(library, "gemma-q4_0").digest
        path.unlink()
        library.refresh()
        assert told(library, "gemma-q4_0").capabilities == {"completion"}
        assert told(library, "gemma-q4_0").digest != before

    def test_a_preset_says_which_projector_and_what_a_model_is_for(self, models: Path, tiny: Path) -> None:
        path = copy(tiny, models / "a.gguf")
        copy(tiny, models / "b.gguf")
        eyes = projector(models / "eyes-mmproj.gguf", vision=True)
        library = opened(models)
        before = told(library, "a")
        library.put_preset(path, {"mmproj": "eyes-mmproj.gguf"}, "key:a")
        assert told(library, "a").capabilities == {"completion", "vision"}
        assert library.projector(path) == eyes
        assert told(library, "a").digest != before.digest
        library.put_preset(path, {"embedding_model": True}, "key:a")
        assert told(library, "a").capabilities == {"embedding"}
        library.delete_preset(path, "key:a")
        assert told(library, "a") == before

    def test_texts_are_kept_up_to_a_bound_for_all_files(
        self, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(4):
            write_tiny_model(models / f"m{number}.gguf", chat_template="{# tools #}" + "x" * 90_000)
        monkeypatch.setattr(scanning, "MAX_TEXT", 200_000)
        library = opened(models)
        library.rescan()
        kept = [model.details.template is not None for model in library.models() if model.details]
        assert kept == [True, True, False, False]
        assert all(model.runnable and model.context_length for model in library.models())
        assert "2 of them are known without" in library.problems[0]


class TestAliases:
    def test_a_model_is_found_by_its_aliases_at_once_and_no_longer_than_they_are_there(
        self, models: Path, tiny: Path
    ) -> None:
        path = copy(tiny, models / "a.gguf")
        copy(tiny, models / "gpt.gguf")
        store = MemoryStore()
        library = opened(models, store=store)
        library.put_preset(path, {"aliases": ["GPT-4o", " hf.co/me/A:Q4_0 "]}, "key:a")
        for each in (library, opened(models, store=store)):
            assert each.find("a").aliases == ("GPT-4o", "hf.co/me/A:Q4_0")
            for name in ("gpt-4o", "GPT-4o:latest", "HF.co/me/a:q4_0", "a", "library/a", "A.gguf"):
                assert each.find(name).path == path
        assert library.find("gpt").path == models / "gpt.gguf"  # a name counts before what it begins
        library.put_preset(path, {"aliases": ["other"]}, "key:a")
        with pytest.raises(ModelNotFound):
            library.find("gpt-4o")
        library.delete_preset(path, "key:a")
        with pytest.raises(ModelNotFound):
            library.find("other")
        assert library.find("a").aliases == ()

    @pytest.mark.parametrize(
        ("aliases", "words"),
        [
            (["B:latest"], "'B:latest' is already the name of model 'b'"),
            (["A"], "'A' is already the name of model 'a'"),
            (["Taken"], "'Taken' is already an alias of model 'b'"),
            (["lost"], "'lost' is already an alias of model 'gone'"),
            (["x", "X:latest"], "twice"),
            (["x"] * 33, "more than 32"),
            (["x" * 129], "128"),
            ([""], "128"),
            ([":latest"], "128"),
            (["a\nb"], "control"),
            ([1], "list of names"),
            ("x", "list of names"),
        ],
    )
    def test_an_alias_that_cannot_stand_for_one_model_is_refused(
        self, models: Path, tiny: Path, aliases: Any, words: str
    ) -> None:
        path, other = copy(tiny, models / "a.gguf"), copy(tiny, models / "b.gguf")
        store = MemoryStore()
        store.put("presets", str(models / "gone.gguf"), {"aliases": ["lost"]})
        library = opened(models, store=store)
        library.put_preset(other, {"aliases": ["taken"]}, "key:a")
        library.put_preset(path, {"aliases": ["mine"]}, "key:a")
        with pytest.raises(InvalidField) as caught:
            library.put_preset(path, {"aliases": aliases}, "key:a")
        assert caught.value.field == "aliases"
        assert words in caught.value.message
        assert library.find("mine").path == path
        library.put_preset(path, {"aliases": ["Mine"]}, "key:a")  # its own may stay

    def test_the_name_of_a_file_that_comes_later_counts_before_an_alias(
        self, models: Path, tiny: Path
    ) -> None:
        path = copy(tiny, models / "a.gguf")
        library = opened(models)
        library.put_preset(path, {"aliases": ["b"]}, "key:a")
        assert library.find("b").path == path
        later = copy(tiny, models / "b.gguf")
        library.refresh()
        assert library.find("b").path == later

    def test_what_another_manager_stored_counts_when_it_is_taken_in(self, models: Path, tiny: Path) -> None:
        path = copy(tiny, models / "a.gguf")
        store = MemoryStore()
        library, other = opened(models, store=store), opened(models, store=store)
        library._presets._store.watch = lambda *_: Changes(
            2, tuple(store.documents.values()), (), resync=False
        )  # type: ignore[method-assign] # a store that others write to as well
        other.put_preset(path, {"aliases": ["second"]}, "key:a")
        library.refresh_presets()
        assert library.find("second").path == path

    def test_of_aliases_set_at_the_same_time_one_wins(self, models: Path, tiny: Path) -> None:
        paths = [copy(tiny, models / f"m{number}.gguf") for number in range(4)]
        library = opened(models)
        outcomes: list[bool] = []

        def claim(path: Path) -> None:
            try:
                library.put_preset(path, {"aliases": ["best"]}, "key:a")
            except InvalidField:
                outcomes.append(False)
            else:
                outcomes.append(True)

        threads = [threading.Thread(target=claim, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [False, False, False, True]


class TestRescan:
    def test_many_files_cost_one_look_at_each_header(
        self, models: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = tiny.read_bytes()
        for number in range(500):
            (models / f"m{number:03}.gguf").write_bytes(data[:60_000])
            os.truncate(models / f"m{number:03}.gguf", 1 << 30)
        read: list[Path] = []
        real = HeaderReader.read

        def counting(reader: HeaderReader, path: Path) -> Header | BrokenHeader:
            read.append(path)
            return real(reader, path)

        monkeypatch.setattr(HeaderReader, "read", counting)
        library = opened(models)
        assert all(model.runnable for model in library.models())
        assert len(library.models()) == len(read) == 500
        read.clear()
        assert not library.refresh()
        library.rescan()
        assert read == []

    def test_refresh_sees_every_kind_of_change(self, models: Path, tiny: Path) -> None:
        library = opened(models)
        copy(tiny, models / "sub" / "a.gguf")
        assert library.refresh()
        assert names(library) == ["a"]
        write_tiny_model(models / "sub" / "a.gguf", context_length=99)  # the same file, rewritten in place
        assert library.refresh()
        assert library.find("a").context_length == 99
        (models / "sub" / "a.gguf").unlink()
        assert library.refresh()
        assert library.models() == ()
        assert not library.refresh()

    def test_a_file_that_could_not_be_read_is_tried_again_after_a_while(
        self, models: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy(tiny, models / "a.gguf")
        with monkeypatch.context() as patch:
            patch.setattr(HeaderReader, "read", lambda *_: BrokenHeader("its storage is stuck", passing=True))
            library = opened(models)
        assert library.reason(models / "a.gguf") == "its storage is stuck"
        assert not library.refresh()
        monkeypatch.setattr(library_module, "RETRY_S", 0.0)
        assert library.refresh()
        assert library.find("a").runnable
        assert not library.refresh()

    def test_a_change_is_told(self, models: Path, tiny: Path) -> None:
        events = Events()
        library = opened(models, events=events)
        copy(tiny, models / "a.gguf")
        library.rescan()
        library.rescan()
        assert events.seen == [("models", "changed", {"added": ["a"], "removed": []})]

    def test_readers_see_whole_snapshots_while_scans_run(self, models: Path, tiny: Path) -> None:
        copy(tiny, models / "a.gguf")
        library = opened(models)
        stop = threading.Event()
        failures: list[BaseException] = []

        def read() -> None:
            try:
                while not stop.is_set():
                    assert library.find("a").path == models / "a.gguf"
                    assert library.by_path(models / "a.gguf").name == "a"
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(8):
            copy(tiny, models / f"b{number}.gguf")
            library.rescan()
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_too_many_entries_end_the_listing_and_not_the_program(
        self, models: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(5):
            copy(tiny, models / f"m{number}.gguf")
        monkeypatch.setattr(scanning, "MAX_ENTRIES", 3)
        library = opened(models)
        assert len(library.models()) == 3
        assert "more than 3 files" in library.problems[0]


class TestLookUp:
    def test_by_name_and_path(self, models: Path, tiny: Path) -> None:
        path = copy(tiny, models / "Qwen-7B-Q4_K_M.gguf")
        library = opened(models)
        assert library.find("qwen-7b:latest") == library.by_path(path) == library.models()[0]
        with pytest.raises(ModelNotFound):
            library.find("llama")
        for other in (models, models / "x.gguf", Path("/etc/passwd"), models / ".." / "models" / path.name):
            with pytest.raises(NotFound):
                library.by_path(other)

    def test_facts_for_a_launch(self, models: Path, tiny: Path) -> None:
        copy(tiny, models / "a.gguf")
        write_tiny_model(models / "b.gguf", metadata={"llama.nextn_predict_layers": 1})
        library = opened(models)
        assert library.facts(models / "a.gguf") == ModelFacts(nextn_layers=0, context_length=16_384)
        assert library.facts(models / "b.gguf").nextn_layers == 1

    def test_a_reranker_is_known_by_its_header(self, models: Path, tiny: Path) -> None:
        write_tiny_model(models / "rank.gguf", metadata={"llama.pooling_type": 4})
        write_tiny_model(models / "mean.gguf", embedding=True)
        library = opened(models)
        assert library.facts(models / "rank.gguf").reranks
        assert not library.facts(models / "mean.gguf").reranks

    def test_model_files_by_what_a_user_writes(self, models: Path, tiny: Path) -> None:
        path = copy(tiny, models / "sub" / "mm.gguf")
        for name in ("x", "y"):
            copy(tiny, models / name / "twice.gguf")
        library = opened(models)
        for text in (str(path), "sub/mm.gguf", "mm.gguf", "sub/../sub/mm.gguf"):
            assert library.model_file(text) == path
        for text in ("twice.gguf", "", ".", "../etc/passwd", "/etc/passwd", "sub", "nul\0"):
            assert library.model_file(text) is None


class TestPresets:
    def test_a_preset_lasts(self, models: Path, tiny: Path) -> None:
        path = copy(tiny, models / "a.gguf")
        store = MemoryStore()
        library = opened(models, store=store)
        assert library.preset(path) is None
        library.put_preset(path, {"ctx_size": 512, "favorite": True, "note": "two\nlines"}, "key:a")
        kept = {"ctx_size": 512, "favorite": True, "note": "two\nlines"}
        again = opened(models, store=store)
        assert again.preset(path) == kept
        assert again.presets() == {str(path): kept}
        assert again.delete_preset(path, "key:a")
        assert not again.delete_preset(path, "key:a")
        assert opened(models, store=store).preset(path) is None

    @pytest.mark.parametrize(
        ("values", "field"),
        [
            ({"idle_timeout_min": "x"}, "idle_timeout_min"),
            ({"ctx_size": 0}, "ctx_size"),
            ({"nonsense": 1}, "nonsense"),
            ({"favorite": "yes"}, "favorite"),
            ({"note": 1}, "note"),
            ({"note": "x" * 4097}, "note"),
            ({"extra_args": "--host x"}, "extra_args"),
            ({"extra_args": "--brand-new"}, "extra_args"),
            ({"extra_args": "--lora /etc/passwd"}, "extra_args"),
            ({"mmproj": "/etc/passwd"}, "mmproj"),
        ],
    )
    def test_a_wrong_preset_is_refused_and_the_old_one_stays(
        self, models: Path, tiny: Path, values: dict[str, Any], field: str
    ) -> None:
        path = copy(tiny, models / "a.gguf")
        library = opened(models)
        library.put_preset(path, {"ctx_size": 1}, "key:a")
        with pytest.raises(InvalidField) as caught:
            library.put_preset(path, values, "key:a")
        assert caught.value.field == field
        assert library.preset(path) == {"ctx_size": 1}

    def test_an_administrator_may_allow_unlisted_arguments(self, models: Path, tiny: Path) -> None:
        library = opened(models, allow_unlisted=lambda: True)
        library.put_preset(copy(tiny, models / "a.gguf"), {"extra_args": "--brand-new"}, "key:a")

    def test_a_stored_preset_with_a_bad_field_keeps_its_good_ones(self, models: Path) -> None:
        store = MemoryStore()
        store.put("presets", "/m/a.gguf", {"ctx_size": "x", "threads": 2, "gone": 1, "note": "n"})
        store.put("presets", "/m/b.gguf", "nonsense")
        library = opened(models, store=store)
        assert library.preset(Path("/m/a.gguf")) == {"threads": 2, "note": "n"}
        assert library.preset(Path("/m/b.gguf")) == {}
        assert store.documents["/m/a.gguf"].value["gone"] == 1

    def test_what_a_caller_does_to_an_answer_changes_nothing(self, models: Path, tiny: Path) -> None:
        path = copy(tiny, models / "a.gguf")
        library = opened(models)
        library.put_preset(path, {"ctx_size": 1}, "key:a")
        preset = library.preset(path)
        assert preset is not None
        preset["ctx_size"] = 2
        assert library.preset(path) == {"ctx_size": 1}

    def test_changes_are_told(self, models: Path, tiny: Path) -> None:
        events = Events()
        path = copy(tiny, models / "a.gguf")
        library = opened(models, events=events)
        library.put_preset(path, {}, "key:a")
        library.delete_preset(path, "key:a")
        assert events.seen[-2:] == [
            ("presets", "saved", {"model": "a"}),
            ("presets", "deleted", {"model": "a"}),
        ]
