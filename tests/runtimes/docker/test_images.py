"""Images with a real Docker engine and a real registry: what may run, what is known of it, how it is pulled."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamaman.errors import Conflict, Forbidden, InvalidField, LaunchError, NotFound, RuntimeLost
from llamaman.records import Engine
from llamaman.runtimes.docker import image_probe
from llamaman.runtimes.docker.daemon import Daemon
from llamaman.runtimes.docker.image_names import parse
from llamaman.runtimes.docker.images import Images
from llamaman.runtimes.docker.labels import MANAGED
from llamaman.runtimes.docker.pull_errors import cannot_be_had
from llamaman.runtimes.docker.pulls import AT_ONCE
from llamaman.runtimes.engines import Probe
from llamaman.testing.image_lab import REGISTRY, Lab, free_port, registry, until
from llamaman.testing.relay import Relay

pytestmark = pytest.mark.real("docker")

DEADLINE_S = 60.0
PAYLOAD = 3 << 20
FLAGS = Probe("b1", ("--model",))
NewImages = Callable[..., Images]


@pytest.fixture(scope="module")
def lab(docker_host: str) -> Iterator[Lab]:
    import docker

    lab = Lab(docker.DockerClient(base_url=docker_host))
    yield lab
    lab.close()


@pytest.fixture
def relay(docker_host: str, tmp_path: Path) -> Iterator[Relay]:
    """The road to the Docker engine: records what is asked, and can be cut."""
    relay = Relay(docker_host.removeprefix("unix://"), tmp_path / "docker.sock")
    yield relay
    relay.cut()


@pytest.fixture
def new_images(relay: Relay, server_image: str, tmp_path: Path) -> Iterator[NewImages]:
    made: list[tuple[Images, Daemon]] = []

    def make(*allowed: str, default: str = server_image, asks: bool = False) -> Images:
        daemon = Daemon(relay.address)
        probe = None if asks else lambda image: FLAGS
        images = Images(
            daemon, default=default, allowed=lambda: allowed, state_dir=tmp_path / "state", probe=probe
        )
        made.append((images, daemon))
        return images

    yield make
    for images, daemon in made:
        images.close()
        daemon.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not REGISTRY:
        pytest.skip("docker-registry is not installed")
    with registry(tmp_path_factory.mktemp("registry") / "r") as address:
        yield address


@pytest.fixture
def shop(store: str) -> Iterator[Relay]:
    """The road to the registry; its address is the registry's for everybody."""
    host, port = store.split(":")
    relay = Relay((host, int(port)))
    yield relay
    relay.cut()


@pytest.fixture
def offered(lab: Lab, shop: Relay, server_image: str) -> str:
    """An image that the registry has and the Docker engine has not; a part of it is nowhere else."""
    name = f"{lab.unique(shop.address)}:x"
    lab.build(name, f"FROM {server_image}\nCOPY payload /payload\n", random_bytes=PAYLOAD)
    lab.push(name)
    lab.remove(name)
    shop.requests.clear()
    return name


def of(images: Images, name: str) -> Engine:
    engine = images.engine(name)
    assert engine is not None
    return engine


def probes(relay: Relay) -> int:
    return relay.count("POST", r"/containers/create\?name=llamaman-probe-")


# --- which images may be used ------------------------------------------------------------------------


def test_only_allowed_images_and_the_current_one_are_engines(
    new_images: NewImages, server_image: str
) -> None:
    images = new_images("ghcr.io/ggml-org/llama.cpp:*")
    assert of(images, "ghcr.io/ggml-org/llama.cpp:server-vulkan").name.endswith(":server-vulkan")
    assert of(images, server_image).path == parse(server_image).canonical
    with pytest.raises(InvalidField) as refused:
        images.engine("evil/llama:server")
    assert refused.value.field == "engine"
    assert "images.allowed" in refused.value.message
    assert "administrator" in refused.value.message
    assert "evil/llama:*" in refused.value.message


def test_a_plain_word_is_no_image_and_a_wrong_name_is_refused(new_images: NewImages) -> None:
    images = new_images("x/y:*")
    assert images.engine("llama-server") is None
    with pytest.raises(InvalidField, match="not the name of an image"):
        images.engine("x/Y:z")


