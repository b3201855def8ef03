"""Checks of single fields of a container's body, each closed to everything it does not know.

For :mod:`.check`. A check yields what is wrong with a value as the rest of a sentence that starts with the name of
the field. It never raises, whatever the value is, and never says the value of a variable.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, TypeGuard

from llamaman.core.extra_args import normalise
from llamaman.core.extra_args_table import FLAGS
from llamaman.runtimes.docker.environment import may_be_set
from llamaman.runtimes.docker.files import FOLDER
from llamaman.runtimes.docker.labels import MANAGED, NAMES
from llamaman.runtimes.docker.walls import NO_NEW_PRIVILEGES, PORT

Check = Callable[[Any], Iterator[str]]

_MAX_ID: Final = (1 << 32) - 2
_PORT_NAME: Final = f"{PORT}/tcp"
_HEAD: Final = ("--model", None, "--host", "0.0.0.0", "--port", str(PORT), "--alias", None)
_OTHERS_NETWORKS: Final = frozenset({"", "host", "none", "bridge", "default"})
_ADDRESSING: Final = frozenset({
    "-m", "--model", "-a", "--alias", "--host", "--port", "--reuse-port", "--api-prefix",
    "--api-key", "--api-key-file", "--ui", "--webui",
})  # fmt: skip
_DEVICE = re.compile(r"/dev/(dri(/[\w.:-]+)*|kfd|dxg|nvidia[\w-]*(/[\w.-]+)*)", re.ASCII)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_ACCOUNT = re.compile(r"([1-9][0-9]{0,9}):([1-9][0-9]{0,9})")
_GPU_ID = re.compile(r"[A-Za-z0-9][\w-]{0,80}", re.ASCII)
_CDI_ID = re.compile(r"(nvidia|amd|intel)\.com/gpu=[\w:.-]{1,80}", re.ASCII)
_GPU_ABILITIES: Final = frozenset({"gpu", "nvidia", "amd", "compute", "utility", "graphics", "video"})
CPU_SET = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*")


def exactly(wanted: Any) -> Check:
    """Nothing but this value."""

    def check(value: Any) -> Iterator[str]:
        if _canonical(value) != _canonical(wanted):
            yield f" is refused: it must be {short(wanted)}, not {short(value)}"

    return check


def image(wanted: str) -> Check:
    """The image that was allowed, by the same reference."""

    def check(value: Any) -> Iterator[str]:
        if not isinstance(value, str) or not value or value != wanted:
            yield f" is refused: {short(value)} is not the image {short(wanted)} that was allowed for this launch"

    return check


def command(targets: Collection[str]) -> Check:
    """The eight words that LlamaMan needs first, then flags that a launch may have."""

    def check(value: Any) -> Iterator[str]:
        words = items(value)
        if words is not value or len(words) < len(_HEAD) or not all(isinstance(word, str) for word in words):
            yield " is refused: it must be a list of words that starts with --model, --host, --port and --alias"
            return
        for index, wanted in enumerate(_HEAD):
            if wanted is not None and words[index] != wanted:
                yield f" is refused: word {index + 1} must be {wanted}, not {short(words[index])}"
        if words[1] not in targets:
            yield f" is refused: the model {short(words[1])} is not among the mounted files"
        for word in words[len(_HEAD) :]:
            flag = FLAGS.get(normalise(word))
            if flag is not None and (flag.kind == "refused" or flag.name in _ADDRESSING):
                yield f" is refused: {flag.name} {flag.note and f'({flag.note}) '}is not for launches to set"

    return check


def user(value: Any) -> Iterator[str]:
    """An account of numbers that is not root."""
    found = _ACCOUNT.fullmatch(value) if isinstance(value, str) else None
    if found is None or any(int(number) > _MAX_ID for number in found.groups()):
        yield f" is refused: {short(value)} must be <uid>:<gid> as numbers, neither of them 0 (root)"


def environment(value: Any) -> Iterator[str]:
    """Variables of the printed list, the key and the home."""
    if not isinstance(value, list):
        yield " is refused: it must be a list of NAME=value"
        return
    seen: dict[str, str] = {}
    for entry in value:
        name, equals, content = entry.partition("=") if isinstance(entry, str) else ("", "", "")
        if not name or not equals:
            yield f" {short(name)} is refused: it must be NAME=value"
        elif not may_be_set(name):
            yield f" {short(name)} is refused: it is not on the list of variables that an engine may be given"
        elif name in seen:
            yield f" {name} is refused: it is given twice"
        elif "\0" in content or "\n" in content or len(content) > 4096:
            yield f" {name} is refused: its value must be one line of at most 4,096 characters"
        seen[name] = content
    if not seen.get("LLAMA_API_KEY"):
        yield " LLAMA_API_KEY is missing: the engine would answer everybody who reaches it"
    if seen.get("HOME") != "/tmp":  # noqa: S108 - the container's own
        yield " HOME is refused: it must be /tmp, the only place where the engine may write"


def labels(value: Any) -> Iterator[str]:
    """LlamaMan's labels, all of them and no other."""
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for text in value.values()):
        yield " is refused: it must be an object of texts"
        return
    for name in sorted(value.keys() ^ NAMES, key=str):
        yield f" {short(name)} is {'missing' if name in NAMES else 'refused: LlamaMan sets no such label'}"
    if value.get(MANAGED, "1") != "1":
        yield f" {MANAGED} is refused: it must be 1"


