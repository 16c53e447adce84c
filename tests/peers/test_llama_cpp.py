"""edgemoe and llama.cpp compute the same from the same weights, on the GGUF that edgemoe exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
from safetensors.numpy import save_file

import edgemoe
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.synthetic import synthesise
from edgemoe.conversion.tokenizers.words import WORD_RULES
from edgemoe.errors import StoreError
from edgemoe.session.default_model import find_model
from edgemoe.store.reader import Store
from tests.conversion.gguf.test_export import EXPRESSIBLE
from tests.conversion.gguf.test_tokenizer import reference
from tests.golden.cases import CASES
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.gguf_files import tokenizer_metadata, write_gguf
from tests.support.hybrid_models import SMALL_HYBRID
from tests.support.indexed_models import INDEXED, write_indexed
from tests.support.mamba_models import SMALL_MAMBA

pytestmark = pytest.mark.peer

POSITIONS = 500
ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
PLAIN = {
    "hunyuan_v1_moe with alpha": EXPRESSIBLE["hunyuan_v1_moe"]
    | {"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1}},
    # llama.cpp cuts the ends of gpt-oss's ramp of positions to whole channels, which its config says not to.
    **{name: config for name, config in EXPRESSIBLE.items() if name != "gpt_oss"},
    **SMALL_MAMBA,
    **SMALL_HYBRID,
}
WORDS = (
    "Hello, world! What's 12345 + 67890? It's 3.14, I'LL say; don't. you'Re SHE'D",
    "  two  spaces\n\n\ttabs \r\n line ends   \n\n\n  x\n \n",
    "def f(x):\n    return x**2 # $5 <=> ^~| 'quoted'//\n/\n",
    "Größe naïve café 你好，世界 12 camelCase ABCdef",
)

Logits = npt.NDArray[np.float32]


def llama_cpp_logits(gguf: Path, token_ids: list[int], kv_type: str) -> Logits:
    """Logits after each token `(T, V)`, from one prompt, with plain attention."""
    llama = pytest.importorskip("llama_cpp")
    llama.llama_backend_init()
    model_options = llama.llama_model_default_params()
    model_options.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(str(gguf).encode(), model_options)
    assert model, f"llama.cpp does not load {gguf}"
    options = llama.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = len(token_ids) + 12
    options.n_threads = options.n_threads_batch = 1  # several, which wait in loops, take twice the processor time
    options.type_k = options.type_v = getattr(llama, f"GGML_TYPE_{kv_type}")
    options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama.llama_init_from_model(model, options)
    batch = llama.llama_batch_init(len(token_ids), 0, 1)
    batch.n_tokens = len(token_ids)
    for position, token in enumerate(token_ids):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        batch.logits[position] = 1
    assert llama.llama_decode(context, batch) == 0
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (vocabulary,)) for i in range(len(token_ids))]
    logits = np.stack(rows)
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return logits


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def agreement(ours: Logits, theirs: Logits) -> tuple[float, float]:
    """Share of positions with the same top token, and the mean KL divergence in nats."""
    p, q = log_softmax(ours), log_softmax(theirs)
    return float((p.argmax(axis=1) == q.argmax(axis=1)).mean()), float((np.exp(p) * (p - q)).sum(axis=1).mean())


@dataclass(frozen=True)
class Model:
    """One model in two forms: 4-bit blocks, and the very same weights written out as float32."""

    four_bits: Path
    floats: Path
    token_ids: list[int]


def as_gguf(store: Path) -> Path:
    gguf = store.with_suffix(".gguf")
    return gguf if gguf.exists() else export_gguf(Store.open(store), gguf, name=store.name)


def edgemoe_logits(store: Path, token_ids: list[int]) -> Logits:
    with edgemoe.load(store) as model:
        return model.logits(token_ids)


@pytest.fixture(scope="module", params=["tiny", "bundled"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tiny":
        four_bits = synthesise("tiny", folder / "four-bits", dense="q4")
        with edgemoe.load(four_bits) as loaded:
            token_ids = np.random.default_rng(5).integers(0, loaded.spec.vocab_size, POSITIONS).tolist()
    else:
        four_bits = folder / "four-bits"
        four_bits.symlink_to(find_model())
        with edgemoe.load(four_bits) as loaded:
            text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")[: 10 * POSITIONS]
            token_ids = loaded.encode(text)[:POSITIONS]
            assert len(token_ids) == POSITIONS
    edgemoe.convert(as_gguf(four_bits), folder / "floats", experts="f32", dense="f32")
    return Model(four_bits, folder / "floats", token_ids)


def test_the_same_in_floats(model: Model) -> None:
    """The same 4-bit weights, float32 arithmetic on both sides: what is computed is the same."""
    ours = edgemoe_logits(model.floats, model.token_ids)
    theirs = llama_cpp_logits(as_gguf(model.floats), model.token_ids, "F32")
    same_top, divergence = agreement(ours, theirs)
    print(f"top token equal at {same_top:.1%}, mean KL {divergence:.2g}")
    assert same_top >= 0.99
    assert divergence < 1e-3


def test_no_further_from_floats_than_llama_cpp(model: Model) -> None:
    """Both round activations to int8 for 4-bit weights, each its own way, and so lie apart from float32 arithmetic."""
    floats = edgemoe_logits(model.floats, model.token_ids)
    ours = edgemoe_logits(model.four_bits, model.token_ids)
    theirs = llama_cpp_logits(as_gguf(model.four_bits), model.token_ids, "F16")
    ours_same_top, ours_divergence = agreement(floats, ours)
    theirs_same_top, theirs_divergence = agreement(floats, theirs)
    same_top, divergence = agreement(ours, theirs)
    print(f"against float32: edgemoe {ours_same_top:.1%}, KL {ours_divergence:.2g};", end=" ")
    print(f"llama.cpp {theirs_same_top:.1%}, KL {theirs_divergence:.2g};", end=" ")
    print(f"against each other: {same_top:.1%}, KL {divergence:.2g}")
    assert ours_divergence <= 1.25 * theirs_divergence
    assert ours_same_top >= theirs_same_top - 0.02
    assert divergence < 1.5 * (ours_divergence + theirs_divergence)
    assert same_top > 0.9


@pytest.mark.parametrize("name", CASES)
def test_golden_models_in_floats(name: str, tmp_path: Path) -> None:
    """Every golden model that a GGUF can hold, in float32 on both sides; and what both say is the golden logits."""
    store = edgemoe.convert(GOLDEN / name, tmp_path / "store", experts="f32", dense="f32")
    try:
        gguf = as_gguf(store)
    except StoreError as problem:
        pytest.skip(problem.message)
    golden = np.load(GOLDEN / name / "golden.npz")
    token_ids = golden["ids"].tolist()
    theirs = llama_cpp_logits(gguf, token_ids, "F32")
    _, divergence = agreement(edgemoe_logits(store, token_ids), theirs)
    _, from_golden = agreement(golden["logits"], theirs[golden["positions"]])
    print(f"{name}: mean KL {divergence:.2g}, from the golden logits {from_golden:.2g}")
    largest = 1e-5 if name.startswith("gemma4") else 1e-6  # of GELU llama.cpp has a table in float16
    assert divergence < largest
    assert from_golden < largest


@pytest.mark.parametrize("name", PLAIN)
def test_plain_models_in_floats(name: str, tmp_path: Path) -> None:
    """Models as those that are published, since no GGUF holds all that the golden models vary."""
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, PLAIN[name], dtype="F32", side_files={"README.md": b""})
    tensors = {  # norms near 1, and matrices that leave values about as large as they were
        tensor: 1 + values if tensor.endswith("norm.weight") else 4 * values
        for tensor, values in read_tensors(folder).items()
    }
    save_file(tensors, folder / "model.safetensors")
    store = edgemoe.convert(folder, tmp_path / "store", experts="f32", dense="f32")
    token_ids = np.random.default_rng(6).integers(0, PLAIN[name]["vocab_size"], 48).tolist()
    ours, theirs = edgemoe_logits(store, token_ids), llama_cpp_logits(as_gguf(store), token_ids, "F32")
    apart = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(ours, axis=1)
    print(f"{name}: relative error {apart.max():.2g}, mean KL {agreement(ours, theirs)[1]:.2g}")
    # llama.cpp brings keys of recurrent layers to unit length without an epsilon, which tells with narrow heads.
    # It finds DeepSeek's factor of the scores by logarithms in float32, and takes it off the rotation again.
    # It computes recurrent layers in chunks, whose sums have another order. The decays of Mamba-1 have exponents that
    # are products of two rounded numbers.
    bounds = {"qwen3_next": 1e-3, "qwen3_5_moe": 1e-3}
    bounds |= dict.fromkeys(("deepseek_v3", "mistral4", "jamba", "bailing_hybrid", "minimax"), 3e-5)
    assert apart.max() < next((bound for start, bound in bounds.items() if name.startswith(start)), 1e-5)


@pytest.mark.parametrize("family", INDEXED)
def test_files_with_an_indexer_in_floats(family: str, tmp_path: Path) -> None:
    """Models that edgemoe writes without the indexer, up to as many tokens as the indexer chooses."""
    config = INDEXED[family]
    gguf = write_indexed(tmp_path / "checkpoint", config)
    store = edgemoe.convert(gguf, tmp_path / "store", experts="f32", dense="f32")
    token_ids = np.random.default_rng(6).integers(0, config["vocab_size"], config["index_topk"]).tolist()
    ours, theirs = edgemoe_logits(store, token_ids), llama_cpp_logits(gguf, token_ids, "F32")
    without = llama_cpp_logits(as_gguf(store), token_ids, "F32")
    for what, found in (("with the indexer", theirs), ("without it", without)):
        apart = np.linalg.norm(ours - found, axis=1) / np.linalg.norm(ours, axis=1)
        print(f"{family} {what}: relative error {apart.max():.2g}, mean KL {agreement(ours, found)[1]:.2g}")
        assert apart.max() < 3e-5
    assert ours.std() > 0.5


@pytest.mark.parametrize("rule", sorted(WORD_RULES))
def test_words_are_cut_where_llama_cpp_cuts_them(rule: str, tmp_path: Path) -> None:
    llama = pytest.importorskip("llama_cpp")
    tokenizer, path = reference("gpt-2"), tmp_path / "m.gguf"
    config = EXPRESSIBLE["llama"] | {"vocab_size": tokenizer.get_vocab_size()}
    write_checkpoint(tmp_path / "checkpoint", config, dtype="F32")
    write_gguf(path, config, read_tensors(tmp_path / "checkpoint"), tokenizer=tokenizer_metadata(tokenizer, rule))
    options = llama.llama_model_default_params()
    options.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), options)
    assert model, f"llama.cpp does not know {rule}"
    ours = tokenizers.Tokenizer.from_buffer(GgufSource(path).side_files()["tokenizer.json"])
    vocabulary, found = llama.llama_model_get_vocab(model), (llama.llama_token * 1000)()
    for text in WORDS:
        size = len(text.encode())
        count = llama.llama_tokenize(vocabulary, text.encode(), size, found, len(found), False, False)
        assert ours.encode(text, add_special_tokens=False).ids == found[:count], text
    llama.llama_model_free(model)
