"""A model that says the same sensible things on every machine, in a file of some 300 KB.

For tests with real clients, which need words, a tool call and thoughts that a real engine produces, parses and
streams. Guarantees: whatever the sampler's settings, each token is followed by the one that the script names,
because the weights are a table of successors (no attention, no feed-forward). A grammar, a schema or a stop
string still rules, as with every model. Each answer ends by itself.

- without tools: :data:`WORDS`
- with tools, after a user's turn: the call :data:`CALL`
- after a tool's turn: :data:`WEATHER`
- one that thinks: :data:`THOUGHT`, unless it may not, and :data:`WORDS`
"""

from __future__ import annotations

from pathlib import Path

WORDS = "Llamas are friendly animals\u2028that hum."  # with a line separator that careless readers split at
WEATHER = "It is sunny in Paris."
CALL = {"name": "get_weather", "arguments": {"city": "Paris"}}
THOUGHT = "Hm, llamas."

#: After the first piece of a row come the others, then the end of the answer.
_SCRIPT = (
    ("<|im_start|>assistant\n", "Llamas", " are", " friendly", " animals", "\u2028", "that", " hum", "."),
    ("!tool\n<|im_start|>assistant\n", "It", " is", " sunny", " in", " Paris."),
    (
        "!call\n<|im_start|>assistant\n",
        "<tool_call>",
        '\n{"name": ',
        '"get_weather"',
        ', "arguments": {',
        '"city": "Pa',
        'ris"}',
        "}\n</tool_call>",
    ),
)

#: The template of the Hermes family, which engines know; the marks before a turn choose the row of the script.
_TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call functions. Their signatures are within <tools></tools>:
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
For each call return a json object within <tool_call></tool_call>:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>{{ '!tool' if loop.last else '' }}
{% else %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>{{ '!call' if loop.last and tools else '' }}
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

_THINKING_SCRIPT = (
    ("<|im_start|>assistant\n", "<think>\n", "Hm,", " llamas.", "\n</think>\n\n", *_SCRIPT[0][1:]),
)

#: The template of the Qwen family, without tools.
_THINKING_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content or '' }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""

_WIDTH = 256
_UNKNOWN, _BEGIN, _END, _FIRST_BYTE = 0, 1, 2, 3


def write_scripted_model(path: Path, *, thinks: bool = False, context_length: int = 8192) -> Path:
    """Write the model to ``path`` (its folder must exist) and return ``path``."""
    import gguf
    import numpy as np

    script = _THINKING_SCRIPT if thinks else _SCRIPT
    special = [
        ("<unk>", gguf.TokenType.UNKNOWN),
        ("<s>", gguf.TokenType.CONTROL),
        ("</s>", gguf.TokenType.CONTROL),
    ]
    bytes_ = [(f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)]
    pieces = [(piece, gguf.TokenType.USER_DEFINED) for row in script for piece in row]
    vocabulary = special + bytes_ + pieces
    number = {text: index for index, (text, _) in enumerate(vocabulary)}
    assert len(number) == len(vocabulary), "a piece has one successor, so it may occur once"

    random = np.random.default_rng(7)
    tokens = random.standard_normal((len(vocabulary), _WIDTH)).astype(np.float32) / _WIDTH**0.5
    tokens[_FIRST_BYTE : _FIRST_BYTE + 256] = tokens[_FIRST_BYTE]  # all bytes lead to the same successor
    output = np.zeros_like(tokens)
    for row in script:
        for piece, successor in zip(row, [*(number[each] for each in row[1:]), _END], strict=True):
            output[successor] += 6 * tokens[number[piece]]
    output[number[_SCRIPT[0][1]]] += 6 * tokens[_FIRST_BYTE]  # a bare prompt is answered with the words

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(context_length)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(8)
    writer.add_head_count_kv(8)
    writer.add_rope_dimension_count(_WIDTH // 8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text.encode() for text, _ in vocabulary])
    writer.add_token_scores([0.0] * len(vocabulary))
    writer.add_token_types([kind for _, kind in vocabulary])
    writer.add_unk_token_id(_UNKNOWN)
    writer.add_bos_token_id(_BEGIN)
    writer.add_eos_token_id(_END)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(_THINKING_TEMPLATE if thinks else _TEMPLATE)
    ones = np.ones(_WIDTH, dtype=np.float32)
    writer.add_tensor("token_embd.weight", tokens)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    for norm in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{norm}.weight", ones)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{part}.weight", np.zeros((_WIDTH, _WIDTH), dtype=np.float16))
    for part, rows, columns in (("ffn_up", 32, _WIDTH), ("ffn_gate", 32, _WIDTH), ("ffn_down", _WIDTH, 32)):
        writer.add_tensor(f"blk.0.{part}.weight", np.zeros((rows, columns), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