def test_an_image_that_is_not_allowed_is_not_even_asked_for(new_images: NewImages, relay: Relay) -> None:
    images = new_images(asks=True)
    with pytest.raises(InvalidField):
        images.engine("evil/llama:server")
    with pytest.raises(Forbidden, match=r"images\.allowed"):
        images.pull("evil/llama:server")
    assert relay.requests == []


# --- what is known of an image -----------------------------------------------------------------------


def test_an_image_is_asked_for_its_flags_once_by_a_container_that_is_gone_afterwards(
    new_images: NewImages, relay: Relay, lab: Lab, server_image: str
) -> None:
    engine = new_images(asks=True).default_engine()
    assert engine.flags is not None
    assert {"--model", "--parallel", "-c"} <= engine.flags
    assert (engine.name, engine.kind, engine.digest) == (
        str(parse(server_image)),
        "image",
        lab.client.images.get(server_image).id,
    )
    assert engine.build is None or engine.build.startswith("b")
    asked = probes(relay)
    assert asked >= 1
    again = new_images(asks=True)  # after a restart, too
    assert of(again, server_image) == engine
    assert probes(relay) == asked
    names = {path.partition("name=")[2] for _, path in relay.requests if "name=llamaman-probe-" in path}
    assert names
    assert not names & {each.name for each in lab.client.containers.list(all=True)}


def test_the_container_that_is_asked_can_do_nothing() -> None:
    made = image_probe.body("sha256:x", "--help")
    host = made["HostConfig"]
    assert made["User"] == "65534:65534"
    assert made["Labels"] == {MANAGED: "1", image_probe.PURPOSE: "probe"}
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"]) == ("none", True, ["ALL"])
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (512 << 20, 512 << 20, 128)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert not {"Binds", "Mounts", "Devices", "DeviceRequests", "Privileged", "CapAdd"} & set(host)


def test_the_label_of_an_official_image_tells_its_build(
    new_images: NewImages, lab: Lab, server_image: str
) -> None:
    name = lab.build(
        f"{lab.unique()}:x", f"FROM {server_image}\nLABEL org.opencontainers.image.version=b11434\n"
    )
    assert of(new_images(name, asks=True), name).build == "b11434"


@pytest.mark.parametrize(
    ("label", "build"),
    [("b11434", "b11434"), ("1.2.3-rc1+g0a", "1.2.3-rc1+g0a"), ("b1\n=== instance x", None), ("b" * 65, None),
     ("\x1b[2J", None), ("\u202eb1", None), ("", None), (7, None), (None, None)],
)  # fmt: skip
def test_a_label_that_is_no_build_s_name_tells_nothing(label: object, build: str | None) -> None:
    labels = {} if label is None else {"org.opencontainers.image.version": label}
    assert image_probe.labelled_build({"Config": {"Labels": labels}}) == build
    assert image_probe.labelled_build({"Config": {"Labels": None}}) is None


def test_what_a_killed_manager_was_asking_is_removed_and_no_other_container(
    new_images: NewImages, lab: Lab, server_image: str, tmp_path: Path
) -> None:
    import docker.errors

    marks = {MANAGED: "1", image_probe.PURPOSE: "probe"}
    ours, foreign, other = (f"llamaman-probe-{secrets.token_hex(6)}" for _ in range(3))
    made = [lab.client.containers.create(server_image, name=name, labels=marks) for name in (ours, foreign)]
    made.append(lab.client.containers.create(server_image, name=other))  # somebody took a name of ours
    try:
        (tmp_path / "state" / "probes").mkdir(parents=True)
        for name in (ours, other):
            (tmp_path / "state" / "probes" / name).touch()
        new_images().default_engine()
        left = {each.name for each in lab.client.containers.list(all=True)}
        assert ours not in left
        assert {foreign, other} <= left
        assert list((tmp_path / "state" / "probes").iterdir()) == []
    finally:
        for container in made:
            with contextlib.suppress(docker.errors.NotFound):
                container.remove()


def test_an_image_that_starts_something_else_is_refused_with_what_to_use(
    new_images: NewImages, lab: Lab, relay: Relay
) -> None:
    name = lab.build(f"{lab.unique()}:x", 'FROM scratch\nCOPY payload /run\nENTRYPOINT ["/run"]\n')
    images = new_images(name, asks=True)
    with pytest.raises(InvalidField, match="does not start llama-server"):
        images.engine(name)
    with pytest.raises(LaunchError, match="entrypoint must be llama-server"):
        images.require(name)
    assert probes(relay) == 1
    assert new_images(default=name, asks=True).default_engine().flags is None


