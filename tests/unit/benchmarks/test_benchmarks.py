"""The arithmetic of benchmarks, their permanent names, their command line, and comparisons with earlier results."""

import json
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.__main__ import SCENARIOS, main
from benchmarks.measure import Measurement, alternate
from benchmarks.provenance import machine
from benchmarks.results import compare
from services.provenance import ROOT, code

TOOLS = {"__init__", "__main__", "measure", "provenance", "results"}


def test_names_are_permanent() -> None:
    assert {"prefix-cache-training", "consume-decode"} <= set(SCENARIOS)
    assert {"textbook-loop", "step-arithmetic", "learner-memory", "learner-speed", "pictures"} <= set(SCENARIOS)
    assert {
        "drift",
        "help-answers",
        "rank-request",
        "search-latency",
        "search-learning",
        "search-quality",
        "worker-memory",
        "soak",
    } <= set(SCENARIOS)


def test_every_module_is_a_scenario() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - TOOLS
    assert modules == {name.replace("-", "_") for name in SCENARIOS}


def test_results_in_git_are_of_known_scenarios() -> None:
    for path in results.RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert result["scenario"] == path.stem
        assert path.stem in SCENARIOS
        assert {"began", "machine", "code", "settings", "medians", "rounds"} <= set(result)


def test_the_two_take_turns_at_going_first() -> None:
    calls: list[str] = []

    def first() -> int:
        calls.append("a")
        return 100

    def second() -> int:
        calls.append("b")
        return 100

    rounds = alternate(first, second, rounds=3, names=("fast", "slow"))
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert all(round_["ratio"] == pytest.approx(round_["fast"] / round_["slow"]) for round_ in rounds)


@pytest.mark.parametrize(("target", "met"), [(2.0, True), (2.5, False), (None, None)])
def test_a_result_says_whether_it_met_its_target(target: float | None, met: bool | None) -> None:
    rounds = [{"ratio": ratio} for ratio in (1.0, 2.0, 9.0)]
    measured = Measurement(unit="times", value=2.0, target=target, settings={}, rounds=rounds)
    assert measured.as_json()["met"] is met
    assert measured.medians() == {"ratio": 2.0}


def test_results_name_machine_and_commit_but_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Measurement(unit="times", value=1.0, target=2.0, settings={"seed": 0}, rounds=[{"ratio": 1.0}])
    monkeypatch.setitem(SCENARIOS, "consume-decode", lambda _data: measured)
    assert main(["consume-decode", "--json", str(tmp_path / "out.json")]) == 1
    (result,) = json.loads((tmp_path / "out.json").read_text())
    assert result["scenario"] == "consume-decode"
    assert (result["rounds"], result["settings"], result["met"]) == ([{"ratio": 1.0}], {"seed": 0}, False)
    assert {"processor", "cores", "torch_threads", "torch"} <= set(result["machine"])
    assert set(result["code"]) == {"commit", "dirty"}
    assert "consume-decode: 1 times (target 2)" in capsys.readouterr().out
    assert str(Path.cwd()) not in json.dumps([machine(), code()])


def test_an_unknown_scenario_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fastest"])
    assert "must be among prefix-cache-training, consume-decode" in capsys.readouterr().err


def test_a_missing_broker_is_named_and_skipped_when_all_scenarios_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["soak"])
    assert "soak needs --bootstrap-servers; give one, for example" in capsys.readouterr().err
    measured = Measurement(unit="times", value=1.0, target=None, settings={}, rounds=[{"ratio": 1.0}])
    for name in set(SCENARIOS) - {"soak"}:
        monkeypatch.setitem(SCENARIOS, name, lambda _data: measured)
    assert main([]) == 0
    assert "soak: skipped; soak needs --bootstrap-servers" in capsys.readouterr().out


def test_missing_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ingest", "--data", str(tmp_path)])
    assert "--data must be a directory with items.csv.gz and events.csv.gz, got" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("evnts=5", "drift has no option 'evnts'; its options are: batch_events, events"),
        ("events=many", "--set events=many: must be an integer"),
        ("lora=yes", "--set lora=yes: must be true or false"),
    ],
)
def test_a_bad_option_is_explained(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["drift", "--set", option])
    assert message in " ".join(capsys.readouterr().err.split())


def test_options_reach_the_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def run(_data: Path, *, events: int = 1, lora: bool = True) -> Measurement:
        given.update(events=events, lora=lora)
        return Measurement(unit="times", value=1.0, target=None, settings={}, rounds=[{"ratio": 1.0}])

    monkeypatch.setitem(SCENARIOS, "drift", run)
    assert main(["drift", "--set", "events=7", "--set", "lora=false"]) == 0
    assert given == {"events": 7, "lora": False}


def _result(**figures: list[float]) -> results.Result:
    rounds = [dict(zip(figures, values, strict=True)) for values in zip(*figures.values(), strict=True)]
    measured = Measurement(unit="times", value=1.0, target=None, settings={"data": "a"}, rounds=rounds)
    return {"scenario": "ingest", "began": "now", **measured.as_json(), "machine": {"cores": 2}, "code": code()}


def test_a_figure_is_worse_only_beyond_the_noise_of_its_rounds() -> None:
    earlier = _result(read_per_second=[90.0, 100.0, 110.0], build_seconds=[1.0, 1.0, 1.01], seed=[0.0, 1.0, 2.0])
    new = _result(read_per_second=[91.0, 91.0, 91.0], build_seconds=[1.1, 1.1, 1.1], seed=[9.0, 9.0, 9.0])
    changes = {change.figure: change for change in compare(new, earlier)}
    assert not changes["read_per_second"].worse, "9 % less within 10 % of noise"
    assert changes["build_seconds"].worse, "10 % more beyond 1 % of noise"
    assert not changes["seed"].worse, "a seed has no direction"
    assert changes["build_seconds"].ratio == pytest.approx(1.1)
    assert not any(change.worse for change in compare(earlier, new) if change.figure == "build_seconds"), "better"


def test_one_round_shows_no_noise_and_a_tenth_is_assumed() -> None:
    (small,) = compare(_result(ratio=[0.91]), _result(ratio=[1.0]))
    (large,) = compare(_result(ratio=[0.89]), _result(ratio=[1.0]))
    assert (small.noise, small.worse, large.worse) == (None, False, True)


def test_a_new_run_is_compared_with_a_saved_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)

    def measured(rate: float, data: str) -> None:
        result = Measurement(
            unit="times", value=1.0, target=None, settings={"data": data}, rounds=[{"read_per_second": rate}]
        )
        monkeypatch.setitem(SCENARIOS, "ingest", lambda _data: result)

    measured(100.0, "a")
    assert main(["ingest", "--save"]) == 0
    measured(50.0, "b")
    assert main(["ingest", "--compare", str(tmp_path / "ingest.json")]) == 1
    printed = capsys.readouterr().out
    assert "x0.500    one round  WORSE" in printed
    assert "differs: settings.data: a -> b" in printed
    assert main(["ingest", "--compare", str(tmp_path)]) == 1, "a directory of results"


def test_an_unknown_reference_is_an_error_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ingest", "--compare", "no-such-reference"])
    assert "must be a result file, a directory or a git reference" in capsys.readouterr().err
