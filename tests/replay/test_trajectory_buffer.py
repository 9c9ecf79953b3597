"""The buffer against a plain model of it: one list of rows a world, and what a ring has lost of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thousandfold.replay import trajectory_buffer
from thousandfold.replay.trajectory_buffer import TrajectoryBuffer, TransitionBatch

DISCOUNT = 0.8


@dataclass
class Row:
    serial: int
    episode: int


@dataclass
class World:
    """What one world should hold: its rows so far, and how many of the first ones were overwritten."""

    rows: list[Row] = field(default_factory=list)
    lost: int = 0
    episode: int = 0

    def append(self, serial: int, capacity: int) -> None:
        self.rows.append(Row(serial, self.episode))
        self.lost = max(self.lost, len(self.rows) - capacity)

    def drop(self) -> None:
        self.rows = [row for row in self.rows if row.episode != self.episode]
        self.lost = min(self.lost, len(self.rows))

    def pairs(self) -> dict[int, list[int]]:
        """Map each possible start to its possible goals, nearest first."""
        held = self.rows[self.lost :]
        goals = {
            row.serial: [later.serial for later in held[i + 1 :] if later.episode == row.episode]
            for i, row in enumerate(held)
        }
        return {start: later for start, later in goals.items() if later}


class Recorder:
    """Drives a buffer and the model of it; every row carries a serial number in all of its columns."""

    def __init__(self, num_worlds: int, capacity: int, asks: bool = True) -> None:
        self.buffer = make_buffer(num_worlds, capacity)
        self.buffer.reads_are_free = asks
        self.worlds = [World() for _ in range(num_worlds)]
        self.serial = 0

    def rows(self) -> torch.Tensor:
        serials = torch.arange(self.serial, self.serial + len(self.worlds), dtype=torch.float32)
        self.serial += len(self.worlds)
        return serials

    def add(self) -> None:
        serials = self.rows()
        self.buffer.add(columns(serials, 3), columns(serials, 1), columns(serials, 2))
        for world, serial in zip(self.worlds, serials.tolist(), strict=True):
            world.append(int(serial), self.buffer.capacity)

    def end(self, mask: list[bool]) -> None:
        serials = self.rows()
        self.buffer.end_episodes(torch.tensor(mask), columns(serials, 3), columns(serials, 2))
        for world, serial, ended in zip(self.worlds, serials.tolist(), mask, strict=True):
            if ended:
                world.append(int(serial), self.buffer.capacity)
                world.episode += 1

    def drop(self, mask: list[bool]) -> None:
        self.buffer.drop_episodes(torch.tensor(mask))
        for world, dropped in zip(self.worlds, mask, strict=True):
            if dropped:
                world.drop()

    def play(self, program: list[tuple[str, list[bool]]]) -> None:
        for operation, mask in program:
            self.add()
            if operation != "add":
                getattr(self, operation)(mask)

    def pairs(self) -> dict[int, list[int]]:
        return {start: goals for world in self.worlds for start, goals in world.pairs().items()}


def make_buffer(num_worlds: int, capacity: int) -> TrajectoryBuffer:
    return TrajectoryBuffer(num_worlds, capacity, observation_dim=3, goal_dim=2, action_dim=1)


def columns(serials: torch.Tensor, width: int) -> torch.Tensor:
    return serials[:, None] + torch.arange(width) / 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def serials(batch: TransitionBatch) -> list[tuple[int, int]]:
    """Return (start, goal) of each transition, after checking that its columns belong together."""
    start, goal = batch.observation[:, 0], batch.goal[:, 0]
    assert torch.equal(batch.observation, columns(start, 3))
    assert torch.equal(batch.action, columns(start, 1))
    assert torch.equal(batch.goal, columns(goal, 2))
    assert batch.achieved_goal is not None
    assert torch.equal(batch.achieved_goal, columns(start, 2))
    return list(zip(start.int().tolist(), goal.int().tolist(), strict=True))


def chi_square(counts: list[float], expected: list[float]) -> float:
    """Return how many standard deviations the chi-square statistic lies above its mean."""
    statistic = sum((a - b) ** 2 / b for a, b in zip(counts, expected, strict=True))
    freedom = len(counts) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def programs(num_worlds: int, most: int = 40):
    mask = st.lists(st.booleans(), min_size=num_worlds, max_size=num_worlds)
    operation = st.sampled_from(["add", "add", "add", "end", "drop"])
    return st.lists(st.tuples(operation, mask), min_size=1, max_size=most)


@pytest.fixture(params=[True, False], ids=["cpu", "device"])
def asks(request: pytest.FixtureRequest) -> bool:
    """Whether sampling may look at its numbers on the way, or draws as it does where that would wait."""
    return request.param


# -- which transitions there are --------------------------------------------------------------------


@given(program=programs(3), capacity=st.integers(2, 12), asks=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_transitions_are_those_of_the_model(program: list, capacity: int, asks: bool):
    recorder = Recorder(3, capacity, asks)
    recorder.play(program)
    pairs = recorder.pairs()
    if not pairs:
        with pytest.raises(ValueError, match="no transition"):
            recorder.buffer.require_transitions()
        if asks:
            with pytest.raises(ValueError, match="no transition"):
                recorder.buffer.sample(8, DISCOUNT, generator())
        return
    recorder.buffer.require_transitions()
    drawn = serials(recorder.buffer.sample(1500, 1.0, generator()))
    assert {start for start, _ in drawn} == set(pairs)
    assert all(goal in pairs[start] for start, goal in drawn)


def test_a_final_observation_is_a_goal_and_never_a_start():
    recorder = Recorder(1, 16)
    recorder.play([("add", [False]), ("add", [False]), ("end", [True]), ("add", [False]), ("add", [False])])
    drawn = serials(recorder.buffer.sample(2000, 1.0, generator()))
    starts, goals = {start for start, _ in drawn}, {goal for _, goal in drawn}
    # Serials 0..2 are the first episode's rows and 3 its final observation; 4 and 5 begin the next one.
    assert starts == {0, 1, 2, 4}
    assert goals == {1, 2, 3, 5}


def test_a_ring_keeps_the_newest_rows_of_an_unfinished_episode():
    recorder = Recorder(1, 5)
    recorder.play([("add", [False])] * 12)
    drawn = serials(recorder.buffer.sample(2000, 1.0, generator()))
    assert {start for start, _ in drawn} == {7, 8, 9, 10}
    assert {goal for _, goal in drawn} == {8, 9, 10, 11}


def test_a_dropped_episode_is_forgotten_also_after_the_ring_went_round():
    recorder = Recorder(2, 6)
    recorder.play([("add", [False, False])] * 2 + [("end", [True, True])] + [("add", [False, False])] * 9)
    recorder.drop([True, False])
    drawn = serials(recorder.buffer.sample(500, 1.0, generator()))
    assert {start % 2 for start, _ in drawn} == {1}  # the first world has nothing left
    recorder.play([("add", [False, False])] * 3)
    assert {start for start, _ in serials(recorder.buffer.sample(2000, 1.0, generator()))} == set(
        recorder.pairs()
    )


@pytest.mark.parametrize("rows", [0, 1])
def test_a_memory_without_transitions_says_so(rows: int):
    recorder = Recorder(4, 8)
    recorder.play([("add", [False] * 4)] * rows)
    with pytest.raises(ValueError, match="no transition yet"):
        recorder.buffer.sample(16, DISCOUNT, generator())


def test_one_world_with_transitions_among_many_without_is_enough():
    recorder = Recorder(256, 8)
    recorder.play([("add", [False] * 256)] * 3)
    recorder.drop([True] * 255 + [False])
    assert {start % 256 for start, _ in serials(recorder.buffer.sample(512, DISCOUNT, generator()))} == {255}


def test_a_capacity_of_one_row_is_refused():
    with pytest.raises(ValueError, match="at least 2 rows"):
        make_buffer(1, 1)


# -- how often ------------------------------------------------------------------------------------


def uneven_memory(asks: bool) -> Recorder:
    """Worlds with different numbers of rows and episodes, one of them empty."""
    recorder = Recorder(3, 40, asks)
    recorder.play([("end" if i % 5 == 4 else "add", [True, i % 10 == 9, False]) for i in range(20)])
    recorder.drop([False, False, True])
    return recorder


def test_starts_are_uniform_over_all_worlds(asks: bool):
    recorder = uneven_memory(asks)
    pairs, draws = recorder.pairs(), 30_000
    counts = dict.fromkeys(pairs, 0)
    for start, _ in serials(recorder.buffer.sample(draws, DISCOUNT, generator())):
        counts[start] += 1
    assert abs(chi_square(list(counts.values()), [draws / len(pairs)] * len(pairs))) < 5


def test_a_row_that_stands_in_for_a_bad_one_is_uniform_too(monkeypatch: pytest.MonkeyPatch):
    """The first row of a batch, which half the time is bad, so that the last good one stands in for it."""
    monkeypatch.setattr(trajectory_buffer, "_FIXED_ROUNDS", 0)
    recorder = Recorder(2, 24, asks=False)
    recorder.play([("end", [True, True])] * 9)
    pairs, draws, source = recorder.pairs(), 3000, generator()
    firsts = torch.stack(
        [recorder.buffer.sample(32, DISCOUNT, source).observation[0, 0] for _ in range(draws)]
    )
    starts, counts = firsts.unique(return_counts=True)
    assert set(starts.int().tolist()) == set(pairs)
    assert abs(chi_square(counts.tolist(), [draws / len(pairs)] * len(pairs))) < 5


def test_the_last_good_place_before_a_bad_one_is_found_going_round():
    good = torch.tensor([False, False, True, False, True, False])
    assert trajectory_buffer._last_good(good).tolist() == [4, 4, 2, 2, 4, 4]
    assert trajectory_buffer._last_good(~good).tolist() == [0, 1, 1, 3, 3, 5]
    nowhere = trajectory_buffer._last_good(torch.zeros(3, dtype=torch.bool))
    assert ((nowhere >= 0) & (nowhere < 3)).all()


def test_rows_that_stand_in_get_goals_of_their_own():
    recorder = Recorder(1, 40, asks=False)
    recorder.play([("add", [False])] * 40)
    recorder.buffer._draw_rows = lambda count, _: (  # every row but the first is bad
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count, dtype=torch.int64),
        torch.where(torch.arange(count) == 0, 39, 0),
    )
    drawn = serials(recorder.buffer.sample(64, 1.0, generator()))
    assert {start for start, _ in drawn} == {0} and len({goal for _, goal in drawn}) > 20


@pytest.mark.parametrize("discount", [0.5, 0.9, 1.0])
def test_goals_lie_ahead_with_the_frequencies_of_the_discount(discount: float, asks: bool):
    recorder = Recorder(1, 80, asks)
    recorder.play([("end" if i in (19, 59) else "add", [True]) for i in range(70)])
    pairs = recorder.pairs()
    drawn = serials(recorder.buffer.sample(30_000, discount, generator()))
    offsets = torch.bincount(torch.tensor([goal - start for start, goal in drawn]), minlength=41)[1:41]
    starts, count = torch.tensor([start for start, _ in drawn]).unique(return_counts=True)
    expected = torch.zeros(40, dtype=torch.float64)
    for start, times in zip(starts.tolist(), count.tolist(), strict=True):
        weights = discount ** torch.arange(len(pairs[start]), dtype=torch.float64)
        expected[: len(weights)] += times * weights / weights.sum()
    shown = expected >= 5
    assert offsets.sum() == 30_000 and shown.sum() >= 10
    assert abs(chi_square(offsets[shown].tolist(), expected[shown].tolist())) < 5


# -- memory and saving ----------------------------------------------------------------------------


def places(buffer: TrajectoryBuffer) -> dict[str, int]:
    """Return where everything lies that writing and sampling read."""
    names = ("count", "oldest", "episode", "episode_first", "episode_last", "unsaved_from", "worlds")
    tensors = buffer._columns | {f"_{name}": getattr(buffer, f"_{name}") for name in names}
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def test_nothing_that_is_read_ever_moves():
    recorder = Recorder(2, 6)
    before = places(recorder.buffer)
    recorder.play([("add", [True, True]), ("end", [True, False]), ("drop", [False, True])] * 8)
    recorder.buffer.mark_unsaved()
    recorder.buffer.mark_saved()
    recorder.buffer.load_segment(recorder.buffer.unsaved_segment())
    recorder.buffer.load_counters(recorder.buffer.counters())
    assert places(recorder.buffer) == before


def test_an_empty_mask_changes_nothing():
    """Also where the ring has gone round and each world's next slot holds its oldest row."""
    recorder = Recorder(2, 6)
    recorder.play([("add", [True, True])] * 5 + [("end", [True, False])] + [("add", [True, True])] * 5)
    before = {name: column.clone() for name, column in recorder.buffer._columns.items()}
    counters, last = recorder.buffer.counters(), recorder.buffer._episode_last.clone()
    recorder.end([False, False])
    recorder.drop([False, False])
    assert torch.equal(recorder.buffer._episode_last, last)
    for name, column in recorder.buffer._columns.items():
        assert torch.equal(column, before[name]), name
    for name, value in recorder.buffer.counters().items():
        assert torch.equal(value, counters[name]), name


