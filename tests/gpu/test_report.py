"""The benchmark's goals and its page, from invented times."""

from __future__ import annotations

from bench import gpu_report

TIMES = {
    "vrga dynamic": 36.0,
    "vrga static": 35.0,
    "vrga off": 35.5,
    "row_statistics": 20.0,
    "sdpa FLASH": 60.0,
    "sdpa cuDNN": 40.0,
    "eager": 500.0,
}


def test_goals_of_a_large_shape():
    found = {goal.name: goal for goal in gpu_report.goals("B", TIMES, 134_217_728, 4300.0)}
    assert abs(found["share of copy bandwidth"].value - 0.867) < 1e-3
    assert found["share of copy bandwidth"].verdict == "met"
    assert found["row_statistics / decode"].verdict == "met"
    assert found["dynamic gate / off"].verdict == "met"
    assert found["static gate / off"].verdict == "stretch"
    assert found["best SDPA / ours"].value == 40 / 36
    assert found["eager / ours"].verdict == "stretch"
    assert "FlashInfer / ours" not in found


def test_a_missed_goal_is_called_missed():
    slow = TIMES | {"vrga dynamic": 80.0}
    verdicts = {goal.name: goal.verdict for goal in gpu_report.goals("A", slow, 8_388_608, 4300.0)}
    assert verdicts["time, us"] == "missed"
    assert verdicts["best SDPA / ours"] == "missed"


def test_page_names_machine_losers_and_what_is_missing():
    shape = {
        "name": "B",
        "text": "B16 28/4 M4096 D128, 2 buffers",
        "kv_bytes": 134_217_728,
        "times_us": TIMES,
        "errors": dict.fromkeys(TIMES, 1e-3),
        "missing": {"fa3": "No module named 'flash_attn_interface'"},
    }
    report = {"machine": {"GPU": "Some GPU"}, "copy_gbs": 4300.0, "shapes": [shape]}
    page = gpu_report.markdown(report)
    assert "- GPU: Some GPU" in page
    assert "| sdpa cuDNN | 40.00 | 3355 | 1.0e-03 | 1.11 |" in page
    assert "not measured: fa3: No module named" in page
