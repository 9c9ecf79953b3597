"""What two ranks saved of their worlds, split over another number of ranks."""

from __future__ import annotations

import pytest
import torch

from thousandfold.pipeline.checkpoint import RankPart
from thousandfold.pipeline.distributed import Ranks
from thousandfold.replay.trajectory_buffer import TrajectoryBuffer
from thousandfold.stages.train_teacher.resplit import parts_with_worlds, resplit

COUNTS = {"simulator.unstable_count": (5, 7), "simulator.overflow_count": (2, 3)}
ARRIVED = torch.arange(8 * 6).reshape(8, 3, 2)
QUARANTINED = torch.tensor([True, False, False, False, False, True, False, True])


def make_buffer(worlds: int) -> TrajectoryBuffer:
    return TrajectoryBuffer(worlds, 2, observation_dim=1, goal_dim=1, action_dim=1)


def part_of(rank: int) -> RankPart:
    buffer = make_buffer(4)
    tensors = {f"buffer.{name}": value for name, value in buffer.counters().items()}
    tensors |= {name: torch.tensor(of_ranks[rank]) for name, of_ranks in COUNTS.items()}
    tensors["simulator.quarantined"] = QUARANTINED[4 * rank : 4 * rank + 4]
    tensors["simulator.teacher_senses.arrived"] = ARRIVED[4 * rank : 4 * rank + 4]
    tensors["simulator.draws_0.generator"] = torch.full((6,), rank)
    return RankPart(tensors, [buffer.unsaved_segment()])


@pytest.mark.parametrize("size", [1, 4])
def test_counts_of_lost_worlds_keep_their_sums_and_quarantine_goes_with_the_world(size: int):
    found = []
    for rank in range(size):
        ranks = Ranks(rank, size)
        needed = [part_of(saved) for saved in parts_with_worlds(8, 2, ranks)]
        found.append(resplit(needed, 8, 2, ranks, make_buffer).tensors)
    for name, of_ranks in COUNTS.items():
        assert sum(int(tensors[name]) for tensors in found) == sum(of_ranks)
    assert torch.equal(torch.cat([tensors["simulator.quarantined"] for tensors in found]), QUARANTINED)
    assert torch.equal(torch.cat([each["simulator.teacher_senses.arrived"] for each in found]), ARRIVED)
    assert all(len(tensors["simulator.draws_0.generator"]) == 6 for tensors in found)