def test_counters_of_another_number_of_worlds_are_refused():
    with pytest.raises(ValueError, match=r"'count' of shape \(1,\), not \(3,\)"):
        make_buffer(3, 8).load_counters(make_buffer(1, 8).counters())


def test_the_batch_is_the_callers_own():
    recorder = Recorder(1, 4)
    recorder.play([("add", [False])] * 4)
    batch = recorder.buffer.sample(64, DISCOUNT, generator())
    before = serials(batch)
    recorder.play([("add", [False])] * 4)
    assert serials(batch) == before


@given(program=programs(3, most=50), capacity=st.integers(2, 12), every=st.integers(1, 17))
@settings(max_examples=30, deadline=None)
def test_saved_segments_restore_the_memory_bit_for_bit(program: list, capacity: int, every: int):
    recorder = Recorder(3, capacity)
    saved: list[dict[str, torch.Tensor]] = []
    for start in range(0, len(program), every):
        recorder.play(program[start : start + every])
        # As checkpoints do: what lies below the oldest row in the memory is not kept.
        saved = [s for s in saved if int((s["first"] + s["rows"]).max()) > recorder.buffer.oldest_row]
        saved.append({name: column.clone() for name, column in recorder.buffer.unsaved_segment().items()})
        recorder.buffer.mark_saved()
    restored = make_buffer(3, capacity)
    for segment in saved:
        restored.load_segment(segment)
    restored.load_counters(recorder.buffer.counters())
    assert_same_samples(recorder.buffer, restored)
    continued = Recorder(3, capacity)
    continued.buffer, continued.serial = restored, recorder.serial
    recorder.play(program[:7])
    continued.play(program[:7])
    assert_same_samples(recorder.buffer, restored)
    for one, other in zip(
        recorder.buffer.unsaved_segment().values(), restored.unsaved_segment().values(), strict=True
    ):
        assert torch.equal(one, other)


