"""A rule is a test: the conventions of CONTRIBUTING.md that a machine can check.

Every check has one example that must fail, so that a check which stops looking is noticed.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Room of csrc/ -> the rooms whose headers it may include.
CSRC_MAY_INCLUDE = {
    "base": set(),
    "io": {"base"},
    "format": {"base"},
    "tree": {"base"},
    "search": {"base"},
    "storage": {"base", "io", "format", "search", "tree"},
    "focus": {"base", "tree"},
    "kernels": {"base"},
    "bindings": {"base", "io", "format", "storage", "tree", "search", "focus"},
    "torch_ops": {"base", "kernels"},
    "tools": {"base", "io", "format", "storage", "tree", "search", "focus"},
}
# Room of python/megacontext/ -> rooms it may import. A leaf may import everything.
PYTHON_MAY_IMPORT = {
    "config": set(),
    "models": {"config"},
    "gists": {"config", "models"},
    "lens": {"config", "models"},
    "paged": {"config", "models", "gists", "lens", "runtime"},
    "view": {"config"},
    "remote": {"config"},
    "runtime": {"config", "models", "gists", "lens"},
    "curate": {"config", "runtime"},
    "transfer": {"config", "models", "runtime"},
    "keeping": {"config", "models", "remote", "runtime", "curate", "transfer"},
    "memory": {"config", "models", "gists", "lens", "remote", "runtime", "view", "keeping"},
    "train": {"config", "models", "gists", "lens", "runtime", "eval"},
    "eval": {"config", "models", "gists", "lens", "runtime", "memory", "paged"},
}
PYTHON_LEAVES = {"cli", "demo", "__init__", "__main__"}

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
KERNEL_LINES_MAX = 100
LINE_COLUMNS_MAX = 100

# Word or call -> what to use instead.
BANNED_CPP = {
    r"\bstd::endl\b": "'\\n'",
    r"#\s*ifdef\s+(MC_HAVE_CUDA|__CUDACC__)": "a link-time stub in kernels/cuda_absent.cc",
    r"\bsprintf\(": "str_cat",
    r"\bFIXME\b": "an issue, or the fix",
}
BANNED_PYTHON = {
    r"except\s*:": "a named exception",
    r"\bFIXME\b": "an issue, or the fix",
    r"except Exception:\s*pass": "a named condition and one log line",
}
# Files over the limits on the day the rule landed. This list may only shrink.
RATCHET: set[str] = set()


@dataclass(frozen=True)
class Finding:
    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def cpp_files() -> list[Path]:
    return tracked("csrc/*.h", "csrc/*.cc", "csrc/*.cu", "csrc/*.cuh")


def python_files() -> list[Path]:
    found = tracked(
        "megacontext_ext/*.py", "python/*.py", "benchmarks/*.py", "tests/*.py", "tools/*.py"
    )
    # A results folder is a record: what it was made with stays as it was.
    return [path for path in found if "benchmarks/results" not in relative(path)]


def include_findings(path: str, text: str) -> Iterator[Finding]:
    room = path.split("/")[1]
    allowed = CSRC_MAY_INCLUDE.get(room, set()) | {room}
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r'\s*#\s*include\s+"([a-z_]+)/', line)
        if found and found[1] in CSRC_MAY_INCLUDE and found[1] not in allowed:
            yield Finding(path, number, f"{room}/ must not include {found[1]}/")
        if re.match(r"\s*#\s*include\s+<(pybind11|Python\.h)", line) and room != "bindings":
            yield Finding(path, number, "Python headers belong in bindings/ only")
        if re.match(r"\s*#\s*include\s+<torch/", line) and room != "torch_ops":
            yield Finding(path, number, "torch headers belong in torch_ops/ only")


def import_findings(path: str, text: str) -> Iterator[Finding]:
    parts = path.split("/")
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            yield from _import_finding(path, parts, node.lineno, name)


def _import_finding(path: str, parts: list[str], line: int, name: str) -> Iterator[Finding]:
    if parts[0] == "megacontext_ext" and name.split(".")[0] == "megacontext":
        yield Finding(path, line, "megacontext_ext must not import megacontext")
    if parts[0] == "python" and re.match(r"megacontext_ext\._", name):
        yield Finding(path, line, f"{name} is private to megacontext_ext")
    if parts[:2] == ["python", "megacontext"] and name.startswith("megacontext."):
        room, target = parts[2].removesuffix(".py"), name.split(".")[1]
        allowed = PYTHON_MAY_IMPORT.get(room)
        if room in PYTHON_LEAVES or target == room:
            return
        if allowed is None:
            yield Finding(path, line, f"room {room!r} has no line in PYTHON_MAY_IMPORT")
        elif target not in allowed:
            yield Finding(path, line, f"{room} must not import {target}")


def size_findings(path: str, text: str) -> Iterator[Finding]:
    lines = text.splitlines()
    if len(lines) > FILE_LINES_MAX and path not in RATCHET:
        yield Finding(path, len(lines), f"{len(lines)} lines, at most {FILE_LINES_MAX}")
    for number, line in enumerate(lines, 1):
        if len(line) > LINE_COLUMNS_MAX and "http" not in line:
            yield Finding(path, number, f"{len(line)} columns, at most {LINE_COLUMNS_MAX}")


def python_function_findings(path: str, text: str) -> Iterator[Finding]:
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES_MAX and path not in RATCHET:
            yield Finding(path, node.lineno, f"{node.name} has {length} lines, at most 70")


def cpp_function_findings(path: str, text: str) -> Iterator[Finding]:
    """Functions at namespace scope, found by their closing brace in column 0."""
    start, is_kernel = 0, False
    for number, line in enumerate(text.splitlines(), 1):
        opens = re.match(r"^[A-Za-z_].*\)?[^;]*\{\s*$", line)
        if opens and not re.match(r"^(namespace|struct|class|enum|union|extern)\b", line):
            start = start or number
        elif re.match(r"^[A-Za-z_]", line) and not line.rstrip().endswith(";") and start == 0:
            start = number
        is_kernel = is_kernel or (start != 0 and "__global__" in line)
        if line.startswith("}"):
            limit = KERNEL_LINES_MAX if is_kernel else FUNCTION_LINES_MAX
            if start and number - start + 1 > limit and line.strip() == "}" and path not in RATCHET:
                yield Finding(
                    path, start, f"function of {number - start + 1} lines, at most {limit}"
                )
            start, is_kernel = 0, False
        elif line.rstrip().endswith(";") and not line.startswith((" ", "\t")):
            start, is_kernel = 0, False


def banned_findings(path: str, text: str, banned: dict[str, str]) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in banned.items():
            if re.search(pattern, line):
                yield Finding(path, number, f"{pattern} is not used here; use {instead}")


def skip_findings(path: str, text: str) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"@pytest\.mark\.(skip|xfail)\b", line) and not re.search(r"reason=", line):
            yield Finding(path, number, "a skipped test needs a reason")


def kernel_findings(ops: list[str], exists: set[str]) -> Iterator[Finding]:
    for op in ops:
        for place in (
            f"csrc/kernels/{op}/{op}.h",
            f"csrc/kernels/{op}/{op}.cc",
            f"csrc/kernels/{op}/README.md",
            f"csrc/torch_ops/{op}_op.cc",
            f"megacontext_ext/ops/{op}.py",
            f"megacontext_ext/reference/{op}.py",
            f"tests/kernels/test_{op}.py",
            f"benchmarks/kernels/bench_{op}.py",
        ):
            if place not in exists:
                yield Finding(place, 0, f"missing: a place that kernel {op} needs")


def report(findings: Iterator[Finding]) -> str:
    return "\n".join(str(finding) for finding in findings)


def over(files: list[Path], check) -> Iterator[Finding]:
    for path in files:
        yield from check(relative(path), path.read_text(encoding="utf-8"))


def test_cpp_rooms_include_only_what_they_may():
    assert report(over(cpp_files(), include_findings)) == ""


def test_python_rooms_import_only_what_they_may():
    files = [
        p for p in python_files() if relative(p).split("/")[0] in ("megacontext_ext", "python")
    ]
    assert report(over(files, import_findings)) == ""


def test_files_and_lines_stay_within_their_budgets():
    assert report(over(cpp_files() + python_files(), size_findings)) == ""


def test_functions_stay_within_their_budgets():
    assert report(over(python_files(), python_function_findings)) == ""
    assert report(over(cpp_files(), cpp_function_findings)) == ""


def test_banned_words_and_calls_are_absent():
    cpp = over(cpp_files(), lambda p, t: banned_findings(p, t, BANNED_CPP))
    python = over(
        [p for p in python_files() if p != Path(__file__)],
        lambda p, t: banned_findings(p, t, BANNED_PYTHON),
    )
    assert report(cpp) == ""
    assert report(python) == ""


def test_no_test_is_skipped_without_a_reason():
    files = [p for p in tracked("tests/*.py") if p != Path(__file__)]
    assert report(over(files, skip_findings)) == ""


def test_every_kernel_stands_in_all_its_places():
    ops = sorted(
        p.name for p in (ROOT / "csrc/kernels").iterdir() if p.is_dir() and p.name != "common"
    )
    assert report(kernel_findings(ops, {relative(p) for p in tracked()})) == ""


def test_every_room_has_its_page():
    rooms = [p for p in (ROOT / "csrc").iterdir() if p.is_dir()]
    missing = [
        relative(room)
        for room in rooms
        if room.name not in ("base", "torch_ops", "bindings", "tools")
        and not (room / "README.md").exists()
        and any(room.iterdir())
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("check", "path", "text"),
    [
        (include_findings, "csrc/storage/x.cc", '#include "focus/entry.h"\n'),
        (include_findings, "csrc/kernels/x/x.cc", "#include <torch/x.h>\n"),
        (import_findings, "megacontext_ext/x.py", "import megacontext\n"),
        (import_findings, "python/megacontext/lens/x.py", "from megacontext.cli import main\n"),
        (import_findings, "python/megacontext/lens/x.py", "import megacontext_ext._engine\n"),
        (size_findings, "csrc/base/x.cc", "x\n" * 601),
        (size_findings, "csrc/base/x.cc", "x" * 101),
        (python_function_findings, "tests/x.py", "def f():\n" + "    x = 1\n" * 71),
        (cpp_function_findings, "csrc/base/x.cc", "void f() {\n" + "  x();\n" * 71 + "}\n"),
        (skip_findings, "tests/x.py", "@pytest.mark.skip\n"),
        (lambda p, t: banned_findings(p, t, BANNED_CPP), "csrc/x.cc", "std::endl\n"),
        (lambda p, t: banned_findings(p, t, BANNED_PYTHON), "x.py", "except:\n"),
        (lambda p, t: kernel_findings(["x"], set()), "", ""),
    ],
)
def test_each_check_finds_its_planted_fault(check, path, text):
    assert list(check(path, text))
