"""Which of a repository's GGUF files a quantisation's name means."""

from __future__ import annotations

import re

import pytest

from edgemoe.conversion.hub.gguf_names import choose_model, gguf_models, is_gguf_repository
from edgemoe.conversion.hub.id import HubId
from edgemoe.errors import SourceError
from tests.support.every_case import every_case

NAMES = [
    "Qwen3-30B-A3B-UD-Q4_K_XL.gguf",
    "Qwen3-30B-A3B-Q4_K_S.gguf",
    "IQ4_XS/m-00001-of-00002.gguf",
    "IQ4_XS/m-00002-of-00002.gguf",
    "BF16/Qwen3-30B-A3B-BF16-00001-of-00002.gguf",
    "BF16/Qwen3-30B-A3B-BF16-00002-of-00002.gguf",
    "gpt-oss-20b-mxfp4.gguf",
    "Model-Q8_0-imat.gguf",
    "Llama.Q5_0.GGUF",
    "Qwen3-8B-Instruct.gguf",
    "model_Q6_K.gguf",
    "mmproj-F16.gguf",
    "Qwen3.imatrix.gguf",
    "mtp-Qwen3-Q2_K.gguf",
    "MTP/Qwen3-Q2_K.gguf",
    "Q3_K_L/b-00001-of-00002.gguf",
    "README.md",
]
SIZES = dict.fromkeys(NAMES, 1 << 30)


@every_case(
    ("asked", "file"),
    [
        ("UD-Q4_K_XL", "Qwen3-30B-A3B-UD-Q4_K_XL.gguf"),
        ("q4_k_xl", "Qwen3-30B-A3B-UD-Q4_K_XL.gguf"),
        ("Q4_K_S", "Qwen3-30B-A3B-Q4_K_S.gguf"),
        ("Qwen3-30B-A3B-Q4_K_S.gguf", "Qwen3-30B-A3B-Q4_K_S.gguf"),
        ("iq4_xs", "IQ4_XS/m-00001-of-00002.gguf"),
        ("bf16", "BF16/Qwen3-30B-A3B-BF16-00001-of-00002.gguf"),
        ("BF16/Qwen3-30B-A3B-BF16", "BF16/Qwen3-30B-A3B-BF16-00001-of-00002.gguf"),
        ("MXFP4", "gpt-oss-20b-mxfp4.gguf"),
        ("Q8_0", "Model-Q8_0-imat.gguf"),
        ("Q8_0-imat", "Model-Q8_0-imat.gguf"),
        ("q5_0", "Llama.Q5_0.GGUF"),
        ("q6_k", "model_Q6_K.gguf"),
        ("Qwen3-8B-Instruct", "Qwen3-8B-Instruct.gguf"),
    ],
)
def test_a_name_in_letters_of_either_case_means_a_file_or_the_parts_of_one(asked: str, file: str) -> None:
    model = choose_model("maker/x", SIZES, asked)
    assert model.files[0] == file
    assert len(model.files) == (2 if "-of-" in file else 1)
    assert choose_model("maker/x", SIZES, model.quantisation).files == model.files  # it can be asked for by that, too


@every_case("asked", ["Q4_K", "Q4_XS", "Q4", "F16", "Q2_K", "imatrix", "K_S.gg", "*", "Q4_K_M"])
def test_another_name_is_told_which_there_are_with_sizes(asked: str) -> None:
    with pytest.raises(SourceError, match=rf"maker/x: found no {re.escape(asked)} among its") as told:
        choose_model("maker/x", SIZES, asked)
    assert told.value.hint.startswith("Name one of these after a colon: ")
    for name in ("UD-Q4_K_XL (1.00 GiB)", "IQ4_XS (2.00 GiB)", "mxfp4 (1.00 GiB)"):
        assert name in told.value.hint


def test_without_a_name_it_is_the_usual_quantisation_or_the_only_one() -> None:
    with pytest.raises(SourceError, match=r"found several quantisations, and no Q4_K_M.*UD-Q4_K_XL \(1"):
        choose_model("maker/x", SIZES, None)
    assert choose_model("x", {**SIZES, "a-q4_k_m.gguf": 5}, None).files == ("a-q4_k_m.gguf",)
    assert choose_model("x", {"a-Q8_0.gguf": 5, "mmproj-F16.gguf": 1}, None).files == ("a-Q8_0.gguf",)


def test_a_name_of_several_files_and_a_model_with_a_missing_part() -> None:
    sizes = {"a/m-Q4_0.gguf": 3 << 20, "b/m-Q4_0.gguf": 2 << 20}
    with pytest.raises(SourceError, match="Q4_0 names 2 files") as told:
        choose_model("x", sizes, "Q4_0")
    assert told.value.hint == "Give the name of one after the colon: b/m-Q4_0 (2.0 MiB), a/m-Q4_0 (3.0 MiB)."
    assert choose_model("x", sizes, "b/m-Q4_0").files == ("b/m-Q4_0.gguf",)
    with pytest.raises(SourceError, match=r"x: Q3_K_L/b-00002-of-00002\.gguf: missing"):
        choose_model("x", SIZES, "Q3_K_L")


def test_files_beside_models_are_no_models() -> None:
    assert (
        gguf_models(["mmproj-Q4_0.gguf", "x-imatrix.gguf", "dflash-x-Q8_0.gguf", "eagle3-x.gguf", "a.safetensors"])
        == []
    )
    assert is_gguf_repository(["m-Q4_0.gguf", "config.json"])
    assert not is_gguf_repository(["m-Q4_0.gguf", "model.safetensors"])
    assert not is_gguf_repository(["mmproj-F16.gguf"])


@every_case(
    ("text", "found"),
    [
        ("org/name", HubId("org/name")),
        ("org/Name-GGUF:Q4_K_M", HubId("org/Name-GGUF", None, "Q4_K_M")),
        ("org/name@v1/x:UD-Q4_K_XL", HubId("org/name", "v1/x", "UD-Q4_K_XL")),
        ("org/name:file-Q4_0.gguf", HubId("org/name", None, "file-Q4_0.gguf")),
        ("hf.co/org/name:Q4_0", HubId("org/name", None, "Q4_0")),
        ("https://huggingface.co/org/name", HubId("org/name")),
        ("elsewhere.example/org/name:Q4_0", None),
        ("org/model.gguf", None),
        ("org/name:", None),
        ("org/name@", None),
        ("name:Q4_K_M", None),
        ("a/b/c:Q4_K_M", None),
        ("./a/b", None),
        ("org/name:A (new) model-Q4_0", HubId("org/name", None, "A (new) model-Q4_0")),
        ("org/name: Q4_0", None),
        ("org/name:Q4_0\n", None),
        ("org/name:Q4:0", None),
    ],
)
def test_a_hub_id_with_a_revision_and_a_quantisation(text: str, found: HubId | None) -> None:
    assert HubId.parse(text) == found
    assert found is None or text.endswith(str(found))
