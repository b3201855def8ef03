"""Tiny random GGUF models, so that tests can use a real engine everywhere.

For test authors, ours and those of plugins. A model written here is a complete llama-architecture file with
random weights, a byte vocabulary and a chat template: a real server loads it in some 50 ms and answers in
milliseconds. Its text is noise in lower-case letters and spaces, and it never ends by itself unless asked
to, so an answer is exactly as long as ``max_tokens`` allows.

Needs the ``gguf`` package, which is imported on the first call only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_UNKNOWN, _BEGIN, _END, _FIRST_BYTE = 0, 1, 2, 3
_VOCABULARY = _FIRST_BYTE + 256
_LIKELY = b"abcdefghijklmnopqrstuvwxyz      "


def write_tiny_model(
    path: Path,
    *,
    context_length: int = 16_384,
    seed: int = 1,
    embedding: bool = False,
    ends: bool = False,
    layers: int = 2,
    width: int = 64,
    name: str | None = None,
    metadata: Mapping[str, str | int | float | bool] | None = None,
    chat_template: str = _CHAT_TEMPLATE,
    follows: Mapping[str, str] | None = None,
) -> Path:
    """Write a random model to ``path`` (its folder must exist) and return ``path``.

    The same arguments give the same bytes.

    :param context_length: tokens the model says it was trained for; one byte of text is one token.
    :param embedding: mark it as an embedding model (mean pooling), as such files in the wild are.
    :param ends: let it end its answers by itself, after some 25 tokens on average.
    :param layers: 2 gives a file of about 250 KB; see :func:`write_slow_model` for a slow one.
    :param width: size of the hidden state, a multiple of 32.
    :param name: the ``general.name`` of the file; the file stem by default.
    :param metadata: further keys to write, such as ``{"llama.nextn_predict_layers": 1}``.
    :param chat_template: what the engine makes prompts with, and runs while it loads the model.
    :param follows: character (one byte) -> the one that comes after it, or "" for the end of the answer, wherever
        a grammar allows that. The model then looks at the last byte alone.
    """
    import gguf
    import numpy as np

    heads, feed_forward = max(1, width // 32), 2 * width
    random = np.random.default_rng(seed)

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(name or path.stem)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(context_length)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    if embedding:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    _add_vocabulary(writer)
    writer.add_chat_template(chat_template)
    for key, value in (metadata or {}).items():
        _add_value(writer, key, value)

    def matrix(rows: int, columns: int) -> NDArray[Any]:
        weights: NDArray[Any] = random.standard_normal((rows, columns)) / columns**0.5
        return weights.astype(np.float16)

    ones = np.ones(width, dtype=np.float32)
    # The first hidden unit is the same for every token and no layer writes to it, so that the first column
    # of the output matrix is a bias: it alone decides which bytes come out at all.
    tokens = matrix(_VOCABULARY, width)
    tokens[:, 0] = 0.5
    output = matrix(_VOCABULARY, width)
    output[:, 0] = _output_bias(ends=ends)
    for before, after in (follows or {}).items():
        following = _FIRST_BYTE + ord(after) if after else _END
        output[following, 1:] += 60 * tokens[_FIRST_BYTE + ord(before), 1:]
    writer.add_tensor("token_embd.weight", tokens)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    for layer in range(layers):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", ones)
        writer.add_tensor(f"{block}.ffn_norm.weight", ones)
        for part in ("attn_q", "attn_k", "attn_v"):
            writer.add_tensor(f"{block}.{part}.weight", matrix(width, width))
        for part, rows, columns in (("attn_output", width, width), ("ffn_down", width, feed_forward)):
            weights = matrix(rows, columns) * np.float16(0.5 / layers**0.5)
            weights[slice(None) if follows else 0, :] = 0
            writer.add_tensor(f"{block}.{part}.weight", weights)
        for part in ("ffn_gate", "ffn_up"):
            writer.add_tensor(f"{block}.{part}.weight", matrix(feed_forward, width))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_slow_model(path: Path, **changes: Any) -> Path:
    """Like :func:`write_tiny_model`, but deep: about 4 MB, some 350 tokens a second on one thread.

    A 2,000-token answer takes several seconds, and so does reading a prompt of 5,000 tokens (bytes).
    """
    return write_tiny_model(path, **({"layers": 48} | changes))


def _output_bias(*, ends: bool) -> NDArray[Any]:
    """The first column of the output matrix: high for likely bytes, far below for everything else."""
    import numpy as np

    bias = np.full(_VOCABULARY, -40.0, dtype=np.float16)
    for byte in set(_LIKELY):
        bias[_FIRST_BYTE + byte] = 10.0
    if ends:
        bias[_END] = 10.0
    return bias


def _add_vocabulary(writer: Any) -> None:
    import gguf

    special = [(b"<unk>", gguf.TokenType.UNKNOWN), (b"<s>", gguf.TokenType.CONTROL)]
    special.append((b"</s>", gguf.TokenType.CONTROL))
    as_bytes = [(f"<0x{byte:02X}>".encode(), gguf.TokenType.BYTE) for byte in range(256)]
    pieces = special + as_bytes
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_scores([0.0] * len(pieces))
    writer.add_token_types([kind for _, kind in pieces])
    writer.add_unk_token_id(_UNKNOWN)
    writer.add_bos_token_id(_BEGIN)
    writer.add_eos_token_id(_END)
    writer.add_add_space_prefix(False)


def _add_value(writer: Any, key: str, value: str | float | bool) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)
