"""Plain texts by domain, out of Debian packages: fetched, unpacked, cleaned and tokenised.

`fetch` downloads the packages with apt-get and unpacks them (nothing is installed); `build` writes
one ``DOMAIN.npz`` of token ids per domain, ``train`` and ``held_out``. Texts are shuffled by
document, then cut; the held-out part is whole documents from the end of that order. Two tools from
the packages are run in place: the reader of the Bible and the formatter of manual pages.
"""

from __future__ import annotations

import argparse
import gzip
import html
import random
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from gguf_source import DenseSource
from settings import load_settings
from tokens import make_tokenizer

PACKAGES = (
    "python3.11-doc", "libpython3.11-stdlib", "libpython3.11-minimal", "bible-kjv",
    "bible-kjv-text", "r-cran-janeaustenr", "wordnet-base", "bsdgames", "freebsd-manpages",
    "mandoc", "libstb-dev", "sqlite3-doc", "dict-jargon", "dict-devil",
)  # fmt: skip
QUIZ = {  # bsdgames quiz file: how its first two columns become a question and an answer
    "africa": ("What is the capital of {0}?", "The capital of {0} is {1}."),
    "america": ("What is the capital of {0}?", "The capital of {0} is {1}."),
    "asia": ("What is the capital of {0}?", "The capital of {0} is {1}."),
    "europe": ("What is the capital of {0}?", "The capital of {0} is {1}."),
    "state": ("What is the capital of the state of {0}?", "The capital of {0} is {1}."),
    "province": ("What is the capital of the province of {0}?", "The capital of {0} is {1}."),
    "babies": ("What animal is a {0} the young of?", "A {0} is a young {1}."),
    "collectives": ("What is a group of {0} called?", "A group of {0} is called a {1}."),
    "flowers": ("What does the flower {0} stand for?", "The flower {0} stands for {1}."),
    "latin": ("What does the Latin {0} mean?", "{0} means: {1}."),
    "greek": ("What does the Greek {0} mean?", "{0} means: {1}."),
    "sexes": ("What is the female of {0}?", "The female of {0} is {1}."),
    "sov": ("In which century did {0} reign?", "{0}: {1}."),
    "pres": ("When was {0} president of the United States?", "{0}: {1}."),
    "mult": ("How much is {0}?", "{0} = {1}."),
}  # fmt: skip


