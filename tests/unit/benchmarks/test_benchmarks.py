"""The benchmarks' own arithmetic, and their names, which are permanent."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import SCENARIOS, main
from benchmarks.measure import Measured, in_turn
from benchmarks.provenance import code, machine


def test_names_are_permanent() -> None:
    assert {"prefix-cache-training", "consume-decode"} <= set(SCENARIOS)
    assert {"textbook-loop", "step-arithmetic", "learner-memory", "pictures"} <= set(SCENARIOS)


def test_the_two_take_turns_at_going_first() -> None:
    calls: list[str] = []

    def first() -> int:
        calls.append("a")
        return 100

    def second() -> int:
        calls.append("b")
        return 100

    rounds = in_turn(first, second, rounds=3, names=("fast", "slow"))
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert all(round_["ratio"] == pytest.approx(round_["fast"] / round_["slow"]) for round_ in rounds)


@pytest.mark.parametrize(("target", "met"), [(2.0, True), (2.5, False), (None, None)])
def test_a_result_says_whether_it_met_its_target(target: float | None, met: bool | None) -> None:
    rounds = [{"ratio": ratio} for ratio in (1.0, 2.0, 9.0)]
    measured = Measured(unit="times", value=2.0, target=target, settings={}, rounds=rounds)
    assert measured.as_json()["met"] is met
    assert measured.medians() == {"ratio": 2.0}


def test_results_name_machine_and_commit_but_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Measured(unit="times", value=1.0, target=2.0, settings={"seed": 0}, rounds=[{"ratio": 1.0}])
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