def assert_same_samples(one: TrajectoryBuffer, other: TrajectoryBuffer) -> None:
    try:
        batches = [one.sample(64, DISCOUNT, generator(seed)) for seed in range(3)]
    except ValueError:
        with pytest.raises(ValueError, match="no transition"):
            other.sample(64, DISCOUNT, generator())
        return
    for seed, batch in enumerate(batches):
        copy = other.sample(64, DISCOUNT, generator(seed))
        for name in ("observation", "action", "goal"):
            assert torch.equal(getattr(batch, name), getattr(copy, name))


def test_a_segment_holds_only_what_is_new():
    recorder = Recorder(2, 8)
    recorder.play([("add", [False, False])] * 3)
    recorder.buffer.mark_saved()
    recorder.play([("add", [False, False])] * 2)
    segment = recorder.buffer.unsaved_segment()
    assert segment["first"].tolist() == [3, 3] and segment["rows"].tolist() == [2, 2]
    assert segment["observation"][:, 0].tolist() == [6, 8, 7, 9]
    assert recorder.buffer.rows_per_world == 5


# -- episodes that end before their time -----------------------------------------------------------


def with_ends(early: bool) -> TrajectoryBuffer:
    """Return a memory of two worlds: one whose episode of four rows ended, and a long one that goes on."""
    buffer = make_buffer(2, 64)
    ended = torch.tensor([True, False])
    for step in range(4):
        if step == 3:
            final = torch.full((2,), float(step))
            buffer.end_episodes(ended, columns(final, 3), columns(final, 2), ended & early)
            break
        serials = torch.tensor([float(step), 100.0 + step])
        buffer.add(columns(serials, 3), columns(serials, 1), columns(serials, 2))
    for step in range(3, 60):
        serials = torch.tensor([200.0 + step, 100.0 + step])
        buffer.add(columns(serials, 3), columns(serials, 1), columns(serials, 2))
    return buffer