def test_a_program_that_hands_on_to_llama_server_is_as_good(
    new_images: NewImages, lab: Lab, server_image: str
) -> None:
    name = lab.build(
        f"{lab.unique()}:x",
        f'FROM {server_image}\nADD link.tar /\nENTRYPOINT ["/start"]\n',
    )
    flags = of(new_images(name, asks=True), name).flags
    assert flags is not None
    assert "--model" in flags


def test_a_missing_image_is_an_engine_of_which_nothing_is_known(new_images: NewImages) -> None:
    engine = of(new_images("no/such:x"), "no/such:x")
    assert (engine.flags, engine.build, engine.digest) == (None, None, None)


def test_a_missing_image_cannot_be_started(new_images: NewImages) -> None:
    with pytest.raises(LaunchError) as refused:
        new_images().require("no/such:x")
    assert refused.value.message.startswith("Docker image not found")
    assert "docker pull no/such:x" in refused.value.message


def test_a_lost_daemon_leaves_the_default_image_unknown_and_refuses_the_rest(
    new_images: NewImages, relay: Relay, server_image: str
) -> None:
    images = new_images()
    relay.cut()
    assert images.default_engine().flags is None
    assert of(images, server_image).digest is None
    for call in (
        lambda: images.require(server_image),
        lambda: images.fetch(of(images, server_image), print),
        images.views,
    ):
        with pytest.raises(RuntimeLost):
            call()


# --- pulls -------------------------------------------------------------------------------------------


def test_an_image_that_is_here_is_not_fetched(new_images: NewImages, server_image: str) -> None:
    images = new_images()
    assert images.fetch(of(images, server_image), print) is None


def test_a_pull_tells_how_far_it_is_and_then_the_image_is_known(
    new_images: NewImages, shop: Relay, offered: str
) -> None:
    images = new_images(offered, asks=True)
    shop.rate = PAYLOAD / 2.5
    told: list[str] = []
    future = images.fetch(of(images, offered), told.append)
    assert future is not None
    running = until(lambda: [each for each in images.pulls() if each.percent], "no percentage was ever told")[
        0
    ]
    assert (running.image, running.state, running.finished) == (offered, "pulling", None)
    future.result(DEADLINE_S)
    assert told[0] == "waiting to pull image"
    assert "pulling image" in told
    shares = [
        int(each.split(", ")[1].removesuffix(" %")) for each in told if each.startswith("pulling image, ")
    ]
    assert shares
    assert shares == sorted(set(shares))
    assert len(told) < 20
    ended = images.pulls()[0]
    assert (ended.image, ended.state, ended.percent, ended.error) == (offered, "done", 100, None)
    engine = of(images, offered)
    assert engine.flags is not None
    assert engine.digest == images.require(offered)["Id"]
    assert images.fetch(engine, told.append) is None


def test_two_who_want_one_image_share_one_pull_and_one_may_leave(
    new_images: NewImages, relay: Relay, shop: Relay, offered: str
) -> None:
    images = new_images(offered)
    engine = of(images, offered)
    shop.rate = PAYLOAD / 1.5
    told: list[str] = []
    first = images.fetch(engine, print)
    second = images.fetch(engine, told.append)
    assert first is not None
    assert second is not None
    assert first.cancel()
    second.result(DEADLINE_S)
    assert told
    assert relay.count("POST", "/images/create") == 1


def test_a_pull_that_nobody_waits_for_any_more_is_finished(
    new_images: NewImages, shop: Relay, offered: str
) -> None:
    images = new_images(offered)
    shop.rate = PAYLOAD / 0.5
    future = images.fetch(of(images, offered), print)
    assert future is not None
    until(lambda: shop.requests, "the pull did not begin")
    assert future.cancel()
    until(lambda: [each for each in images.pulls() if each.state == "done"], "it was not finished")
    images.require(offered)


def test_a_listener_that_fails_harms_nobody(new_images: NewImages, offered: str) -> None:
    images = new_images(offered)

    def fail(message: str) -> None:
        raise RuntimeError(message)

    future = images.fetch(of(images, offered), fail)
    assert future is not None
    future.result(DEADLINE_S)


