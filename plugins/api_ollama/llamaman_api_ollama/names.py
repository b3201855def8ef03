"""Names of models as clients of Ollama write them: ``[host/][namespace/]model[:tag]``. Pure.

How a name finds a model is LlamaMan's business (:func:`llamaman.find_model`); here are Ollama's grammar, its default
parts, its suffixes for local and cloud models, and the names of HuggingFace's repositories.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from llamaman import Forbidden, InvalidField, ModelNotFound, ModelView, find_model

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
NO_CLOUD = "ollama cloud is disabled: remote model is unavailable"

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,79}")
_SPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-:]{0,349}")
_HF = ("hf.co", "huggingface.co")


class Name(NamedTuple):
    """A name with all of its parts."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def is_valid(self) -> bool:
        """Whether every part keeps to the grammar."""
        return bool(
            _HOST.fullmatch(self.host)
            and _SPACE.fullmatch(self.namespace)
            and _PART.fullmatch(self.model)
            and _PART.fullmatch(self.tag)
        )

    @property
    def full(self) -> str:
        """All parts: ``registry.ollama.ai/library/x:latest``."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def display(self) -> str:
        """Without default host and namespace, but always with the tag."""
        if self.host != HOST:
            return self.full
        return f"{self.model}:{self.tag}" if self.namespace == NAMESPACE else self.full[len(HOST) + 1 :]


def parse(text: str) -> Name:
    """Read a name from the right, as Ollama does; parts that are not there have their defaults."""
    rest, tag = text.strip(), TAG
    colon = rest.rfind(":")
    if colon > rest.rfind("/"):
        rest, tag = rest[:colon], rest[colon + 1 :]
    rest, slash, model = rest.rpartition("/")
    if not slash:
        return Name(HOST, NAMESPACE, model, tag)
    host, slash, namespace = rest.rpartition("/")
    return Name(host.rpartition("://")[2] if slash else HOST, namespace, model, tag)


def local(text: str) -> str:
    """A name without what says where the model is.

    :raises InvalidField: it says both. :raises Forbidden: it is one of ollama.com's.
    """
    name = text.strip()
    is_local = name.lower().endswith(":local")
    if is_local:
        name = name[: -len(":local")]
    tag = name.lower().rpartition(":")[2] if ":" in name.rpartition("/")[2] else ""
    is_cloud = tag == "cloud" or tag.endswith("-cloud")
    if is_local and is_cloud:
        raise InvalidField("model", "use either :local or :cloud, not both")
    if is_cloud:
        raise Forbidden(NO_CLOUD, field="model")
    return name


def resolve(text: str, models: Sequence[ModelView]) -> ModelView | None:
    """The model that a name means, None for one that keeps to the grammar and means nothing here.

    :raises ModelNotFound: it means several. :raises InvalidField: it is no name. :raises Forbidden: see :func:`local`.
    """
    name = local(text)
    for candidate in (name, *_of_huggingface(name)):
        try:
            return find_model(candidate, models)
        except ModelNotFound as error:
            if error.candidates:
                raise
    if not parse(name).is_valid:
        raise InvalidField("model", "invalid model name")
    return None


def _of_huggingface(text: str) -> list[str]:
    """What the file of ``hf.co/user/repo:quant`` is likely to be called here."""
    name = parse(text)
    if name.host.lower() not in _HF:
        return []
    stem = re.sub(r"[-_.]gguf$", "", name.model.lower())
    if name.tag == TAG:
        return [stem]
    return [f"{stem}{separator}{name.tag.lower()}" for separator in "-._"]
