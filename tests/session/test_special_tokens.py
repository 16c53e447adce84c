"""Special tokens that other files name than tokenizer.json.

The expected values are what transformers 5.24 makes of the same folders (special_tokens_map and, of TEXT, input_ids),
written down, so that these tests need no transformers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models

from edgemoe.errors import StoreError
from edgemoe.session.special_tokens import read_special_tokens
from edgemoe.session.tokenizer import Tokenizer, load_library_tokenizer
from edgemoe.store.tokenizer_file import library_tokenizer
from tests.support.every_case import every_case

MARKERS = ["<s>", "</s>", "<|end|>", "<image>", "<x>"]
LETTERS = "abcdefghijklmnopqrstuvwxyz</>| ÇĠ"
TEXT = "<s>ab</s><|end|><image><x>"
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
IMAGE = {"content": "<image>", **FLAGS, "lstrip": True}


def write_folder(
    folder: Path,
    config: dict[str, Any] | None = None,
    special_map: dict[str, Any] | None = None,
    added: Sequence[AddedToken] = (),
) -> Path:
    """A folder whose vocabulary has all markers, and whose tokenizer.json says of none that it is special."""
    folder.mkdir(exist_ok=True)
    model = models.BPE(vocab={token: number for number, token in enumerate([*MARKERS, *LETTERS])}, merges=[])
    library = tokenizers.Tokenizer(model)
    library.decoder = decoders.Fuse()
    library.add_tokens(list(added))
    library.save(str(folder / "tokenizer.json"))
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special_map)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def spelled(*special: str) -> list[int]:
    """The ids of TEXT where these markers are special, and the others letters."""
    vocabulary = [*MARKERS, *LETTERS]
    ids: list[int] = []
    for part in ("<s>", "ab", "</s>", "<|end|>", "<image>", "<x>"):
        ids += [vocabulary.index(piece) for piece in ([part] if part in special else part)]
    return ids


CASES: dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, str], list[str]]] = {
    "only in the map": (
        {},
        {"bos_token": "<s>", "eos_token": {"content": "</s>", **FLAGS}},
        {"bos_token": "<s>", "eos_token": "</s>"},
        ["<s>", "</s>"],
    ),
    "no config": (None, {"bos_token": "<s>"}, {"bos_token": "<s>"}, ["<s>"]),
    "the map before the config": ({"bos_token": "<x>"}, {"bos_token": "<s>"}, {"bos_token": "<s>"}, ["<s>"]),
    "no map beside an added_tokens_decoder": (
        {"bos_token": "<x>", "added_tokens_decoder": {}},
        {"bos_token": "<s>"},
        {"bos_token": "<x>"},
        ["<x>"],
    ),
    "tokens of an added_tokens_decoder": (
        {"added_tokens_decoder": {"2": {"content": "<|end|>", "special": True}, "4": {"content": "<x>"}}},
        None,
        {},
        ["<|end|>", "<x>"],
    ),
    "additional_special_tokens": ({"additional_special_tokens": ["<|end|>", "<image>"]}, None, {}, MARKERS[2:4]),
    "extra_special_tokens": ({"extra_special_tokens": ["<|end|>", "<image>"]}, None, {}, MARKERS[2:4]),
    "extra_special_tokens in the map": ({}, {"extra_special_tokens": ["<|end|>", IMAGE]}, {}, MARKERS[2:4]),
    "extra_special_tokens with names": (
        {"extra_special_tokens": {"image_token": "<image>"}},
        None,
        {"image_token": "<image>"},
        ["<image>"],
    ),
    "another name": ({"image_token": "<image>"}, None, {"image_token": "<image>"}, ["<image>"]),
    "an object": (
        {"eos_token": {"__type": "AddedToken", "content": "</s>", **FLAGS}},
        None,
        {"eos_token": "</s>"},
        ["</s>"],
    ),
    "nothing": ({"pad_token": None, "unk_token": 3, "sep_token": "", "add_bos_token": True}, None, {}, []),
}


@every_case("case", CASES)
def test_tokens_that_other_files_name_are_special(tmp_path: Path, case: str) -> None:
    config, special_map, names, special = CASES[case]
    folder = write_folder(tmp_path / "model", config, special_map)
    assert read_special_tokens(folder).names == names
    tokenizer = Tokenizer.load(folder, 38)
    assert tokenizer.encode(TEXT) == spelled(*special)
    assert tokenizer.stop_ids == ({1} if "eos_token" in names else set())


@every_case(
    ("config", "special"),
    [
        ({"eos_token": "<|end|>"}, True),
        ({"added_tokens_decoder": {"2": {"content": "<|end|>", "special": True}}}, True),
        ({"additional_special_tokens": ["<|end|>"]}, False),
        ({}, False),
    ],
)
def test_a_token_that_tokenizer_json_adds_as_ordinary_becomes_special(
    tmp_path: Path, config: dict[str, Any], special: bool
) -> None:
    folder = write_folder(tmp_path / "model", config, added=[AddedToken("<|end|>", special=False, normalized=True)])
    known = load_library_tokenizer(folder).get_added_tokens_decoder()
    assert {number: token.special for number, token in known.items()} == {2: special}


def test_an_end_that_cannot_be_read_is_remarked(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", {"eos_token": "<nowhere>", "bos_token": "<also not>"})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [38, 1]}))
    tokenizer = Tokenizer.load(folder, 38)
    assert tokenizer.stop_ids == {1, 38}
    assert tokenizer.remarks == (
        "eos_token_id 38 ends no answer: this model's token ids are those below 38.",
        "tokenizer_config.json: eos_token '<nowhere>' is not in the vocabulary: it ends no answer.",
    )
    # a token without an id is no token: the library would give it the id 38, which the model does not have
    assert tokenizer.encode("<x") == spelled()[-3:-1]


@pytest.mark.parametrize("content", ["\ud800", "a" * 100_000])
def test_a_strange_name_is_harmless(tmp_path: Path, content: str) -> None:
    folder = write_folder(tmp_path / "model", {"eos_token": content, "additional_special_tokens": [content, [3], None]})
    try:
        load_library_tokenizer(folder)
    except StoreError as error:
        assert "tokenizer" in error.message


def holed(*added: tuple[str, int], vocabulary: dict[str, int] | None = None) -> str:
    """A tokenizer.json with a token named added_tokens, and added tokens of these ids."""
    model = models.BPE(vocab=vocabulary or {"a": 0, "b": 1, "added_tokens": 2}, merges=[])
    data = json.loads(tokenizers.Tokenizer(model).to_str())
    data["added_tokens"] = [{"id": number, "content": token, "special": True, **FLAGS} for token, number in added]
    return json.dumps(dict(reversed(data.items())))  # the model before the added tokens


def test_added_tokens_behind_a_hole_have_the_ids_that_the_file_gives() -> None:
    """The file's ids are those of the embedding's rows; the library alone would number them 3 and 4."""
    tokenizer = library_tokenizer(holed(("<s>", 5), ("</s>", 9)))
    assert tokenizer.encode("<s>a</s>b").ids == [5, 0, 9, 1]
    assert tokenizer.decode([5, 0, 9, 1], skip_special_tokens=False) == "<s> a </s> b"
    assert tokenizer.decode([5, 0, 9, 1]) == "a b"
    assert library_tokenizer(holed(("<s>", 3), ("</s>", 4))).encode("<s>a</s>b").ids == [3, 0, 4, 1]


@every_case(
    ("added", "vocabulary"),
    [
        ([("<s>", 1)], None),  # the id of another token
        ([("<s>", 5), ("</s>", 5)], None),
        ([("b", 5)], None),  # in the vocabulary under another id
        ([("<s>", 5)], {"a": 0, "b": 5}),
    ],
)
def test_ids_that_cannot_be_had_are_refused(
    tmp_path: Path, added: list[tuple[str, int]], vocabulary: dict[str, int] | None
) -> None:
    (tmp_path / "tokenizer.json").write_text(holed(*added, vocabulary=vocabulary))
    with pytest.raises(StoreError, match=rf"tokenizer\.json.*added token .*: expected id {added[-1][1]}, found"):
        load_library_tokenizer(tmp_path)


def test_an_added_token_of_the_config_keeps_its_id_or_is_refused(tmp_path: Path) -> None:
    def config(number: int) -> dict[str, Any]:
        return {"added_tokens_decoder": {str(number): {"content": "<new>", "special": True}}}

    assert load_library_tokenizer(write_folder(tmp_path, config(38))).encode("a<new>").ids[-1] == 38
    with pytest.raises(StoreError, match="'<new>': expected id 90, found 38"):
        load_library_tokenizer(write_folder(tmp_path, config(90)))
