"""The kinds of blocks that a layer is made of: one file for each kind, which knows everything about it.

A kind is a frozen dataclass with the fields of a specification, and the methods of `Body`. No other file asks which
kind a body is: what others need of it (routed experts, sizes in checkpoints) every body answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgemoe.model.blocks.attention import Attention, OutputGate
from edgemoe.model.blocks.block_indexer import BlockIndexer
from edgemoe.model.blocks.body import Body, RoutedExperts
from edgemoe.model.blocks.compressed_attention import BlockIndex, CompressedAttention
from edgemoe.model.blocks.cross_attention import CrossAttention
from edgemoe.model.blocks.dense_ffn import GatedFfn, PlainFfn
from edgemoe.model.blocks.fast_feedforward import FastFeedforward
from edgemoe.model.blocks.gated_delta import GatedDelta
from edgemoe.model.blocks.latent_attention import LatentAttention
from edgemoe.model.blocks.lightning import Lightning
from edgemoe.model.blocks.mamba import Mamba
from edgemoe.model.blocks.mamba2 import Mamba2
from edgemoe.model.blocks.moe import Moe, SharedExpert
from edgemoe.model.blocks.multilinear import Multilinear
from edgemoe.model.blocks.ngram_table import NgramTable
from edgemoe.model.blocks.peer import Peer
from edgemoe.model.blocks.routers import RouterSpec
from edgemoe.model.blocks.short_conv import ShortConv
from edgemoe.model.blocks.soft_moe import SoftMoe

__all__ = [
    "BODIES",
    "Attention",
    "BlockIndex",
    "BlockIndexer",
    "Body",
    "CompressedAttention",
    "CrossAttention",
    "FastFeedforward",
    "GatedDelta",
    "GatedFfn",
    "LatentAttention",
    "Lightning",
    "Mamba",
    "Mamba2",
    "Moe",
    "Multilinear",
    "NgramTable",
    "OutputGate",
    "Peer",
    "PlainFfn",
    "RoutedExperts",
    "RouterSpec",
    "SharedExpert",
    "ShortConv",
    "SoftMoe",
]

BODIES: Mapping[str, type] = MappingProxyType(
    {
        body.kind: body
        for body in (
            *(Attention, CompressedAttention, CrossAttention, FastFeedforward, GatedDelta, GatedFfn, LatentAttention),
            *(Lightning, Mamba, Mamba2, Moe, Multilinear, NgramTable, Peer, PlainFfn, ShortConv, SoftMoe),
        )
    }
)
"""Every kind of body by the name that stores give it."""
