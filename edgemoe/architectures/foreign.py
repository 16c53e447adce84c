"""Recognises checkpoints that are quantised, or saved from within another program's wrapper, by their tensor names.

Thus an error can report what the checkpoint holds, and not only what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from edgemoe.errors import SourceError

_QUANTISED: tuple[tuple[str, str], ...] = (
    ("GPTQ", r"\.g_idx"),
    ("GPTQ or AWQ", r"\.(qweight|qzeros)"),
    (
        "bitsandbytes",
        r"\.(SCB|absmax|quant_map|nested_absmax|nested_quant_map|weight_format|quant_state\.bitsandbytes__\w+)",
    ),
    ("compressed-tensors", r"\.weight_(packed|shape|zero_point|g_idx|global_scale)"),
    ("FP8", r"\.(weight_scale|weight_scale_inv|input_scale|activation_scale|gate_up_proj_scale|down_proj_scale)"),
    ("MXFP4", r"\.\w+_(blocks|scales)"),
    ("MLX", r"\.(scales|biases)"),
)
"""Quantisation methods with tensor-name suffixes that only their checkpoints have; the first match is reported."""

_ANY_QUANTISED = re.compile("|".join(f"(?:{pattern}$)" for _, pattern in _QUANTISED))

_ADAPTER, _MERGE = ".lora_", "Merge it into its model with peft (merge_and_unload)."
_UNDECLARED = (
    "If config.json lost the quantization_config that it was published with, put it back; else use the checkpoint's"
    " unquantised version, or a GGUF of it."
)


def refuse_quantised_tensors(names: Collection[str], expected: Collection[str] = ()) -> None:
    """Raises SourceError if the names show that another program has quantised the weights.

    `expected` are the names of a family's table, with `{layer}` and `{expert}`: such tensors are quantised and read.
    """
    patterns = [re.escape(name) for name in expected if _ANY_QUANTISED.search(name)]
    known = re.compile("|".join(re.sub(r"\\\{\w+\\\}", r"\\d+", pattern) for pattern in patterns) or "(?!)")
    suspects = [name for name in names if _ANY_QUANTISED.search(name) and not known.fullmatch(name)]
    for name in suspects:
        codes = name.removesuffix("_scales") + "_blocks"
        if name.endswith("_scales") and codes not in names and known.fullmatch(codes):
            raise SourceError(
                f"{codes}: missing; {name} has its scales.",
                "Was the checkpoint cut short or altered? Download it again.",
            )
    for method, pattern in _QUANTISED if suspects else ():
        found = sorted(name for name in suspects if re.search(pattern + "$", name))
        if found:
            raise SourceError(
                f"{found[0]}: expected unquantised weights, found quantised ones ({method}):"
                f" {len(found)} of the names are like this.",
                _UNDECLARED,
            )


def refuse_adapter_tensors(left: Collection[str]) -> None:
    """Raises SourceError if tensors that the model does not have are a LoRA adapter's, which would change it."""
    found = sorted(name for name in left if _ADAPTER in name)
    if found:
        raise SourceError(
            f"{found[0]}: expected weights of a whole model, found the matrices of a LoRA adapter:"
            f" {len(found)} of the names are like this.",
            _MERGE,
        )


def instead_of(missing: str, names: Collection[str], unlisted: Mapping[str, str]) -> tuple[str, str] | None:
    """Describe what a checkpoint has in place of a missing tensor, and the remedy; None if nothing resembles it.

    `names` are those of its tensors; `unlisted` maps the tensors that its index leaves out to their shards.
    """
    if missing in unlisted:
        return (
            f"the index leaves it out, but {unlisted[missing]} has it",
            "Add it to the weight_map in model.safetensors.index.json, or download the index again.",
        )
    names = sorted(names)
    wrapped = next((name for name in names if name.endswith("." + missing)), None)
    if wrapped is not None:
        prefix = wrapped.removesuffix(missing)
        adapter = prefix.startswith("base_model.")
        wrapper = next((of for start, of in _WRAPPERS.items() if start in prefix), "another module")
        return (
            f"found {wrapped}: names begin with {prefix!r}, as those of {wrapper} do",
            "Merge the adapter with peft (merge_and_unload) and save_pretrained the result."
            if adapter
            else "Save the model inside with save_pretrained, or rename the tensors without that prefix.",
        )
    bare = next((name for name in names if missing.endswith("." + name)), None)
    if bare is not None:
        return (
            f"found {bare}, without the prefix {missing.removesuffix(bare)!r}",
            "Is this the base model alone, without its head? Save the whole model with save_pretrained.",
        )
    tail = missing.partition(".")[2]
    # The rest of a name such as lm_head.weight is too common to identify a tensor.
    similar = next((name for name in names if "." in tail and name.endswith("." + tail)), None)
    if similar is not None:
        return (
            f"found {similar}",
            "Is it the checkpoint of a larger model that has this one in it? Save this one alone.",
        )
    if any(_ADAPTER in name for name in names):
        return ("found the matrices of a LoRA adapter", _MERGE)
    return None


_WRAPPERS = {
    "base_model.": "peft",
    "_orig_mod.": "a model under torch.compile",
    "module.": "a model under DataParallel, DeepSpeed or FSDP",
    "language_model.": "a model for images and text",
}
