"""The carriers' recipe, a few steps on a text of nonsense. Needs torch."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgemoe.cli.json_text import write_json
from edgemoe.cli.main import run_command
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from tests.architectures.harness import relative_error
from tests.bench.reports import made_up_report

pytest.importorskip("tomllib")
pytestmark = [pytest.mark.oracle, pytest.mark.slow]

RECIPE = Path(__file__).parents[1] / "models" / "carriers" / "recipe"
MODULES = ("carrier", "evaluate", "export", "ffns", "finish", "page", "table", "texts", "train")
FFNS: dict[str, dict[str, Any]] = {
    "dense": {"ffn": "dense", "intermediate_size": 48},
    "moe": {"ffn": "moe", "num_experts": 4, "top_k": 2, "intermediate_size": 12, "balance": 0.01, "noise": True},
    "fff": {"ffn": "fff", "depth": 3, "leaf_width": 6, "hardening": 1.0},
    "peer": {"ffn": "peer", "num_experts": 64, "heads": 2, "top_k": 4, "key_size": 8},
    "distilled": {"ffn": "dense", "intermediate_size": 12, "teacher": "moe", "teacher_weight": 0.5},
    "balance-none": {
        "ffn": "moe",
        "num_experts": 4,
        "top_k": 2,
        "intermediate_size": 12,
        "balance": 0.0,
        "noise": False,
    },
}
OTHERS: dict[str, dict[str, Any]] = {
    "narrow": {"ffn": "dense", "intermediate_size": 12},
    "continued": {**FFNS["distilled"], "teacher_weight": 0.0},
    "balance-both": {**FFNS["moe"], "steps": 3},
    "balance-loss": {**FFNS["moe"], "noise": False, "steps": 3},
    "balance-noise": {**FFNS["moe"], "balance": 0.0, "steps": 3},
}
"""Variants that the page needs beside `FFNS`."""

STEPS = 6


@pytest.fixture(scope="module")
def torch() -> ModuleType:
    """Imported when a test asks for it: others that run with this file need not wait."""
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def recipe(torch: ModuleType) -> Iterator[dict[str, ModuleType]]:
    """Modules of the recipe by name, which no other test finds afterwards."""
    sys.path.insert(0, str(RECIPE))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield {name: __import__(name) for name in MODULES}
    finally:
        torch.set_num_threads(threads)
        sys.path.remove(str(RECIPE))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def settings(recipe: dict[str, ModuleType]) -> dict[str, Any]:
    """The recipe's own settings, of a tiny size."""
    own = recipe["carrier"].load_settings()
    own["body"] |= {"vocab_size": 300, "hidden_size": 16, "layers": 2, "heads": 2, "kv_heads": 1, "context": 24}
    own["data"] |= {"tokens_per_domain": 3000, "held_out_tokens": 120, "tokenizer_bytes": 4000}
    own["training"] |= {"steps": STEPS, "warmup_steps": 2, "check_every": 3, "check_rows": 2, "rate": 1e-2}
    return {**own, "variants": FFNS}


