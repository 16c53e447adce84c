"""Rules that cut a text into words before byte-level BPE merges: patterns, by the names that GGUF gives them."""

from __future__ import annotations

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_O200K_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K_WORDS = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _O200K_SUFFIX,
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _O200K_SUFFIX,
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""The pattern that tiktoken publishes for o200k_base: words are cut where a small letter is followed by a capital."""

_KIMI_WORDS = r"[\p{Han}]+|" + _O200K_WORDS.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]").replace(r"[\r\n/]*", r"[\r\n]*")
"""As o200k_base, but runs of Chinese characters are words of their own."""

_QWEN35_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_LING_WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

_DEEPSEEK_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    "\r\n"
    r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["
    "\r\n"
    r"]*|\s*["
    "\r\n"
    r"]+|\s+(?!\S)|\s+"
)
"""A break of a line stands in it as such, as in the tokenizers that are published with it."""

WORD_RULES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "olmo"), (_WORDS,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), (r"\p{N}", _WORDS)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "lfm2", "dbrx", "smaug-bpe"), (_LLAMA3_WORDS,)),
    **dict.fromkeys(("glm4", "glm5", "chatglm-bpe"), (_LLAMA3_WORDS,)),
    **dict.fromkeys(("gpt-4o", "llama4", "minimax-m2"), (_O200K_WORDS,)),
    **dict.fromkeys(("qwen2", "hunyuan", "solar-open", "grok-2"), (_LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}"),)),
    **dict.fromkeys(("bailingmoe2", "bailingmoe"), (_LING_WORDS,)),
    "cohere2moe": (r"\d{1,3}(?=(?:\d{3})*\b)", _O200K_WORDS),
    **dict.fromkeys(("deepseek-v3", "joyai-llm"), (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK_WORDS)),
    "qwen35": (_QWEN35_WORDS,),
    "tekken": (_O200K_WORDS.replace(_O200K_SUFFIX, "").replace(r"\p{N}{1,3}", r"\p{N}"),),
    "kimi-k2": (_KIMI_WORDS,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
"""Patterns applied in sequence, keyed by the name in `tokenizer.ggml.pre`: each match becomes one word."""

BOS_RULES = frozenset({"llama-bpe", "llama3", "llama-v3", "lfm2", "tekken"})
"""Rules whose texts start with BOS."""

WHOLE_WORDS_FIRST = BOS_RULES | {"gpt-4o", "kimi-k2"}
"""Rules under which a word in the vocabulary becomes that token, ignoring the merges, as in tiktoken."""

EITHER_WAY = frozenset({"gpt-4o", "kimi-k2"})
"""Rules among these whose merges build every word of the vocabulary: whole or merged, a word gives the same token."""

COMPOSED = frozenset({"qwen2", "qwen35", "olmo"})
"""Rules whose tokenizers first normalise to NFC, which the metadata cannot express."""