def failed_pull(images: Images, name: str) -> LaunchError:
    future = images.fetch(of(images, name), lambda message: None)
    assert future is not None
    failure = future.exception(DEADLINE_S)
    assert isinstance(failure, LaunchError)
    assert failure.message.startswith(
        f"Docker image not found: '{name}'. Pull the matching image: docker pull "
        "ghcr.io/ggml-org/llama.cpp:server-cuda (NVIDIA), server-rocm (AMD), server-sycl (Intel Arc), or server (CPU). "
        f"Here: docker pull {name}. "
    ), "the documented answer word for word, and then the command for this very image"
    assert images.pulls()[0].state == "error"
    assert images.pulls()[0].error == failure.message
    return failure


def test_a_tag_that_the_registry_has_not_is_a_failure_for_all_who_wait(
    new_images: NewImages, store: str, lab: Lab
) -> None:
    name = f"{lab.unique(store)}:none"
    assert "manifest unknown" in failed_pull(new_images(name), name).message


def test_a_registry_that_is_down_is_a_failure(new_images: NewImages, lab: Lab) -> None:
    name = f"{lab.unique(f'127.0.0.1:{free_port()}')}:x"
    failure = failed_pull(new_images(name), name)
    assert "cannot reach the registry" in failure.message
    assert "connection refused" in (failure.detail or "")


def test_a_repository_that_needs_a_login_is_a_failure(
    new_images: NewImages, tmp_path: Path, lab: Lab
) -> None:
    if not REGISTRY:
        pytest.skip("docker-registry is not installed")
    with registry(tmp_path / "closed", accounts="ada:$2y$05$" + "a" * 53) as address:
        name = f"{lab.unique(address)}:x"
        assert "access denied" in failed_pull(new_images(name), name).message


def test_a_registry_that_breaks_off_is_a_failure_and_the_next_pull_begins_anew(
    new_images: NewImages, shop: Relay, offered: str
) -> None:
    images = new_images(offered)
    host, port = str(shop.upstream[0]), int(shop.upstream[1])
    shop.upstream = (host, free_port())
    failed_pull(images, offered)
    shop.upstream = (host, port)
    future = images.fetch(of(images, offered), print)
    assert future is not None
    future.result(DEADLINE_S)


def test_a_daemon_that_is_lost_in_the_middle_is_no_failure_of_the_image(
    new_images: NewImages, relay: Relay, shop: Relay, offered: str
) -> None:
    images = new_images(offered)
    shop.rate = PAYLOAD / 10
    engine = of(images, offered)
    waiting = [images.fetch(engine, print) for _ in range(2)]
    until(lambda: [each for each in images.pulls() if each.percent], "the pull did not begin")
    relay.cut()
    for future in waiting:
        assert future is not None
        assert isinstance(future.exception(DEADLINE_S), RuntimeLost)
    shop.rate = None
    relay.open()
    again = images.fetch(engine, print)
    assert again is not None
    again.result(DEADLINE_S)
    images.require(offered)


def test_only_some_pulls_run_at_a_time_and_one_that_waits_can_be_called_off(
    new_images: NewImages, relay: Relay, lab: Lab, store: str
) -> None:
    silent = Relay(None)
    try:
        *names, late = [f"{lab.unique(silent.address)}:x" for _ in range(AT_ONCE + 1)]
        images = new_images(*names, late)
        running = [images.fetch(of(images, name), print) for name in names]
        until(lambda: relay.count("POST", "/images/create") == AT_ONCE, "the pulls did not begin")
        waiting = images.fetch(of(images, late), print)
        for _ in range(20):  # time enough for one that does not wait
            images.views()
        assert [each.state for each in images.pulls()] == ["queued", *["pulling"] * AT_ONCE]
        assert relay.count("POST", "/images/create") == AT_ONCE
        assert waiting is not None
        assert waiting.cancel()
        images.close()
        for future in running:
            assert future is not None
            assert isinstance(future.exception(DEADLINE_S), LaunchError)
        assert relay.count("POST", "/images/create") == AT_ONCE
        with pytest.raises(LaunchError, match="being stopped"):
            images.fetch(of(images, late), print)
    finally:
        silent.cut()


