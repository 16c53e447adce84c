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
UNQUANTISED = "Use the checkpoint's unquantised version, or a GGUF of it in Q8_0, Q4_0, Q4_1 or MXFP4."


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
                UNQUANTISED,
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


def is_mxfp4(value: Mapping[str, object]) -> bool:
    """Whether a config.json declares by this value that weights are MXFP4, which are read as they are."""
    method = value.get("quant_method")
    return method == "mxfp4" or (method == "compressed-tensors" and value.get("format") == "mxfp4-pack-quantized")


def quantised_config(name: str, value: Mapping[str, object]) -> SourceError:
    """The error for a config.json whose key `name` declares quantised weights."""
    method = value.get("quant_method") or value.get("quant_algo") or ("MLX" if name == "quantization" else None)
    if method is None and (value.get("load_in_4bit") or value.get("load_in_8bit")):
        method = "bitsandbytes"
    details = [f"{method:.40}" if isinstance(method, str) else "by an unknown method"]
    bits = 4 if value.get("load_in_4bit") else 8 if value.get("load_in_8bit") else value.get("bits")
    if isinstance(bits, int) and not isinstance(bits, bool) and 0 < bits < 64:
        details.append(f"{bits} bits")
    return SourceError(
        f"config.json: {name}: expected unquantised weights, found quantised ones ({', '.join(details)}).", UNQUANTISED
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
