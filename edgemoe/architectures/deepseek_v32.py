"""DeepSeek-V3.2 and GLM-5: DeepSeek-V3 with an indexer, by which a token sees the `index_topk` best of earlier ones.

Up to `index_topk` tokens these are all, and the model is the same without the indexer; its tensors are left out, and a
longer context is refused (`ModelSpec.positions_limit`).
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_POSITIONS, ConfigReader
from edgemoe.architectures.latent import DEEPSEEK as TENSORS
from edgemoe.architectures.latent import read_deepseek
from edgemoe.model.spec import ModelSpec

__all__ = ["TENSORS", "read"]

_CLASSES = {"deepseek_v32": "DeepseekV32ForCausalLM", "glm_moe_dsa": "GlmMoeDsaForCausalLM"}


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    family = reader.value("model_type")
    spec = read_deepseek(
        reader, family, own_code=_CLASSES[family], default_dense=3, layer_types=("indexed_attention",), interleaved=True
    )
    seen = reader.integer("index_topk", maximum=LARGEST_POSITIONS, default=2048)
    # What the indexer is like, and which layers take the choice of an earlier one.
    reader.skip("index_n_heads", "index_head_dim", "indexer_types", "index_topk_pattern", "index_topk_freq")
    reader.skip("index_skip_topk_offset", "indexer_rope_interleave", "index_share_for_mtp_iteration")
    return replace(spec, max_positions=min(seen, spec.max_positions), positions_limit="indexer")