def security(profiles: Collection[str]) -> Check:
    """No way to more rights, and no seccomp profile but the named ones."""

    def check(value: Any) -> Iterator[str]:
        given = items(value)
        if NO_NEW_PRIVILEGES not in given:
            yield f" is refused: {NO_NEW_PRIVILEGES} is missing"
        for entry in given:
            named = isinstance(entry, str) and entry.partition("=")[0] == "seccomp"
            if entry != NO_NEW_PRIVILEGES and not (named and entry.partition("=")[2] in profiles):
                yield (
                    f" {short(entry)} is refused: only {NO_NEW_PRIVILEGES} and the seccomp profiles that an "
                    "administrator named are allowed"
                )
        if given is not value or len(given) != len({_canonical(entry) for entry in given}):
            yield " is refused: it must be a list in which nothing is there twice"

    return check


def network(wanted: str) -> Check:
    """LlamaMan's network, which must be one of its own."""

    def check(value: Any) -> Iterator[str]:
        if not isinstance(value, str) or value in _OTHERS_NETWORKS or ":" in value:
            yield f" is refused: {short(value)} is not a network of LlamaMan's own; set LLAMA_NETWORK to a new name"
        elif value != wanted:
            yield f" is refused: it must be {short(wanted)}, not {short(value)}"

    return check


def mounts(files: Collection[str]) -> Check:
    """All of the files, each alone and read-only, below the folder for them."""

    fixed = {"Type": "bind", "ReadOnly": True}

    def check(value: Any) -> Iterator[str]:
        given = items(value)
        if given is not value or not given:
            yield " is refused: it must be a list with the model's file in it"
        targets: set[str] = set()
        sources: set[str] = set()
        for mount in given:
            if not isinstance(mount, Mapping) or set(mount) != {*fixed, "Source", "Target"}:
                yield " is refused: a mount must have exactly Type, Source, Target and ReadOnly"
                continue
            source, target = mount["Source"], mount["Target"]
            for name, wanted in fixed.items():
                if _canonical(mount[name]) != _canonical(wanted):
                    yield f" is refused: {name} of {_name(source)} must be {wanted}, not {short(mount[name])}"
            if isinstance(source, str) and source in files:
                sources.add(source)
            else:
                yield f" is refused: {_name(source)} is not one of this model's files"
            if _is_place(target) and target not in targets:
                targets.add(target)
            else:
                yield f" is refused: {short(target)} is not a place of its own below {FOLDER}"
        for missing in sorted(set(files) - sources):
            yield f" is refused: {_name(missing)} is not mounted"

    return check


def _name(source: Any) -> str:
    """The file's name alone: where it lies on the machine is not for everybody who waits for the model."""
    return short(source.rstrip("/").rpartition("/")[2] if isinstance(source, str) else source)


def _is_place(target: Any) -> bool:
    if not isinstance(target, str) or not target.startswith(f"{FOLDER}/") or "\0" in target:
        return False
    return not {"", ".", ".."} & set(target.split("/")[2:])