@pytest.fixture(scope="module")
def work(recipe: dict[str, ModuleType], settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with the texts of two domains, and every variant trained."""
    folder = tmp_path_factory.mktemp("carriers")
    drawn = np.random.default_rng(0)
    words = ["".join(drawn.choice(list("abcdefgh"), 4)) for _ in range(40)]
    texts = {name: [" ".join(drawn.choice(words, 80)) for _ in range(30)] for name in ("one", "other")}

    def tokenise(own: list[str], tokenizer: Any, _seed: int, limit: int, held: int) -> dict[str, np.ndarray]:
        ids = np.array([i for text in own for i in tokenizer.encode(text).ids], np.uint16)
        return {"train": ids[: -held - 1][:limit], "held_out": ids[-held:]}

    recipe["texts"].write(texts, folder, settings, tokenise)
    for name in FFNS:
        recipe["train"].Trainer(name, folder, settings).run()
    return folder


def log(work: Path, name: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (work / name / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights(torch: ModuleType, work: Path, name: str) -> dict[str, Any]:
    state = torch.load(work / name / "last.pt", weights_only=True)["model"]
    return {key: value.numpy() for key, value in state.items()}


@pytest.mark.parametrize("name", FFNS)
def test_training_goes_on_to_the_same_weights(
    torch: ModuleType, recipe: dict[str, ModuleType], settings: dict[str, Any], work: Path, name: str, tmp_path: Path
) -> None:
    """Twice with one seed is one curve, also where the second training was stopped, and killed, on its way."""
    for needed in ("tokens", "moe"):
        (tmp_path / needed).symlink_to(work / needed) if needed != name else None
    train = recipe["train"]
    train.Trainer(name, tmp_path, settings).run(2)
    killed = train.Trainer(name, tmp_path, settings)
    killed.log(killed.train_step())
    with killed.log_path.open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    train.Trainer(name, tmp_path, settings).run()
    assert log(tmp_path, name) == log(work, name)
    assert [line["step"] for line in log(work, name)] == [1, 2, 3, 4, 5, 6]
    first, second = weights(torch, work, name), weights(torch, tmp_path, name)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", FFNS)
def test_losses_fall(settings: dict[str, Any], work: Path, name: str) -> None:
    losses = [line["loss"] for line in log(work, name)]
    assert losses[-1] < losses[0]
    assert losses[0] == pytest.approx(math.log(settings["body"]["vocab_size"]), rel=0.1) or name == "distilled"


def test_products_with_chosen_rows_and_their_gradients(torch: ModuleType, recipe: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    x, rows = (torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for n in (7, 11))
    chosen = torch.randint(0, 11, (7, 6))
    scores = recipe["ffns"].Scores.apply
    plain = torch.einsum("td,tkd->tk", x, rows[chosen])
    assert torch.allclose(scores(x, chosen, rows), plain)
    assert torch.autograd.gradcheck(lambda a, b: scores(a, chosen, b), (x, rows))


def test_a_tree_is_hard_in_inference(torch: ModuleType, recipe: dict[str, ModuleType]) -> None:
    """The way that a loop over nodes finds, and the leaf at its end alone; soft decisions that are sure agree."""
    torch.manual_seed(1)
    tree = recipe["ffns"].FastFeedForward(8, FFNS["fff"], 0.3).eval()
    tree.node_biases.data.normal_()
    tree.b1s.data.normal_()
    x = torch.randn(20, 8)
    with torch.no_grad():
        found = tree(x)
        for row, out in zip(x, found, strict=True):
            node = 0
            for _ in range(3):
                node = 2 * node + 1 + int(tree.node_weights[node] @ row + tree.node_biases[node, 0] >= 0)
            leaf = node - 7
            inner = torch.relu(row @ tree.w1s[leaf] + tree.b1s[leaf])
            assert torch.allclose(out, inner @ tree.w2s[leaf], atol=1e-6)
        tree.node_weights.mul_(1e6)
        tree.node_biases.mul_(1e6)
        tree.soft = True
        assert torch.allclose(tree(x), found, atol=1e-6)


def test_losses_of_balance_and_hardening(torch: ModuleType, recipe: dict[str, ModuleType]) -> None:
    """Even use costs 1, one expert for everything as much as there are experts; a sure tree costs nothing."""
    ffns = recipe["ffns"]
    torch.manual_seed(2)
    x = torch.randn(64, 8)
    moe = ffns.Moe(8, {**FFNS["moe"], "balance": 1.0, "noise": False, "top_k": 1}, 0.02).train()
    moe.gate.weight.data.zero_()
    moe.gate.weight.data[0] = 1e3
    moe(x.abs())
    assert float(moe.losses[0].detach()) == pytest.approx(4)
    tree = ffns.FastFeedForward(8, FFNS["fff"], 0.3).train()
    tree.progress = 1.0
    tree.node_weights.data.zero_()
    tree(x)
    tree.node_biases.data.fill_(100.0)
    tree(x)
    assert [float(loss.detach()) for loss in tree.losses] == pytest.approx([math.log(2), 0])


def test_exports_have_what_the_family_reads(
    recipe: dict[str, ModuleType], settings: dict[str, Any], work: Path
) -> None:
    export, load = recipe["export"], recipe["carrier"].load
    shapes = {}
    for name in ("dense", "moe", "fff", "peer"):
        model = load(settings, name, work)
        export.write(model, work / name / "hf", work / "tokenizer.json")
        config = json.loads((work / name / "hf" / "config.json").read_text(encoding="utf-8"))
        assert (config["model_type"], config["ffn"]) == ("edgemoe_carrier", name)
        tensors = load_file(work / name / "hf" / "model.safetensors")
        stem = "model.layers.1.mlp."
        shapes[name] = {key.removeprefix(stem): own.shape for key, own in tensors.items() if key.startswith(stem)}
    assert shapes["dense"] == {"gate_proj.weight": (48, 16), "up_proj.weight": (48, 16), "down_proj.weight": (16, 48)}
    assert shapes["moe"]["gate.weight"] == (4, 16)
    assert len(shapes["moe"]) == 1 + 4 * 3
    trees = {"node_weights": (7, 16), "node_biases": (7, 1), "w1s": (8, 16, 6), "b1s": (8, 6), "w2s": (8, 6, 16)}
    assert shapes["fff"] == trees
    assert shapes["peer"] == {
        "to_queries.weight": (32, 16),
        "to_queries.bias": (32,),
        "keys": (2, 8, 2, 8),
        "weight_down_embed.weight": (64, 16),
        "weight_up_embed.weight": (64, 16),
    }


@pytest.mark.parametrize("name", ["dense", "moe", "fff", "peer"])
def test_an_engine_computes_what_training_did(
    torch: ModuleType, recipe: dict[str, ModuleType], settings: dict[str, Any], work: Path, tmp_path: Path, name: str
) -> None:
    model = recipe["carrier"].load(settings, name, work)
    recipe["export"].write(model, tmp_path / "hf", work / "tokenizer.json")
    store = convert_checkpoint(str(tmp_path / "hf"), tmp_path / "store", experts="f32", dense="f32")
    ids = np.arange(20) * 7 % 300
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None])[0].numpy()
    with open_engine(store, EngineOptions(threads=1)) as engine:
        found = engine.forward(ids.tolist(), all_logits=True)
    assert relative_error(found, expected) < 1e-5


def test_folded_queries_are_the_normalised_ones(
    torch: ModuleType, recipe: dict[str, ModuleType], settings: dict[str, Any], work: Path
) -> None:
    ffn = recipe["carrier"].load(settings, "peer", work).ffns()[1]
    weight, bias = recipe["export"].folded_queries(ffn)
    x = torch.randn(9, 16)
    with torch.no_grad():
        assert torch.allclose(ffn.query_norm(ffn.to_queries(x)), x @ weight.T + bias, atol=1e-5)
    assert float(bias.abs().max()) > 0


def test_a_student_begins_as_its_teacher(
    torch: ModuleType, recipe: dict[str, ModuleType], settings: dict[str, Any], work: Path, tmp_path: Path
) -> None:
    for needed in ("tokens", "moe"):
        (tmp_path / needed).symlink_to(work / needed)
    fresh = recipe["train"].Trainer("distilled", tmp_path, settings)
    own, of_teacher = fresh.model.state_dict(), fresh.teacher.state_dict()
    outside = [name for name in own if ".mlp." not in name]
    assert outside
    assert all(torch.equal(own[name], of_teacher[name]) for name in outside)
    teacher, student = np.random.default_rng(3).normal(size=(2, 5, 9))
    p, q = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True) for logits in (teacher, student))
    found = recipe["train"].divergence(torch.from_numpy(teacher), torch.from_numpy(student))
    assert float(found) == pytest.approx((p * np.log(p / q)).sum() / 5)


def test_tables_come_from_logs_and_results(
    recipe: dict[str, ModuleType], settings: dict[str, Any], work: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = work / "settings.toml"
    lines = []
    for table, values in settings.items():
        groups = {f"variants.{k}": v for k, v in values.items()} if table == "variants" else {table: values}
        for name, group in groups.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in group.items())]
    path.write_text("\n".join(lines), encoding="utf-8")
    own = ["--work", str(work), "--settings", str(path)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *FFNS, *own, "--text", str(work / "held_out.txt")])
    recipe["evaluate"].main()
    results = {name: json.loads((work / name / "results.json").read_text(encoding="utf-8")) for name in FFNS}
    assert results["fff"]["ffn"]["neurons_read"] == 2 * (3 + 6)
    assert results["peer"]["ffn"]["neurons_read"] == 2 * 2 * 4
    assert results["moe"]["ffn"]["neurons_read"] * 2 == results["dense"]["ffn"]["neurons_read"]
    assert results["dense"]["held_out"]["perplexity"] < 300
    assert results["moe"]["balance"]["most"] >= 1 >= results["moe"]["balance"]["least"]
    assert results["dense"]["balance"] == {}
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["table.py", *own, "--plot", str(work / "plot.png")])
    recipe["table"].main()
    printed = capsys.readouterr().out
    for row in ("| PEER |", "| Fast Feed-Forward |", "| neither, 4 |", "| one |"):
        assert row in printed
    assert (work / "plot.png").stat().st_size > 1000


class Commands:
    """Runs commands of edgemoe in this process, but one evaluation only; the figures of benchmarks are made up."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.missing = ""
        """The command that fails."""
        self.evaluated = ""
        """A result of the evaluation, which stands for all others."""

    def __call__(self, words: list[str]) -> None:
        if words[0] == self.missing:
            raise SystemExit("interrupted")
        self.words.append(words[0])
        if words[0] == "bench":
            write_json(made_up_report(), Path(words[-1]))
        elif words[0] == "eval" and self.evaluated:
            Path(words[-1]).write_text(self.evaluated, encoding="utf-8")
        else:
            assert run_command(list(words)) == 0
            if words[0] == "eval":
                self.evaluated = Path(words[-1]).read_text(encoding="utf-8")


def test_one_command_makes_stores_cards_and_the_page(
    recipe: dict[str, ModuleType],
    settings: dict[str, Any],
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It names a training that has not ended, goes on where it was stopped, and makes again what has changed."""
    finish, run, all_variants = recipe["finish"], Commands(), {**settings, "variants": FFNS | OTHERS}
    own = finish.Finish(work, all_variants, work / "held_out.txt", [], run)
    with pytest.raises(SystemExit, match=r"narrow: trained for 0 of 6 steps: run train\.py narrow to its end first"):
        own.check_trained()
    for name in OTHERS:
        recipe["train"].Trainer(name, work, all_variants).run()
    own.check_trained()
    run.missing = "eval"
    with pytest.raises(SystemExit, match="interrupted"):
        own.measure()
    run.missing = ""
    own.measure()
    long = [name for name in all_variants["variants"] if not name.startswith("balance")]
    wanted = {"convert": 2 * len(long), "bench": len(long), "eval": len(long) + 3}
    assert {word: run.words.count(word) for word in wanted} == wanted
    own.measure()
    assert len(run.words) == sum(wanted.values())

    page = tmp_path / "mixtures.md"
    own.publish(tmp_path / "carriers", page)
    text = page.read_text(encoding="utf-8")
    for part in ("| PEER |", "| neither, 4 |", "| dense, narrow |", "| Fast Feed-Forward | 0.0 MB |"):
        assert part in text
    assert page.with_suffix(".png").stat().st_size > 1000
    assert max(len(line) for line in text.splitlines() if not line.startswith(("|", "!"))) <= 120
    shared = (tmp_path / "carriers" / "README.md").read_text(encoding="utf-8")
    assert "| bible | King James Bible" in shared
    for name in ("dense", "moe", "fff", "peer"):
        folder = tmp_path / "carriers" / name
        assert "6 steps" in (folder / "README.md").read_text(encoding="utf-8")
        assert len((folder / "training-log.jsonl").read_text(encoding="utf-8").splitlines()) == 6
        assert str(tmp_path.parent) not in (folder / "store" / "edgemoe.json").read_text(encoding="utf-8")
        with open_engine(folder / "store", EngineOptions(threads=1)) as engine:
            assert np.isfinite(engine.forward([1, 2, 3])).all()

    monkeypatch.setattr(finish, "LIMIT", 1000)
    with pytest.raises(SystemExit, match=r"the stores have .* bytes: expected at most"):
        own.publish(tmp_path / "carriers", page)
    recipe["train"].Trainer("narrow", work, all_variants).save()
    own.measure()
    assert run.words[sum(wanted.values()) :] == ["convert", "convert", "bench", "eval", "eval"]


def test_how_far_a_perplexity_goes(recipe: dict[str, ModuleType]) -> None:
    way = recipe["page"].way
    assert way(100, 10, 1) == "goes 50% of the way from 100.00 to 1.00 in nats"
    assert way(100, 110, 90).startswith("goes -90% of the way")
    assert way(10, 9, 11) == "has no way to go, as 11.00 is no better than 10.00"


def test_bad_settings_are_named(recipe: dict[str, ModuleType], settings: dict[str, Any], tmp_path: Path) -> None:
    carrier = recipe["carrier"]
    with pytest.raises(SystemExit, match=r"No variant mixture\. config\.toml has dense, moe"):
        carrier.build(settings, "mixture")
    with pytest.raises(SystemExit, match=r"run train\.py dense first"):
        carrier.load(settings, "dense", tmp_path)
    with pytest.raises(SystemExit, match=r"run texts\.py first"):
        recipe["train"].Trainer("dense", tmp_path, settings)
    odd = copy.deepcopy(settings)
    odd["variants"]["peer"]["num_experts"] = 60
    with pytest.raises(ValueError, match="expected a square, found 60"):
        carrier.build(odd, "peer")
