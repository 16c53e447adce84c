"""Checks the recipe on a tiny random model, offline, in seconds: ``python check.py``.

With ``--gguf FILE`` it also checks the real source: that the upcycled model starts with exactly the
dense model's logits, and the tokenizer against a plain byte-pair encoder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
import regex
import torch
from answers import complete
from batches import Batches, load_texts
from card import write_card
from decoder import Decoder, Pass, RouterTrace, gated, segment_mask
from evaluate import evaluate, lru_hit_rate, reuse, specialisation
from export import write_all
from finish import verify_gguf, verify_hugging_face
from gguf_source import DenseSource, unpermute
from losses import VocabularyLoss, balance_loss
from prompts import evaluation_prompts, facts, questions, sums
from routers import start_routers
from settings import build_decoder, load_settings
from tokens import conversation, make_tokenizer

SPLIT = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def byte_letters() -> list[str]:
    """The printable stand-in of each byte, as byte-level vocabularies spell it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


def plain_encode(text: str, vocabulary: dict[str, int], ranks: dict) -> list[int]:
    """Byte-pair encoding written out: digits alone, then words, then merges by rank."""
    letters, out = byte_letters(), []
    for piece in regex.findall(r"\p{N}|[^\p{N}]+", text):
        for word in SPLIT.findall(piece):
            parts = [letters[b] for b in word.encode()]
            while len(parts) > 1:
                pairs = list(zip(parts, parts[1:], strict=False))
                best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
                if best not in ranks:
                    break
                at = pairs.index(best)
                parts[at : at + 2] = ["".join(best)]
            out += [vocabulary[part] for part in parts]
    return out


