"""The environment variables that an engine in a container may be given. Closed: what is not named here is refused.

For the check of containers and for the documentation. Left out on purpose: what makes a program load code
(``LD_*``, ``GGML_BACKEND_PATH``, ``CUDA_INJECTION64_PATH``, ``HSA_TOOLS_LIB``, ``VK_ICD_FILENAMES``), what gives
llama-server further options (``LLAMA_ARG_*``, ``AIP_*``), and what sends it to the network (``HF_*``, proxies).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

#: Set by LlamaMan on every container.
OURS: Final = ("HOME", "LLAMA_API_KEY")

#: What GPU plugins may set, by the program that reads it.
VENDORS: Final[Mapping[str, tuple[str, ...]]] = {
    "NVIDIA container toolkit": ("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
    "CUDA": (
        "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MODULE_LOADING", "CUDA_LAUNCH_BLOCKING",
        "CUDA_SCALE_LAUNCH_QUEUES", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_CACHE_DISABLE", "CUDA_CACHE_MAXSIZE",
        "CUDA_DISABLE_PERF_BOOST",
    ),
    "ROCm": (
        "HIP_VISIBLE_DEVICES", "HIP_LAUNCH_BLOCKING", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL",
        "GPU_MAX_HW_QUEUES", "HSA_OVERRIDE_GFX_VERSION", "HSA_ENABLE_SDMA", "HSA_ENABLE_PEER_SDMA", "HSA_XNACK",
        "ROCBLAS_USE_HIPBLASLT",
    ),
    "Intel": (
        "ONEAPI_DEVICE_SELECTOR", "ZES_ENABLE_SYSMAN", "ZE_AFFINITY_MASK", "ZE_FLAT_DEVICE_HIERARCHY",
        "UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS", "UR_L0_USE_IMMEDIATE_COMMANDLISTS", "UR_L0_BATCH_SIZE",
        "UR_L0_USE_COPY_ENGINE", "UR_L0_USE_DRIVER_INORDER_LISTS", "UR_L0_DEVICE_SCOPE_EVENTS",
        "SYCL_PI_LEVEL_ZERO_USE_IMMEDIATE_COMMANDLISTS", "SYCL_CACHE_PERSISTENT",
    ),
    "Moore Threads": ("MUSA_VISIBLE_DEVICES",),
    "llama.cpp with CUDA or ROCm": (
        "GGML_CUDA_DEVICES", "GGML_CUDA_DISABLE_FUSION", "GGML_CUDA_DISABLE_GRAPHS",
        "GGML_CUDA_ENABLE_UNIFIED_MEMORY", "GGML_CUDA_GRAPH_OPT", "GGML_CUDA_NO_PINNED", "GGML_CUDA_P2P",
        "GGML_CUDA_REGISTER_HOST",
    ),
    "llama.cpp with SYCL": (
        "GGML_SYCL_DEBUG", "GGML_SYCL_DISABLE_DNN", "GGML_SYCL_DISABLE_GRAPH", "GGML_SYCL_DISABLE_OPT",
        "GGML_SYCL_PRIORITIZE_DMMV",
    ),
    "llama.cpp with Vulkan": (
        "GGML_VK_VISIBLE_DEVICES", "GGML_VK_ALLOW_SYSMEM_FALLBACK", "GGML_VK_DISABLE_BFLOAT16",
        "GGML_VK_DISABLE_COOPMAT", "GGML_VK_DISABLE_COOPMAT2", "GGML_VK_DISABLE_F16", "GGML_VK_DISABLE_FUSION",
        "GGML_VK_DISABLE_GRAPH_OPTIMIZE", "GGML_VK_DISABLE_HOST_VISIBLE_VIDMEM",
        "GGML_VK_DISABLE_INTEGER_DOT_PRODUCT", "GGML_VK_FORCE_MAX_ALLOCATION_SIZE",
        "GGML_VK_PREFER_HOST_MEMORY", "GGML_VK_SUBALLOCATION_BLOCK_SIZE",
    ),
}  # fmt: skip

#: ``HSA_OVERRIDE_GFX_VERSION_<n>`` is the form for one device of several.
_NUMBERED: Final = re.compile(r"HSA_OVERRIDE_GFX_VERSION_[0-9]{1,2}")

_NAMES: Final = frozenset({*OURS, *(name for names in VENDORS.values() for name in names)})


def may_be_set(name: str) -> bool:
    """Whether a container may be given a variable of this name."""
    return name in _NAMES or _NUMBERED.fullmatch(name) is not None
