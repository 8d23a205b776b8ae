"""Ratios and fractions of benchmarks: what was timed side by side is compared."""

import json

import pytest
import torch

from bench.common import Case, Turns, as_one, beside, parts, warmed
from bench.results import load, span
from bench.shapes import total, whole


def record(contender, seconds, device="cpu", case="one", entries=100, rounds=3, **facts):
    extra = {
        "op": "op",
        "case": case,
        "contender": contender,
        "entries": entries,
        "floor_bytes": 8 * entries,
        "headline": True,
        "peak_extra_bytes": 0,
        "copy_bandwidth": 100.0,
        "ours_beside": None,
        "device": device,
        **facts,
    }
    stats = {"min": seconds, "median": 2 * seconds, "max": 3 * seconds, "rounds": rounds}
    return {"name": contender, "stats": stats, "extra_info": extra}


def written(path, device, commit, *records):
    path.write_text(json.dumps({"machine_info": {"device": device, "commit": commit}, "benchmarks": records}))
    return path


def run_of(tmp_path, device, *records):
    path = tmp_path / "run.json"
    return load([written(path, device, "c0ffee", *records)])[device]


def test_on_a_cpu_a_fraction_is_of_the_copy_beside_and_a_ratio_to_ours_beside(tmp_path):
    ours, peer = record("pruneops", 10.0, copy_bandwidth=40.0), record("peer", 60.0, ours_beside=20.0)
    row = run_of(tmp_path, "cpu", ours, peer, record("slow peer", 500.0)).rows["op", "one"]
    assert row.fraction(row.ours) == pytest.approx(8 * 100 / 10.0 / 40.0)
    assert row.times_slower(row.peers["peer"]) == 3.0
    assert row.times_slower(row.peers["slow peer"]) == 50.0


def test_what_ran_once_is_held_against_our_median(tmp_path):
    once = record("peer", 60.0, rounds=1)
    row = run_of(tmp_path, "cpu", record("pruneops", 10.0), once).rows["op", "one"]
    assert row.times_slower(row.peers["peer"]) == 3.0


def test_on_a_gpu_a_fraction_is_of_the_best_copy(tmp_path):
    first, second = record("pruneops", 5.0, "cuda", copy_bandwidth=40.0), record("peer", 1.0, "cuda")
    row = run_of(tmp_path, "cuda", first, second).rows["op", "one"]
    assert row.fraction(row.ours) == pytest.approx(8 * 100 / 10.0 / 100.0)


def test_a_case_beside_other_data_has_ours_on_both():
    peers = {"pruneops": lambda data: ["ours", data], "peer": warmed(lambda data: ["peer", data])}
    many = Case("op", "many", 8, 1.0, lambda: "many", peers, needs=3)
    case = beside(many, "one tensor", {"many": "one"}.get, needs=2)
    data = case.data()
    assert {name: call(data) for name, call in case.contenders.items()} == {
        "pruneops": ["ours", "many"],
        "peer": ["peer", "many"],
        "one tensor": ["ours", "one"],
    }
    assert case.contenders["peer"].warmed
    assert not hasattr(case.contenders["one tensor"], "warmed")
    assert (case.name, case.needs) == ("many", 5)


def test_many_tensors_and_one_are_the_same_memory():
    buffer, shapes = torch.arange(48.0), [(3, 4), (6, 2), (2, 12)]
    many = parts(buffer, shapes)
    assert [tuple(part.shape) for part in many] == shapes
    (one,) = as_one(many, whole(total(shapes)))
    assert torch.equal(one, buffer.view(8, 6))
    many[2].zero_()
    assert one.count_nonzero() == 23


def test_a_later_run_replaces_whole_cases_and_each_names_its_commit(tmp_path):
    old = written(tmp_path / "1.json", "cpu", "aaa", record("pruneops", 10.0), record("peer", 9.0),
                  record("pruneops", 3.0, case="two"))  # fmt: skip
    new = written(tmp_path / "2.json", "cpu", "bbb", record("pruneops", 5.0))
    rows = load([old, new])["cpu"].rows
    assert {case: (row.commit, row.ours.seconds) for (_, case), row in rows.items()} == {
        "one": ("bbb", 5.0),
        "two": ("aaa", 3.0),
    }
    assert not rows["op", "one"].peers


def test_turns_are_compared_round_by_round(monkeypatch):
    # The machine is twice as slow in the last two rounds, of which the last began before.
    mine = iter([4.0, 4.0, 8.0, 4.0])
    monkeypatch.setattr("bench.common.seconds_of", lambda call, device: next(mine))
    turns = Turns(lambda: None)
    assert turns.at_best_of([1.0]) is None
    for _ in range(4):
        turns()
    assert turns.at_best_of([2.0, 2.0, 4.0, 4.0]) == 4.0


def test_a_span_of_bandwidths():
    assert span([4.24e12]) == "4,240 GB/s"
    assert span([29.2e9, 50.1e9]) == "29 to 50 GB/s"
