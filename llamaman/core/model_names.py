"""How a name that a client wrote finds a model, and the form of names in lists whose grammar is narrow. Pure.

Read by the library and, through the public API, by dialects that look models up themselves. A model has its name
(unique, lower case), aliases from its preset, and its listed name (:func:`plain_name`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from llamaman.core.config_values import has_controls
from llamaman.errors import ModelNotFound
from llamaman.limits import NAME
from llamaman.records import ModelView

_CANDIDATES = 10
_LATEST = ":latest"
#: What Ollama's clients may write before a name and leaves out where it prints one.
_DEFAULTS = ("registry.ollama.ai/", "library/")

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,79}"
_PLAIN = re.compile(rf"{_PART}(?::{_PART})?")
_ODD = re.compile(r"[^A-Za-z0-9_.\-]")
_LONGEST_PART = 80
_MARK = 6


def key_of(name: str) -> str:
    """The form in which names are compared: in lower case, without space around it and ``:latest``."""
    return name.strip().lower().removesuffix(_LATEST)


def plain_name(name: str) -> str:
    """A model's name within the grammar of Ollama's names: itself, or a stand-in that looks like it.

    The grammar is ``part`` or ``part:tag``, each of up to 80 ASCII letters, digits and ``_.-``, not beginning with
    ``.`` or ``-``. A stand-in ends in a mark made from the name, so it stays the same whatever else there is.
    """
    if _PLAIN.fullmatch(name):
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_MARK]
    odd = _ODD.sub("_", name).lstrip(".-")
    return f"{(odd or '_')[: _LONGEST_PART - _MARK - 1]}-{mark}"


def known_names(models: Iterable[ModelView]) -> dict[str, str]:
    """Everything that stands for exactly one model, in the form of :func:`key_of` -> the model's name.

    A name counts before an alias, and an alias before a stand-in.
    """
    models = tuple(models)
    known: dict[str, str] = {}
    for model in models:
        plain = plain_name(model.name)
        if plain != model.name:
            known.setdefault(key_of(plain), model.name)
    for model in reversed(models):
        known.update((key_of(alias), model.name) for alias in model.aliases)
    known.update((model.name, model.name) for model in models)
    return known


def find_name(given: str, known: Mapping[str, str], prefixes: Collection[str]) -> str:
    """The name that a client means: exact or an alias, then a unique prefix; in any case, with or without ``:latest``.

    :param known: :func:`known_names`.
    :param prefixes: the names that a prefix may stand for.
    :raises ModelNotFound: with the candidates when several names start like this.
    """
    if len(given) > NAME + len("".join(_DEFAULTS)) + len(_LATEST) or has_controls(given):
        raise ModelNotFound("".join(char for char in given[:NAME] if char.isprintable()))
    wanted = given.strip().lower()
    for default in _DEFAULTS:
        wanted = wanted.removeprefix(default)
    for form in dict.fromkeys((given.strip().lower(), key_of(given), wanted, key_of(wanted))):
        found = known.get(form) or known.get(form.removesuffix(".gguf"))
        if found is not None:
            return found
    wanted = wanted.removesuffix(_LATEST)
    candidates = sorted(name for name in prefixes if name.startswith(wanted)) if wanted else []
    if len(candidates) == 1:
        return candidates[0]
    raise ModelNotFound(given, candidates[:_CANDIDATES])


def find_model(given: str, models: Sequence[ModelView]) -> ModelView:
    """The one of some models that a client's name means; see :func:`find_name`.

    :raises ModelNotFound: with the candidates when several names start like this.
    """
    for form in (
        given.strip().lower(),
        key_of(given),
    ):  # the common case, without an index of all other names
        for model in models:
            if model.name == form:
                return model
    runnable = [model.name for model in models if model.runnable]
    name = find_name(given, known_names(models), runnable)
    return next(model for model in models if model.name == name)