def tiny_gguf(path: Path) -> None:
    """A random llama GGUF: 2 layers, width 64, four heads over two, Q4_1 and Q8_0 blocks."""
    rng = np.random.default_rng(0)
    width, ffn, layers = 64, 96, 2
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["Ġ a", "Ġ t", "h e", "Ġt he", "i n"]
    words = specials + byte_letters() + [merge.replace(" ", "") for merge in merges]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1e5)
    writer.add_rope_dimension_count(width // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_file_type(3)
    writer.add_quantization_version(2)
    writer.add_languages(["en"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3] * len(specials) + [1] * (len(words) - len(specials)))
    writer.add_token_merges(merges)
    for name, value in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(value)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
        "'<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )

    def add(name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> None:
        values = (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
        if len(shape) == 1:
            values = np.abs(values) + 1
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    kinds = gguf.GGMLQuantizationType
    add("token_embd.weight", (len(words), width), kinds.Q8_0)
    add("output_norm.weight", (width,), kinds.F32)
    shapes = {"attn_q": (width, width), "attn_k": (32, width), "attn_v": (32, width),
              "attn_output": (width, width), "ffn_gate": (ffn, width), "ffn_up": (ffn, width),
              "ffn_down": (width, ffn)}  # fmt: skip
    for layer in range(layers):
        for name, shape in shapes.items():
            add(f"blk.{layer}.{name}.weight", shape, kinds.Q4_1)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", (width,), kinds.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def small_settings() -> dict:
    """The recipe's settings, shrunk."""
    settings = load_settings()
    settings["model"] = {"experts": 5, "experts_per_token": 2, "expert_width": 32}
    settings["corpora"] |= {"segment_tokens": 64, "row_tokens": 128}
    settings["routers"]["tokens"] = 384 * 4
    settings["evaluation"] |= {"row_tokens": 128}
    return settings


def tiny_work(folder: Path) -> None:
    """Random texts and two conversations, laid out as the other steps leave them."""
    (folder / "tokens").mkdir()
    rng = np.random.default_rng(1)
    for name in ("one", "two"):
        ids = rng.integers(3, 250, 4000).astype(np.uint16)
        np.savez(folder / "tokens" / f"{name}.npz", train=ids[:3000], held_out=ids[3000:])
    rows = [{"messages": [["user", "Hi"], ["assistant", "Hello there."]], "held_out": held} for held in (False, True)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "answers.jsonl").write_text(text, encoding="utf-8")


def check_start(model: Decoder) -> None:
    """Before training the upcycled model is the dense model, to the bit."""
    ids = torch.randint(0, model.embedding.shape[0], (2, 33))
    with torch.no_grad():
        dense = model.logits(model(ids, Pass(routed=False)))
        assert torch.equal(dense, model.logits(model(ids, Pass())))


@torch.no_grad()
def stir(model: Decoder) -> None:
    """Random routers and down matrices, so that the experts matter."""
    for layer in model.layers:
        layer.router.copy_(torch.randn_like(layer.router))
        layer.down.copy_(torch.randn_like(layer.down) * 0.2)


@torch.no_grad()
def check_decoder(model: Decoder) -> None:
    """Experts against a loop over tokens; segments and cached decoding against plain rows."""
    layer = model.layers[0]
    x = torch.randn(17, model.dense_config.width)
    expected = torch.zeros_like(x)
    for token, row in enumerate(x):
        top, chosen = (layer.router @ row).topk(layer.top_k)
        for weight, expert in zip(top.softmax(0), chosen, strict=True):
            expected[token] += weight * (layer.down[expert] @ gated(layer.gate_up[expert] @ row))
    torch.testing.assert_close(layer.experts(x, Pass()), expected, rtol=1e-4, atol=1e-5)
    a, b = torch.randint(3, 250, (1, 20)), torch.randint(3, 250, (1, 12))
    segments = torch.tensor([[0] * 20 + [1] * 12])
    packed = model(torch.cat([a, b], dim=1), Pass(), segment_mask(segments))
    apart = torch.cat([model(a, Pass()), model(b, Pass())], dim=1)
    torch.testing.assert_close(packed, apart, rtol=1e-3, atol=1e-4)
    prompts = [a[0].tolist(), b[0].tolist()]
    together = complete(model, prompts, 6, Pass(), [0.0, 0.0])
    assert together == [complete(model, [p], 6, Pass(), [0.0])[0] for p in prompts]


def check_losses() -> None:
    """Value and gradient against autograd."""
    hidden = torch.randn(300, 16, requires_grad=True)
    embedding, teacher = torch.randn(50, 16), torch.randn(300, 16)
    targets, w_ce, w_kl = torch.randint(0, 50, (300,)), torch.rand(300), torch.rand(300)
    log_p = torch.log_softmax(hidden @ embedding.T, dim=-1)
    log_q = torch.log_softmax(teacher @ embedding.T, dim=-1)
    expected = -(log_p[torch.arange(300), targets] * w_ce).sum()
    expected = expected + ((log_q.exp() * (log_q - log_p)).sum(-1) * w_kl).sum()
    (slope,) = torch.autograd.grad(expected, hidden)
    loss, _, _ = VocabularyLoss.apply(hidden, embedding, targets, w_ce, w_kl, teacher)
    (ours,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours, slope, rtol=1e-3, atol=1e-5)
    assert abs(balance_loss([torch.full((4,), 0.25)], torch.full((1, 4), 0.25)).item() - 1) < 1e-6


def check_measures() -> None:
    """Counting functions on cases that are known."""
    chosen = np.array([[[0, 1], [2, 3]], [[0, 2], [2, 3]], [[0, 2], [2, 3]]])
    assert reuse(chosen) == (1 + 2 + 2 + 2) / 8
    assert lru_hit_rate(chosen, 100) == 7 / 12 and lru_hit_rate(chosen, 1) == 0
    apart = specialisation(np.array([[[8.0, 0.0]], [[0.0, 8.0]]]))
    assert abs(apart["mutual_information_nats"] - np.log(2)) < 1e-9
    rows = torch.arange(12.0).view(6, 2)
    paired = torch.stack([rows[0], rows[3], rows[1], rows[4], rows[2], rows[5]])
    assert torch.equal(unpermute(paired, 1), rows)


def check_prompts() -> None:
    """No evaluation prompt is trained on in its own words, but for the sum that says so."""
    asked = {turn for question in questions(1) for turn in question.turns[:1]}
    known = {ask for ask, _ in facts()}
    held = set(evaluation_prompts())
    assert len(held) == 20 and not held & asked and not held & known
    assert held & {ask for ask, _ in sums(1, 900)} <= {"What is 2 + 2?"}


def check_tiny() -> None:
    """The whole recipe but for the fetching, on random weights."""
    with tempfile.TemporaryDirectory() as name:
        folder, settings = Path(name), small_settings()
        tiny_gguf(folder / "tiny.gguf")
        tiny_work(folder)
        source = DenseSource(folder / "tiny.gguf")
        tokenizer, model = make_tokenizer(source), build_decoder(source, settings)
        batches = Batches(folder, tokenizer, settings)
        start_routers(model, batches, settings)
        check_start(model)
        batch = batches.at(0)
        assert torch.equal(batch.ids, batches.at(0).ids) and (batch.text > 0).any()
        trace = RouterTrace()
        hidden = model(batch.ids, Pass(trace=trace, noise=0.3), segment_mask(batch.segments))
        hidden.sum().backward()
        assert all(layer.down.grad.abs().sum() > 0 for layer in model.layers)
        stir(model)
        check_decoder(model)
        write_all(model, source, folder / "out")
        verify_gguf(folder / "out" / "model.gguf", source, model)
        verify_hugging_face(folder / "out" / "hf", model, tokenizer)
        results = evaluate(model, tokenizer, folder, settings)
        results |= {"settings": settings, "transformers_relative_error": 1e-6}
        results["training"] = {"steps": 1, "tokens": 2, "tokens_per_s": 3.0, "conversations": 4}
        results["training"] |= {"from": "2030-01-01T10:00:00", "to": "2030-01-01T11:00:00"}
        results["other_seeds"] = [{"seed": 2, **results}]
        write_card(results, folder / "README.md")
        assert load_texts(folder / "tokens", "held_out").keys() == results["domains"].keys()


def check_source(path: Path) -> None:
    """The real GGUF: logits at the start, and the tokenizer against a plain encoder."""
    source = DenseSource(path)
    tokenizer = make_tokenizer(source)
    merges = source.field("tokenizer.ggml.merges")
    ranks = {tuple(merge.split(" ", 1)): rank for rank, merge in enumerate(merges)}
    vocabulary = {word: i for i, word in enumerate(source.field("tokenizer.ggml.tokens"))}
    texts = [p.read_text(encoding="utf-8") for p in sorted(Path(__file__).parent.glob("*.*"))]
    texts += ["12345 6 7.89", "naïve café 日本語 🙂 \t\n  x", "don't I'll   ", "a\r\n\r\nb  c"]
    texts.append("٣x²½")
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        marks = [text.index(word) for word in ("<|im_start|>", "<|im_end|>") if word in text]
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        if not marks:
            assert ids == plain_encode(text, vocabulary, ranks), text[:80]
    ids, _ = conversation(tokenizer, [("user", "Hi")], open_answer=True)
    assert ids[0] == 1 and tokenizer.decode(ids, skip_special_tokens=False).count("<|im_end|>") == 2
    check_start(build_decoder(source, load_settings()))


def main() -> None:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--gguf", type=Path, help="the real dense model, to be checked as well")
    args = parser.parse_args()
    torch.manual_seed(0)
    for check in (check_losses, check_measures, check_prompts, check_tiny):
        check()
        print(f"{check.__name__}: good")
    if args.gguf:
        check_source(args.gguf)
        print("check_source: good")


if __name__ == "__main__":
    main()
