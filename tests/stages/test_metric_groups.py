"""Which section of MLflow's charts a metric is drawn in."""

from __future__ import annotations

from thousandfold.stages.metric_groups import grouped


def test_what_episodes_tell_and_what_takes_time_have_groups_of_their_own() -> None:
    metrics = {"critic_loss": 2, "success": 0.5, "success_easy": 0.7, "time_at_goal": 31.0, "p99_us": 20.0}
    assert grouped(metrics, "train") == {
        "train/critic_loss": 2.0,
        "eval/success": 0.5,
        "eval/success_easy": 0.7,
        "eval/time_at_goal": 31.0,
        "latency/p99_us": 20.0,
    }


def test_what_is_no_number_is_left_out() -> None:
    assert grouped({"success_interval": [0.1, 0.2], "retention": None, "name": "5x4"}, "train") == {}
