"""The calculator for many GPUs: its formulas by hand, and what may not depend on what."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import scaling
from scaling import Assumptions, predict

GIVEN = Assumptions(
    step_ms=100, batch_size=32, gradient_bytes=10**9, gathered_bytes=10**6, backward_share=0.5, overlap=0.5,
    jitter=0.0, gpus_per_machine=4, link_gbytes=100.0, network_gbytes=10.0, link_us=1.0, network_us=10.0,
)  # fmt: skip


def test_one_machine_by_hand() -> None:
    row = predict(4, GIVEN)
    assert row["all_reduce_ms"] == pytest.approx(2 * 3 / 4 * 10 + 2 * 3 * 1e-3)  # 1 GB at 100 GB/s takes 10 ms
    assert row["exposed_ms"] == 0  # 25 ms of the backward pass can hide 15
    assert row["gather_ms"] == pytest.approx(3 * 0.32 + 3 * 1e-3)  # 32 MB of each of three others
    assert row["step_ms"] == pytest.approx(100 + row["gather_ms"])
    assert row["images_per_second"] == pytest.approx(4 * 32 * 1000 / row["step_ms"])


def test_between_machines_the_network_sets_the_pace() -> None:
    row = predict(8, GIVEN)
    hop = (6 * 1 + 2 * 10) / 8 / 1e3  # two of eight hops cross the network
    assert row["all_reduce_ms"] == pytest.approx(2 * 7 / 8 * 100 + 2 * 7 * hop)
    assert row["exposed_ms"] == pytest.approx(row["all_reduce_ms"] - 25)
    assert row["efficiency"] == pytest.approx(100 / row["step_ms"])


def test_waiting_for_the_slowest() -> None:
    given = dataclasses.replace(GIVEN, jitter=0.1)
    assert predict(16, given)["wait_ms"] == pytest.approx(10 * math.sqrt(2 * math.log(16)))
    assert predict(1, given)["efficiency"] == 1


def test_more_gpus_are_never_more_efficient() -> None:
    shares = [predict(gpus, dataclasses.replace(GIVEN, jitter=0.02))["efficiency"] for gpus in scaling.GPUS]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1


def test_a_step_comes_from_the_benchmark_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"figures": {"distillation step": {"milliseconds": {"median": 50.0}}}, "settings": {"batch_size": 16}}
    (tmp_path / "step.json").write_text(json.dumps(told))
    command = ["scaling.py", "--train_step", str(tmp_path / "step.json"), "--gradient_bytes", "1000", "--json"]
    monkeypatch.setattr("sys.argv", [*command, str(tmp_path / "out.json")])
    scaling.main()
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["assumptions"]["step_ms"] == 50 and result["assumptions"]["batch_size"] == 16
    assert [row["gpus"] for row in result["predicted"]] == list(scaling.GPUS)
    monkeypatch.setattr("sys.argv", [*command[:-1], "--figure", "nothing"])
    with pytest.raises(SystemExit, match="has no figure 'nothing'"):
        scaling.main()
    monkeypatch.setattr("sys.argv", ["scaling.py"])
    with pytest.raises(SystemExit, match="give the step that was measured"):
        scaling.main()
