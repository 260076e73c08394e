"""Curation: plans change nothing, actions can be taken back until the purge, protected stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megacontext.curate import AuditLog, Plan, Rule, Rules, apply_plan, make_plan, purge, report
from megacontext.curate import restore as take_back
from megacontext.runtime import SourceState, family_name
from megacontext_ext import Store
from megacontext_ext.errors import Corruption, InvalidArgument, NotFound

GIST = family_name("gist", "1")
DAY_MS = 86_400_000
SOURCES = {"old.txt": [], "kept.txt": ["protected"], "big.txt": ["log"], "new.txt": []}


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "m", {"model": "none"}) as opened:
        opened.define_rows("sketch-v1", 1, "i8", 4)
        opened.define_rows(GIST, 1, "f32", 8)
        opened.define_rows("access-v1", 1, "u32", 1)
        for number, (name, tags) in enumerate(SOURCES.items()):
            state = SourceState(kind="text", user={"tags": tags, "trust": number / 4})
            p = opened.add_partition(name, state.to_json())
            blocks = 40 if name == "big.txt" else 3
            opened.append_tokens(p, np.arange(blocks * 32) + 1000 * number)
            opened.index_text(p, 0, [f"needle {name}"] * blocks)
            opened.put_rows("sketch-v1", p, 0, np.full((blocks, 4), number, np.int8))
            opened.put_rows(GIST, p, 0, np.full((blocks, 8), number + 0.5, np.float32))
            opened.put_rows("access-v1", p, 0, np.full((2, 1), number, np.uint32))
        opened.commit()
        yield opened


def found(store: Store) -> set[int]:
    return set(store.search("needle", 1000)[0].tolist())


def by_name(store: Store) -> dict:
    return {source.source: source for source in report(store)}


def planned(store: Store, *rules: Rule) -> Plan:
    return make_plan(report(store), Rules(rules))


def test_the_report_counts_what_is_there(store):
    sources = by_name(store)
    big = sources["big.txt"]
    assert (big.tokens, big.state, big.tags, big.trust) == (1280, "live", ("log",), 0.5)
    assert big.token_bytes == 1280 * 4 + 40 * 8
    assert big.row_bytes == {"sketch-v1": 160, GIST: 40 * 32, "access-v1": 8}
    assert (big.shown_blocks, big.shown_times) == (2, 4)
    assert (sources["old.txt"].shown_blocks, sources["old.txt"].shown_times) == (0, 0)
    later = report(store, store.partition(0).created_ms + 10 * DAY_MS)[0]
    assert later.age_days == pytest.approx(10)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule("archive", tag="log"), ["big.txt"]),
        (Rule("archive", path="*.txt"), ["old.txt", "big.txt", "new.txt"]),
        (Rule("archive", path="o*"), ["old.txt"]),
        (Rule("delete", shown_at_most=0), ["old.txt"]),
        (Rule("delete", larger_than_tokens=96), ["big.txt"]),
        (Rule("delete", trust_below=0.5), ["old.txt"]),
        (Rule("archive", older_than_days=1), []),
        (Rule("keep"), []),
        (Rule("compact", families=("unknown",)), []),
    ],
)
def test_a_rule_chooses_by_all_its_conditions_and_never_what_is_protected(store, rule, expected):
    before = store.stats()
    assert [step.source for step in planned(store, rule).steps] == expected
    assert store.stats() == before


def test_the_first_rule_that_holds_decides(store):
    given = {
        "rules": [
            {"action": "keep", "path": "new*"},
            {"action": "compact", "tag": "log"},
            {"action": "delete"},
        ],
        "protected_tags": ["none"],
    }
    plan = make_plan(report(store), Rules.from_json(json.dumps(given)))
    chosen = {step.source: step.action for step in plan.steps}
    assert chosen == {"old.txt": "delete", "kept.txt": "delete", "big.txt": "compact"}
    assert plan.steps[2].families == (GIST,)
    assert plan.steps[2].saved_bytes == 40 * 32
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("action", ["archive", "delete", "compact"])
def test_every_action_can_be_taken_back(store, action):
    families = ("sketch-v1", GIST) if action == "compact" else ()
    plan = planned(store, Rule(action, tag="log", families=families))
    rows = store.read_rows(GIST, 2, 0, 40)
    (entry,) = apply_plan(store, plan, "ann").done
    assert (entry.actor, entry.action, entry.source) == ("ann", action, "big.txt")
    if action == "compact":
        assert store.row_count(GIST, 2) == store.row_count("sketch-v1", 2) == 0
        assert found(store) == {0, 1, 2, 3}
    else:
        assert found(store) == {0, 1, 3}
        assert by_name(store)["big.txt"].state == f"{action}d"
    store.close()
    with Store.open(store.path) as opened:
        for _ in range(2):  # the second time nothing more happens
            take_back(opened, entry.number, "ann")
            assert found(opened) == {0, 1, 2, 3}
            assert by_name(opened)["big.txt"].state == "live"
            np.testing.assert_array_equal(opened.read_rows(GIST, 2, 0, 40), rows)
        assert [e.action for e in AuditLog(opened.path).entries()] == [action, "restore", "restore"]


def test_rows_made_anew_since_a_compaction_stay(store):
    (entry,) = apply_plan(store, planned(store, Rule("compact", tag="log")), "ann").done
    store.put_rows(GIST, 2, 0, np.full((10, 8), 77, np.float32))
    take_back(store, entry.number, "ann")
    rows = store.read_rows(GIST, 2, 0, 40)
    assert rows[:10].min() == 77
    assert rows[10:].max() == 2.5


def test_a_step_that_no_longer_fits_is_skipped(store):
    plan = planned(store, Rule("delete", path="[!k]*"))
    store.append_tokens(0, [1])
    span = {"start": 0, "end": 9, "tags": ["protected"], "note": ""}
    store.set_metadata(2, SourceState(kind="text", user={"spans": [span]}).to_json())
    store.erase_partition(3)
    applied = apply_plan(store, plan, "ann")
    assert applied.done == ()
    assert [why for _, why in applied.skipped] == [
        "has 97 tokens, had 96 when planned",
        "has the protected tag 'protected'",
        "is not there any more",
    ]


def test_a_purge_erases_what_was_deleted_and_nothing_protected(store):
    apply_plan(store, planned(store, Rule("archive", path="new*")), "ann")
    apply_plan(store, planned(store, Rule("compact", path="new*")), "ann")
    (entry,) = apply_plan(store, planned(store, Rule("delete", tag="log")), "ann").done
    store.checkpoint()
    erased, saved = purge(store, "ann")
    assert erased == ["big.txt"]
    assert saved > 40 * 32 * 4
    assert [p.source for p in store.partitions()] == ["old.txt", "kept.txt", "new.txt"]
    with pytest.raises(NotFound, match="was erased"):
        take_back(store, entry.number, "ann")
    with pytest.raises(NotFound, match="a purge took them"):
        take_back(store, 2, "ann")
    take_back(store, 1, "ann")
    assert found(store) == {0, 1, 3}
    files = [*Path(store.path).iterdir(), *AuditLog(store.path).folder.iterdir()]
    assert all(b"big.txt" not in file.read_bytes() for file in files)
    store.check()


def test_a_torn_last_line_is_no_entry_and_a_damaged_one_is_corruption(store):
    apply_plan(store, planned(store, Rule("archive", tag="log")), "ann")
    log = AuditLog(store.path)
    path = log.folder / "audit.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 2, "ti')
    assert len(log.entries()) == 1
    take_back(store, 1, "ann")
    assert [entry.number for entry in log.entries()] == [1, 2]
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(Corruption, match=r"audit\.jsonl:1"):
        log.entries()


def test_what_is_no_rule_and_no_plan_is_refused():
    for text in ("", "[]", '{"rules": [{"action": "burn"}]}', '{"rules": [{"act": 1}]}'):
        with pytest.raises(InvalidArgument):
            Rules.from_json(text)
    with pytest.raises(InvalidArgument):
        Plan.from_json('{"steps": [{}]}')
