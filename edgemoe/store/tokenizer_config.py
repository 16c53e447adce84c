"""Reads special tokens and template from tokenizer_config.json and special_tokens_map.json, as transformers does.

tokenizer_config.json names special tokens beside those of tokenizer.json (`bos_token`, `eos_token`, and any other name
that ends in `_token`) and lists further ones. Where it has no `added_tokens_decoder`, special_tokens_map.json takes
precedence over it.
Source: transformers 5.24, PreTrainedTokenizerBase._from_pretrained and TokenizersBackend.__init__.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgemoe.errors import StoreError

if TYPE_CHECKING:
    import tokenizers

CONFIG_NAME = "tokenizer_config.json"
MAP_NAME = "special_tokens_map.json"
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")

Description = Mapping[str, Any]
"""A token as these files describe it: `content`, `special` and the library's flags."""


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens that the JSON files of a folder describe."""

    names: Mapping[str, str]
    """Texts of tokens by the names that templates use, such as `<s>` for `bos_token`."""
    named: tuple[Description, ...]
    listed: tuple[Description, ...]
    """Special tokens without a name."""
    numbered: Mapping[int, Description]
    """Tokens of `added_tokens_decoder` by id, special or not."""

    @classmethod
    def of(cls, config: Mapping[str, Any], special_tokens_map: Mapping[str, Any]) -> SpecialTokens:
        """Read the special tokens from the contents of the two files; empty for a missing file."""
        if "added_tokens_decoder" not in config:
            config = {**config, **special_tokens_map}
        listed = config.get("extra_special_tokens") or config.get("additional_special_tokens")
        if isinstance(listed, Mapping):  # further names
            config, listed = {**config, **listed}, None
        found = {name: _description(value) for name, value in config.items() if name.endswith("_token")}
        named = {name: token for name, token in found.items() if token is not None}
        further = [_description(value) for value in (listed if isinstance(listed, list) else [])]
        numbers = config.get("added_tokens_decoder")
        return cls(
            {name: token["content"] for name, token in named.items()},
            tuple(named.values()),
            tuple(token for token in further if token is not None),
            {
                int(number): token
                for number, value in (numbers.items() if isinstance(numbers, Mapping) else ())
                if str(number).isdecimal() and isinstance(value, Mapping)
                if (token := _description({"special": False, **value})) is not None
            },
        )

    def add_to(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Add these tokens to the tokenizer as special tokens.

        A token that neither its vocabulary nor `added_tokens_decoder` gives an id is left out: transformers would give
        it the next free one, which the model has never seen. Raises StoreError where a token would get another id than
        `added_tokens_decoder` gives it.
        """
        known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
        names = set(self.names.values())
        wanted: dict[str, Description] = {}
        for _, token in sorted(self.numbered.items()):
            special = bool(token["special"]) or token["content"] in names
            wanted[token["content"]] = {"normalized": not special, **token, "special": special}
        for token in self.named:
            content = token["content"]
            flags = {flag: getattr(known[content], flag) for flag in _FLAGS} if content in known else token
            wanted.setdefault(content, {**flags, "content": content, "special": True})
        for token in self.listed:
            if token["content"] not in known:
                wanted.setdefault(token["content"], {**token, "special": True})
        numbers = {token["content"]: number for number, token in self.numbered.items()}
        new = [
            _added_token(token)
            for content, token in wanted.items()
            if (content in numbers or tokenizer.token_to_id(content) is not None)
            and not (content in known and _same(known[content], token))
        ]
        if new:
            tokenizer.add_tokens(new)
        for content, number in numbers.items():
            if content not in known and tokenizer.token_to_id(content) != number:
                raise StoreError(
                    f"{CONFIG_NAME}: added token {content!r:.80}: expected id {number},"
                    f" found {tokenizer.token_to_id(content)} as it is loaded.",
                    "Take tokenizer.json and tokenizer_config.json from the same model.",
                )


def config_template(config: Mapping[str, Any], where: object) -> str | None:
    """The chat template that a tokenizer_config.json gives where there are no tools; None where it has none.

    Several templates are a table by name, or a list of names and texts: the one named default is taken. Raises
    StoreError, which names the file as `where`, for any other form.
    """
    value = config.get("chat_template")
    if isinstance(value, list):
        value = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, Mapping)}
    if isinstance(value, Mapping) and value and "default" not in value:
        raise StoreError(
            f"{where}: chat_template: expected one template named default,"
            f" found {', '.join(sorted(map(str, value)))[:200]}.",
            "Save the one that you want as chat_template.jinja beside it; if the folder is a store, run edgemoe update"
            " on it afterwards.",
        )
    source = value.get("default") if isinstance(value, Mapping) else value
    if source is not None and not isinstance(source, str):
        raise StoreError(
            f"{where}: chat_template: expected a text, or named texts, found {type(source).__name__}.",
            "Put the original model's file in its place; if the folder is a store, run edgemoe update on it then.",
        )
    return source


def _description(value: object) -> Description | None:
    """A token, given as its text or as an object; None for any other value."""
    if isinstance(value, str) and value:
        return {"content": value, "special": True}
    if isinstance(value, Mapping) and isinstance(value.get("content"), str) and value["content"]:
        return value
    return None


def _added_token(token: Description) -> tokenizers.AddedToken:
    from tokenizers import AddedToken

    flags = {flag: token[flag] for flag in _FLAGS if isinstance(token.get(flag), bool)}
    return AddedToken(token["content"], special=token["special"], **flags)


def _same(known: tokenizers.AddedToken, token: Description) -> bool:
    """Whether the tokenizer has the token with this description already."""
    return known.special == token["special"] and all(
        getattr(known, flag) == token[flag] for flag in _FLAGS if isinstance(token.get(flag), bool)
    )