def test_early_ends_are_saved_and_memories_of_before_have_none() -> None:
    buffer = with_ends(early=True)
    segment = {name: column.clone() for name, column in buffer.unsaved_segment().items()}
    for known in (True, False):
        restored = make_buffer(2, 64)
        restored.load_segment(
            segment if known else {name: segment[name] for name in segment if name != "early_end"}
        )
        restored.load_counters(buffer.counters())
        ended = restored.sample(5000, 0.8, generator(), next_rows=True).ended_early
        assert ended is not None and bool(ended.any()) == known


def test_a_time_limit_is_no_early_end() -> None:
    ended = with_ends(early=False).sample(5000, 0.8, generator(), next_rows=True).ended_early
    assert ended is not None and not ended.any()


def test_what_lies_beyond_an_early_end_is_lost_and_beyond_a_time_limit_not() -> None:
    batch = with_ends(early=True).sample(40_000, 0.8, generator(), lost=True)
    assert batch.lost is not None
    start = batch.observation[:, 0]
    for step in range(3):  # of the episode that ended early, with 3 − step rows to come
        share = batch.lost[start == step].float().mean().item()
        assert share == pytest.approx(0.8 ** (3 - step), abs=0.06)
    assert not batch.lost[start >= 100].any()
    assert (batch.goal[:, 0] > start).all()
    late = with_ends(early=False).sample(5000, 0.8, generator(), lost=True).lost
    assert late is not None and not late.any()
    plain, same = (
        with_ends(early=False).sample(100, 0.8, generator(), lost=asked) for asked in (False, True)
    )
    assert plain.lost is None and torch.equal(plain.goal, same.goal)


def test_the_next_rows_are_those_after_the_starts() -> None:
    batch = with_ends(early=True).sample(5000, 0.8, generator(), next_rows=True)
    assert batch.next_observation is not None and batch.next_achieved_goal is not None
    assert batch.ended_early is not None
    assert torch.equal(batch.next_observation, batch.observation + 1)
    assert torch.equal(batch.next_achieved_goal[:, 0], batch.next_observation[:, 0])
    assert torch.equal(batch.ended_early, batch.observation[:, 0] == 2)