def test_what_is_pulled_while_the_manager_ends_is_given_up(
    new_images: NewImages, shop: Relay, offered: str
) -> None:
    images = new_images(offered)
    shop.rate = PAYLOAD / 100
    future = images.fetch(of(images, offered), print)
    assert future is not None
    until(lambda: [each for each in images.pulls() if each.percent], "the pull did not begin")
    mine = {each for each in threading.enumerate() if each.name == "image-pull"}
    images.close()
    assert isinstance(future.exception(DEADLINE_S), LaunchError)
    until(lambda: not any(each.is_alive() for each in mine), "the pull goes on")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("write /var/lib/docker/tmp/GetImageBlob1: no space left on device", "no space left on device"),
        ("Get https://x.y/v2/: dial tcp: lookup x.y on 10.0.0.1:53: no such host", "no such host"),
        (
            "pull access denied for x, repository does not exist or may require 'docker login'",
            "access denied",
        ),
        ("manifest for x:y not found: manifest unknown: manifest unknown", "manifest unknown"),
        ("toomanyrequests: You have reached your pull rate limit", "no more pulls for now"),
        ("no matching manifest for linux/s390x in the manifest list entries", "for the processor"),
        ("Get https://x.y/v2/: net/http: TLS handshake timeout", "cannot reach the registry"),
        ("something that nobody foresaw", "something that nobody foresaw"),
    ],
)
def test_docker_s_words_become_a_cause_and_stay_whole_for_those_who_manage(words: str, said: str) -> None:
    error = cannot_be_had(parse("x/y:z"), words)
    assert "docker pull x/y:z" in error.message
    assert said in error.message
    assert "10.0.0.1" not in error.message
    assert words in (error.detail or "")


def test_the_tag_that_older_instructions_name_for_intel_is_put_right() -> None:
    error = cannot_be_had(parse("ghcr.io/ggml-org/llama.cpp:server-sycl"), "manifest unknown")
    assert "docker pull ghcr.io/ggml-org/llama.cpp:server-intel" in error.message


# --- the list ----------------------------------------------------------------------------------------


def test_the_list_shows_the_current_image_first_then_the_allowed_ones_that_are_here(
    new_images: NewImages, lab: Lab, server_image: str
) -> None:
    name = lab.tag(server_image, f"{lab.unique()}:b")
    other = lab.tag(server_image, f"{lab.unique()}:a")
    container = lab.client.containers.create(name)
    try:
        current, *rest = new_images(name, "no/such:*").views()
    finally:
        container.remove()
    assert (current.name, current.current, current.allowed, current.present) == (
        server_image,
        True,
        True,
        True,
    )
    assert [each.name for each in rest] == [name]
    assert rest[0].in_use
    assert rest[0].id == lab.client.images.get(server_image).id
    assert (rest[0].digest, rest[0].last_pulled) == (None, None)
    assert (rest[0].size or 0) > 1 << 20
    assert (rest[0].created or 0) > 1.6e9
    assert other not in [each.name for each in rest]


def test_a_current_image_that_is_not_here_is_listed_all_the_same(new_images: NewImages) -> None:
    (view,) = new_images(default="no/such:x").views()
    assert (view.name, view.present, view.id, view.size) == ("no/such:x", False, None, None)


def test_a_pulled_image_is_listed_with_its_digest_and_when_and_can_be_removed(
    new_images: NewImages, offered: str, server_image: str
) -> None:
    images = new_images(offered)
    begun, future = images.pull(offered)
    assert begun.image == offered
    future.result(DEADLINE_S)
    (view,) = images.views()[1:]
    assert view.name == offered
    assert (view.digest or "").startswith("sha256:")
    assert view.last_pulled is not None
    no_more_allowed = new_images()
    (kept,) = no_more_allowed.views()[1:]
    assert (kept.name, kept.allowed, kept.last_pulled) == (offered, False, view.last_pulled)
    assert no_more_allowed.remove(offered) == offered
    assert [each.name for each in no_more_allowed.views()] == [server_image]


def test_the_current_image_a_used_one_and_a_foreign_one_are_not_removed(
    new_images: NewImages, lab: Lab, server_image: str
) -> None:
    name = lab.build(f"{lab.unique()}:x", f"FROM {server_image}\nCOPY payload /payload\n", random_bytes=8)
    foreign = lab.tag(server_image, f"{lab.unique()}:x")
    images = new_images(name)
    container = lab.client.containers.create(name)
    try:
        with pytest.raises(Conflict, match=r"unable to remove|is using"):
            images.remove(name)
    finally:
        container.remove()
    with pytest.raises(Conflict, match="LLAMA_IMAGE"):
        images.remove(server_image)
    with pytest.raises(NotFound):
        images.remove(foreign)
    assert images.remove(name) == name
    with pytest.raises(NotFound):
        images.remove(name)