def fetch(folder: Path) -> None:
    """Downloads the packages that are not there yet and unpacks them side by side."""
    downloads = folder / "debs"
    downloads.mkdir(parents=True, exist_ok=True)
    (folder / "debroot").mkdir(exist_ok=True)
    missing = [name for name in PACKAGES if not list(downloads.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", *missing], cwd=downloads, check=True)
    for name in PACKAGES:
        target = folder / "debroot" / name
        if not target.exists():
            deb = next(downloads.glob(f"{name}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(deb), str(target)], check=True)


def files(root: Path, package: str, pattern: str) -> list[Path]:
    """Files of one unpacked package, in a fixed order."""
    return sorted(path for path in (root / package).rglob(pattern) if path.is_file())


def python_docs(root: Path) -> Iterator[str]:
    """The reStructuredText sources of Python's documentation."""
    for path in files(root, "python3.11-doc", "*.rst.txt"):
        if "whatsnew" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="ignore")


def python_code(root: Path) -> Iterator[str]:
    """Modules of Python's standard library."""
    for package in ("libpython3.11-stdlib", "libpython3.11-minimal"):
        for path in files(root, package, "*.py"):
            if "encodings" not in path.parts and "pydoc_data" not in path.parts:
                yield path.read_text(encoding="utf-8", errors="ignore")


def bible(root: Path) -> Iterator[str]:
    """The King James Bible, chapter by chapter."""
    program = root / "bible-kjv/usr/bin/bible"
    data = root / "bible-kjv-text/usr/lib"
    command = [str(program), "-l2000", "Gen1:1-Rev22:21"]
    text = subprocess.run(command, cwd=data, capture_output=True, check=True, text=True).stdout
    for chapter in re.split(r"\n(?=(?:[1-3] )?[A-Z][A-Za-z ]+ \d+\n)", text):
        yield re.sub(r"\n\s+(\d+) ", r"\n\1 ", re.sub(r"\n\n+", "\n", chapter))


def novels(root: Path) -> Iterator[str]:
    """Jane Austen's six novels, out of the compressed R objects, in pieces of 200 lines."""
    data = files(root, "r-cran-janeaustenr", "Rdata.rdb")[0].read_bytes()
    position = 0
    while position < len(data):
        unpacker = zlib.decompressobj()
        block = unpacker.decompress(data[position + 4 :])  # 4 bytes of length come before it
        position = len(data) - len(unpacker.unused_data)
        lines, at = [], block.find(b"\x00\x04\x00\x09")
        while at >= 0:
            (length,) = struct.unpack(">i", block[at + 4 : at + 8])
            lines.append(block[at + 8 : at + 8 + max(length, 0)].decode("utf-8", "ignore"))
            at = block.find(b"\x00\x04\x00\x09", at + 8 + max(length, 0))
        for start in range(0, len(lines), 200):
            yield "\n".join(lines[start : start + 200])


def wordnet(root: Path) -> Iterator[str]:
    """Glosses and examples as questions and answers, twelve to a document."""
    entries = []
    for kind in ("noun", "verb", "adj", "adv"):
        path = root / f"wordnet-base/usr/share/wordnet/data.{kind}"
        for line in path.read_text(encoding="utf-8", errors="ignore").splitlines():
            if line.startswith("  ") or " | " not in line:
                continue
            head, gloss = line.split(" | ", 1)
            word = head.split()[4].replace("_", " ").split("(")[0]
            meaning, *examples = gloss.strip().split('; "')
            text = f"Question: What does the word {word} ({kind}) mean?\nAnswer: {meaning}.\n"
            if examples:
                text += "Example: " + examples[0].strip('" ') + "\n"
            entries.append(text)
    random.Random(0).shuffle(entries)
    for start in range(0, min(len(entries), 24000), 12):
        yield "\n".join(entries[start : start + 12])


def quiz(root: Path) -> Iterator[str]:
    """The quiz of the BSD games as questions and answers, ten to a document, in several orders."""
    pairs = []
    for name, (ask, answer) in QUIZ.items():
        path = root / "bsdgames/usr/share/games/bsdgames/quiz" / name
        for line in path.read_text(encoding="latin-1").replace("\\\n", "").splitlines():
            fields = [re.sub(r"\{([^{}]*)\}", r"\1", f) for f in line.split(":")]
            fields = [re.sub(r"\[([^|\]]*)\|?[^\]]*\]", r"\1", f).split("|")[0] for f in fields]
            if len(fields) > 1 and all(fields[:2]) and not set("{}[]") & set("".join(fields[:2])):
                pairs.append(f"Q: {ask.format(*fields)}\nA: {answer.format(*fields)}\n")
    rng = random.Random(0)
    rng.shuffle(pairs)
    held, pairs = pairs[: len(pairs) // 12], pairs[len(pairs) // 12 :]
    for _ in range(4):
        rng.shuffle(pairs)
        for start in range(0, len(pairs), 10):
            yield "\n".join(pairs[start : start + 10])
    yield "HELD OUT\n" + "\n".join(held)


def manuals(root: Path) -> Iterator[str]:
    """FreeBSD's manual pages, formatted as plain text; every third one."""
    program = root / "mandoc/usr/bin/mandoc"
    for path in files(root, "freebsd-manpages", "*.gz")[::3]:
        source = gzip.decompress(path.read_bytes())
        if b".so " in source[:200] or path.name.startswith("changelog"):
            continue
        done = subprocess.run([program, "-Tascii"], input=source, capture_output=True, check=False)
        yield re.sub(r".\x08", "", done.stdout.decode("utf-8", "ignore"))


def c_code(root: Path) -> Iterator[str]:
    """The stb single-file libraries, in pieces of 300 lines."""
    for path in files(root, "libstb-dev", "*.h"):
        lines = path.read_text(encoding="utf-8", errors="ignore").splitlines()
        for start in range(0, len(lines), 300):
            yield "\n".join(lines[start : start + 300])


def sql_docs(root: Path) -> Iterator[str]:
    """SQLite's documentation, its markup taken off."""
    for path in files(root, "sqlite3-doc", "*.html"):
        if path.stat().st_size > 200_000 or "releaselog" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        text = re.sub(r"(?s)<(script|style|head)\b.*?</\1>|<!--.*?-->", "", text)
        text = html.unescape(re.sub(r"<[^>]+>", "", text))
        yield re.sub(r"\n\s*\n+", "\n\n", text.split("Search Changelog", 1)[-1]).strip()


def dictionaries(root: Path) -> Iterator[str]:
    """The Jargon File and The Devil's Dictionary, in pieces of 150 lines."""
    for package in ("dict-jargon", "dict-devil"):
        for path in files(root, package, "*.dict.dz"):
            lines = gzip.decompress(path.read_bytes()).decode("utf-8", "ignore").splitlines()
            for start in range(0, len(lines), 150):
                yield "\n".join(lines[start : start + 150])


DOMAINS: dict[str, Callable[[Path], Iterator[str]]] = {
    "python_docs": python_docs,
    "python_code": python_code,
    "bible": bible,
    "novels": novels,
    "wordnet": wordnet,
    "quiz": quiz,
    "manuals": manuals,
    "c_code": c_code,
    "sql_docs": sql_docs,
    "dictionaries": dictionaries,
}


def tokenise(texts: list[str], tokenizer, seed: int, limit: int, held: int) -> dict:
    """Token ids of the domain, cut into ``train`` and ``held_out`` at a document's end."""
    reserved = [text for text in texts if text.startswith("HELD OUT\n")]
    texts = [text for text in texts if len(text) > 200 and text not in reserved]
    random.Random(seed).shuffle(texts)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text.removeprefix("HELD OUT\n").strip() + "\n\n").ids

    held_out: list[int] = []
    for text in reserved:
        held_out += ids(text)
    while len(held_out) < held and not reserved:
        held_out += ids(texts.pop())[: held // 3]
    train: list[int] = []
    for text in texts:
        if len(train) >= limit:
            break
        train += ids(text)[: limit // 10]
    return {
        "train": np.array(train[:limit], dtype=np.uint16),
        "held_out": np.array(held_out[:held], dtype=np.uint16),
    }


def main() -> None:
    """Fetch the packages and write the token files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    settings = load_settings()
    args.work = args.work.resolve()
    fetch(args.work)
    tokenizer = make_tokenizer(DenseSource(args.gguf))
    out = args.work / "tokens"
    out.mkdir(exist_ok=True)
    sizes = settings["corpora"]
    for name, read in DOMAINS.items():
        parts = tokenise(
            list(read(args.work / "debroot")),
            tokenizer,
            settings["data"]["seed"],
            sizes["tokens_per_domain"],
            sizes["held_out_tokens"],
        )
        np.savez(out / f"{name}.npz", **parts)
        print(f"{name}: {len(parts['train'])} tokens, {len(parts['held_out'])} held out")


if __name__ == "__main__":
    main()
