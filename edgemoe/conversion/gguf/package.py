"""Imports from the optional package `gguf`: the names and numbers of the format, and its header writer."""

from __future__ import annotations

from edgemoe.errors import SourceError

try:
    from gguf import (
        GGML_QUANT_SIZES,
        GGML_QUANT_VERSION,
        GGUF_MAGIC,
        MODEL_TENSOR,
        TENSOR_NAMES,
        ExpertGatingFuncType,
        GGMLQuantizationType,
        GGUFValueType,
        GGUFWriter,
        RopeScalingType,
        TokenType,
    )
except ImportError as error:
    raise SourceError(
        "GGUF files need the package `gguf`, which is not installed.", "Run: pip install 'edgemoe[gguf]'"
    ) from error

__all__ = [
    "GGML_QUANT_SIZES",
    "GGML_QUANT_VERSION",
    "GGUF_MAGIC",
    "MODEL_TENSOR",
    "TENSOR_NAMES",
    "ExpertGatingFuncType",
    "GGMLQuantizationType",
    "GGUFValueType",
    "GGUFWriter",
    "RopeScalingType",
    "TokenType",
]
