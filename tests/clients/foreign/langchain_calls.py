"""Functions over langchain-ollama for tests in another process; see ``foreign_env.ForeignClient``."""

from __future__ import annotations

import os
from typing import Any

from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM

URL = os.environ["CLIENT_URL"]
KEY = {"headers": {"Authorization": f"Bearer {os.environ['CLIENT_KEY']}"}}


@tool
def get_weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


def _chat(model: str, **options: Any) -> ChatOllama:
    return ChatOllama(model=model, base_url=URL, client_kwargs=KEY, **options)


def invoke(model: str, text: str, **options: Any) -> dict[str, Any]:
    """One answer."""
    return _chat(model, **options).invoke(text).model_dump()


def stream(model: str, text: str, **options: Any) -> list[dict[str, Any]]:
    """All chunks."""
    return [chunk.model_dump() for chunk in _chat(model, **options).stream(text)]


def use_tool(model: str, text: str) -> dict[str, Any]:
    """The calls of the first answer and the text of the second."""
    from langchain_core.messages import HumanMessage, ToolMessage

    chat = _chat(model).bind_tools([get_weather])
    first = chat.invoke(text)
    results = [
        ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]) for call in first.tool_calls
    ]
    return {"calls": first.tool_calls, "end": chat.invoke([HumanMessage(text), first, *results]).content}


def structured(model: str, text: str, schema: dict[str, Any]) -> Any:
    """An answer in a schema."""
    return _chat(model).with_structured_output(schema, method="json_schema").invoke(text)


def complete(model: str, text: str) -> str:
    """The old interface, over generate."""
    return OllamaLLM(model=model, base_url=URL, client_kwargs=KEY).invoke(text)


def embed(model: str, texts: list[str]) -> list[list[float]]:
    """Vectors of documents."""
    return OllamaEmbeddings(model=model, base_url=URL, client_kwargs=KEY).embed_documents(texts)
