"""A model that sees, in two files of some 200 KB, for real engines.

Guarantees that an engine decodes every picture that it is given, as it does for a model that knows what it sees.
"""

from __future__ import annotations

from pathlib import Path

from llamaman.testing import write_tiny_model

NAME = "eyes"
_WIDTH = 64  # of the tiny model's hidden state
_SIDE, _PATCH, _HIDDEN, _FEED_FORWARD, _LAYERS = 32, 16, 32, 64, 2


def write_seeing_model(folder: Path) -> None:
    """Write ``eyes.gguf`` and its projector into a folder."""
    write_tiny_model(folder / f"{NAME}.gguf")
    _write_projector(folder / f"mmproj-{NAME}.gguf")


def _write_projector(path: Path) -> None:
    """A vision transformer with random weights and LLaVA's projector."""
    import gguf
    import numpy as np
    from numpy.typing import NDArray

    random = np.random.default_rng(3)

    def weights(*shape: int) -> NDArray[np.float32]:
        return (random.standard_normal(shape) / 8).astype(np.float32)

    writer = gguf.GGUFWriter(str(path), "clip")
    writer.add_name(path.stem)
    writer.add_type("mmproj")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "image_size": _SIDE,
        "patch_size": _PATCH,
        "embedding_length": _HIDDEN,
        "feed_forward_length": _FEED_FORWARD,
        "block_count": _LAYERS,
        "projection_dim": _WIDTH,
        "attention.head_count": 2,
    }
    for key, value in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    writer.add_tensor("v.patch_embd.weight", weights(_HIDDEN, 3, _PATCH, _PATCH))
    writer.add_tensor("v.position_embd.weight", weights((_SIDE // _PATCH) ** 2, _HIDDEN))
    layers = {
        "attn_q": (_HIDDEN, _HIDDEN),
        "attn_k": (_HIDDEN, _HIDDEN),
        "attn_v": (_HIDDEN, _HIDDEN),
        "attn_out": (_HIDDEN, _HIDDEN),
        "ffn_up": (_FEED_FORWARD, _HIDDEN),
        "ffn_down": (_HIDDEN, _FEED_FORWARD),
        "ln1": (_HIDDEN,),
        "ln2": (_HIDDEN,),
    }
    linear = {f"v.blk.{block}.{name}": shape for block in range(_LAYERS) for name, shape in layers.items()}
    linear |= {"mm.0": (_WIDTH, _HIDDEN), "mm.2": (_WIDTH, _WIDTH)}
    for name, shape in linear.items():
        writer.add_tensor(f"{name}.weight", weights(*shape))
        writer.add_tensor(f"{name}.bias", weights(shape[0]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