def devices(value: Any) -> Iterator[str]:
    """GPU devices at their own paths."""
    given = items(value)
    if given is not value:
        yield " is refused: it must be a list"
    for device in given:
        path = device.get("PathOnHost") if isinstance(device, Mapping) else device
        wanted = {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"}
        if not isinstance(path, str) or not _DEVICE.fullmatch(path) or {".", ".."} & set(path.split("/")):
            yield (
                f" is refused: {short(path)} is none of the GPU devices /dev/dri/*, /dev/kfd, /dev/nvidia* "
                "and /dev/dxg"
            )
        elif _canonical(device) != _canonical(wanted):
            yield f" is refused: {short(device)} must be the same path inside, with CgroupPermissions rw"


def device_requests(value: Any) -> Iterator[str]:
    """GPUs by a driver or by the names that a vendor gave them."""
    given = items(value)
    if given is not value:
        yield " is refused: it must be a list"
    for request in given:
        if not isinstance(request, Mapping):
            yield f" is refused: {short(request)} must be an object"
            continue
        yield from (f" is refused: {wrong}" for wrong in _device_request(request))


def _device_request(request: Mapping[str, Any]) -> Iterator[str]:
    driver, ids, count = request.get("Driver", ""), request.get("DeviceIDs"), request.get("Count", 0)
    abilities = request.get("Capabilities")
    for name in sorted(set(request) - {"Driver", "Count", "DeviceIDs", "Capabilities"}, key=str):
        if name != "Options" or request[name] not in (None, {}):
            yield f"{short(name)} is not something an engine may ask for"
    if driver not in ("", "nvidia", "amd", "cdi"):
        yield f"Driver {short(driver)} must be nvidia, amd, cdi or empty"
    if not is_whole(count) or count < -1:
        yield f"Count {short(count)} must be a number of GPUs, or -1 for all"
    form = _CDI_ID if driver == "cdi" else _GPU_ID
    if ids is not None:
        if items(ids) is not ids or not all(isinstance(each, str) and form.fullmatch(each) for each in ids):
            yield f"DeviceIDs {short(ids)} must be a list of GPUs"
        elif ids and count:
            yield "DeviceIDs and Count exclude each other"
    if driver == "cdi" and not ids:
        yield "DeviceIDs must name the GPUs"
    if driver == "cdi" and not abilities:
        return
    sets = items(abilities)
    words = [word for each in sets for word in items(each)]
    known = all(isinstance(word, str) and word in _GPU_ABILITIES for word in words)
    if sets is not abilities or not known or not all("gpu" in items(each) for each in sets) or not sets:
        yield f"Capabilities {short(abilities)} must be lists with gpu in each, such as [['gpu']]"


def groups(value: Any) -> Iterator[str]:
    """Groups by number."""
    # A group opens nothing by itself: all that the container sees are the files and devices checked here.
    given = items(value)
    if given is not value:
        yield " is refused: it must be a list"
    for group in given:
        if not isinstance(group, str) or not _NUMBER.fullmatch(group) or int(group) > _MAX_ID:
            yield f" is refused: {short(group)} must be the number of a group; names mean others in an image"


def ports(value: Any) -> Iterator[str]:
    """The engine's port on an address of this machine alone."""
    if not isinstance(value, Mapping) or set(value) != {_PORT_NAME}:
        yield f" is refused: an engine has no port but {_PORT_NAME}"
        return
    bindings = items(value[_PORT_NAME])
    if (
        len(bindings) != 1
        or not isinstance(bindings[0], Mapping)
        or set(bindings[0]) != {"HostIp", "HostPort"}
    ):
        yield " is refused: it must hold one binding with HostIp and HostPort"
        return
    address, port = bindings[0]["HostIp"], bindings[0]["HostPort"]
    if not _is_loopback(address):
        yield f" is refused: HostIp {short(address)} is not this machine's own (127.0.0.1), so others could call it"
    if not isinstance(port, str) or not _NUMBER.fullmatch(port) or not 1 <= int(port) <= 65535:
        yield f" is refused: HostPort {short(port)} must be from 1 to 65535"


def _is_loopback(address: Any) -> bool:
    try:
        return isinstance(address, str) and ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def whole_number(low: int, high: int, unit: str) -> Check:
    """An integer in a range."""

    def check(value: Any) -> Iterator[str]:
        if not is_whole(value) or not low <= value <= high:
            yield f" is refused: {short(value)} must be from {low} to {high} {unit}"

    return check


def one_of(*choices: str) -> Check:
    """One of a few words."""

    def check(value: Any) -> Iterator[str]:
        if not isinstance(value, str) or value not in choices:
            yield f" is refused: {short(value)} must be one of {', '.join(choices)}"

    return check


def text_like(form: re.Pattern[str], allowed: str) -> Check:
    """Text of one form."""

    def check(value: Any) -> Iterator[str]:
        if not isinstance(value, str) or not form.fullmatch(value):
            yield f" is refused: {short(value)} must be {allowed}"

    return check


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a JSON integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def items(value: Any) -> list[Any]:
    """The value itself if it is a list, else a list of nothing."""
    return value if isinstance(value, list) else []


def _canonical(value: Any) -> str:
    """As JSON, which tells true from 1 and 1 from 1.0, as the daemon does."""
    try:
        return json.dumps(value, sort_keys=True, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys of several kinds, a circle, a chain without end
        return f"no JSON ({type(value).__name__})"


def short(value: Any) -> str:
    """A value in a sentence."""
    try:
        text = value if isinstance(value, str) and value.isprintable() and value else ascii(value)
    except RecursionError:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."
