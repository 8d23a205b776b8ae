"""pytest-benchmark runs each case of ``bench_*.py`` with each of its contenders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .common import OURS, Bench, Case, Config, DoesNotFitError, is_slow, probe, rounds_for, settled
from .environment import environment


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pruneops")
    group.addoption(
        "--size", choices=("smoke", "default", "full"), default="default", help="2^16, 2^26 or 2^28 entries"
    )


def _config(config: pytest.Config) -> Config:
    return Config("cpu", config.getoption("--size"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    pairs = [(case, name) for case in metafunc.module.cases(_config(metafunc.config)) for name in case.contenders]
    ids = [f"{case.op}-{case.name}-{name}" for case, name in pairs]
    metafunc.parametrize(("case", "contender"), pairs, ids=ids)


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(_config(request.config))


@pytest.fixture
def timed(benchmark: Any, bench: Bench) -> Callable[[Case, str], None]:
    """Time one contender of a case, and note what the report needs."""

    def run(case: Case, contender: str) -> None:
        try:
            call = bench.call(case, contender)
            seconds, peak = probe(call, "cpu")
        except DoesNotFitError as error:
            pytest.skip(str(error))
        except RuntimeError as error:
            if contender == OURS:
                raise
            pytest.skip(f"{contender}: {error}")
        benchmark.group = case.op
        rounds, calls = 1, 1
        if not is_slow(seconds):
            seconds, peak = probe(call, "cpu")
            seconds = settled(call, "cpu", seconds)
            rounds, calls = rounds_for(seconds)
        turns = bench.turns(case, contender, seconds)
        benchmark.pedantic(call, setup=turns, rounds=rounds, iterations=calls)
        in_turns = turns and turns.at_best_of(benchmark.stats.stats.data)
        benchmark.extra_info.update(bench.facts(case, contender, peak, in_turns))

    return run


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep what the report reads: statistics, facts and the machine, without its name or every single time."""
    output_json["machine_info"] = environment("cpu")
    output_json.pop("commit_info", None)
    for record in output_json["benchmarks"]:
        stats = record["stats"]
        record["stats"] = {key: stats[key] for key in ("min", "max", "median", "rounds")}
        for key in ("params", "param", "options", "fullname"):
            record.pop(key, None)
