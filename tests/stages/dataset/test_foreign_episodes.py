"""Datasets that others have made: where their episodes end, what they claim, and what they reach for."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from thousandfold.ground.errors import UserError
from thousandfold.stages.dataset.foreign_episodes import (
    ENDS,
    BadEpisode,
    ForeignDataset,
    ForeignEpisode,
    GoalChoice,
    read_foreign,
)

LENGTHS = (5, 3, 4)
LAST = (4, 7, 11)
STEPS = 6
"""Actions in an episode of the task."""


def columns(seed: int = 0) -> dict[str, np.ndarray]:
    """Return three episodes, whose rows count 0, 1, 2, ..., and what the last row of each led to."""
    rng, rows = np.random.default_rng(seed), sum(LENGTHS)
    observation = rng.standard_normal((rows, 4)).astype(np.float32)
    observation[:, 0] = np.arange(rows)
    following = np.roll(observation, -1, axis=0)
    following[list(LAST)] = rng.standard_normal((3, 4))
    following[list(LAST), 0] = np.array(LAST) + 0.5
    return {
        "observations": observation,
        "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "next_observations": following,
    }


def marks(rows: tuple[int, ...] = LAST) -> np.ndarray:
    return np.isin(np.arange(sum(LENGTHS)), rows)


def write(path: Path, **arrays: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


def opened(path: Path, **choice) -> ForeignDataset:
    choice.setdefault("columns", (0, 1))
    return read_foreign(str(path), GoalChoice(**choice), episode_steps=STEPS, limit=10**8)


def read(path: Path, **choice) -> list[ForeignEpisode]:
    episodes = list(opened(path, **choice).episodes())
    assert all(isinstance(episode, ForeignEpisode) for episode in episodes), episodes
    return episodes  # type: ignore[return-value]


def first_rows(episodes: list[ForeignEpisode]) -> list[list[float]]:
    return [episode.observation[:, 0].tolist() for episode in episodes]


def refusal(path: Path, **choice) -> str:
    with pytest.raises(UserError) as raised:
        list(opened(path, **choice).episodes())
    message = str(raised.value)
    assert "\n" not in message and path.name in message
    return message


WITHOUT = [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11]]
WITH = [[*rows, last + 0.5] for rows, last in zip(WITHOUT, LAST, strict=True)]


# -- where an episode ends ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
@pytest.mark.parametrize("name", ENDS)
def test_an_episode_ends_at_any_of_the_established_flags(tmp_path: Path, name: str, suffix: str):
    given = columns()
    del given["next_observations"]
    other = "timeouts" if name == "terminals" else "terminals"
    flags = {name: marks(), other: np.zeros(12, bool)}
    episodes = read(write(tmp_path / f"maze{suffix}", **given, **flags))
    assert first_rows(episodes) == WITHOUT
    for episode, rows in zip(episodes, WITHOUT, strict=True):  # what the last action led to is not known
        np.testing.assert_array_equal(episode.action, given["actions"][np.int64(rows[:-1])])


@pytest.mark.parametrize("suffix", [".npz", ".hdf5", ".h5"])
def test_early_ends_and_others_are_ends_alike(tmp_path: Path, suffix: str):
    given = columns()
    flags = {"terminals": marks((4,)), "timeouts": marks((7, 11))}
    episodes = read(write(tmp_path / f"maze{suffix}", **given, **flags))
    assert first_rows(episodes) == WITH
    np.testing.assert_array_equal(np.concatenate([each.action for each in episodes]), given["actions"])
    for episode in episodes:
        np.testing.assert_array_equal(episode.achieved_goal, episode.observation[:, :2])


@pytest.mark.parametrize("form", [np.float32, np.float64, np.uint8, np.int64, lambda flags: flags[:, None]])
def test_flags_come_in_several_forms(tmp_path: Path, form: Callable):
    given = columns()
    del given["next_observations"]
    assert first_rows(read(write(tmp_path / "maze.npz", **given, terminals=form(marks())))) == WITHOUT


@pytest.mark.parametrize("flags", [[None, np.nan], [None, 2.0]], ids=["nan", "count"])
def test_flags_that_are_none_are_refused(tmp_path: Path, flags: list):
    timeouts = marks().astype(np.float32)
    timeouts[3] = flags[1]
    assert "timeouts must be one flag a row" in refusal(
        write(tmp_path / "m.npz", **columns(), timeouts=timeouts)
    )
    wide = np.stack([marks(), marks()], 1)
    assert "must be one flag a row" in refusal(write(tmp_path / "m.npz", **columns(), timeouts=wide))


def test_an_end_that_no_flag_marks_shows_in_what_the_rows_led_to(tmp_path: Path):
    dataset = opened(write(tmp_path / "maze.npz", **columns(), terminals=marks((4,))))
    assert first_rows(list(dataset.episodes())) == WITH  # type: ignore[arg-type]
    assert any("1 of its 3 episodes end where no flag says so" in note for note in dataset.notes)
    assert first_rows(read(write(tmp_path / "maze.npz", **columns()))) == WITH


@pytest.mark.parametrize("stored", [np.float64, np.float16])
def test_rounding_ends_no_episode(tmp_path: Path, stored: type):
    given = columns()
    given["observations"] = given["observations"].astype(stored)
    episodes = read(write(tmp_path / "maze.npz", **given, timeouts=marks()))
    assert [len(episode.action) for episode in episodes] == list(LENGTHS)


@pytest.mark.parametrize("column", ["observations", "next_observations"])
def test_nan_ends_no_episode(tmp_path: Path, column: str):
    given = columns()
    given[column][6, 2] = np.nan
    episodes = read(write(tmp_path / "maze.npz", **given, timeouts=marks()))
    assert [len(episode.action) for episode in episodes] == list(LENGTHS)


def test_next_observations_that_were_shifted_end_no_episode_in_the_next_one(tmp_path: Path):
    given = columns()
    given["next_observations"] = np.roll(given["observations"], -1, axis=0)
    dataset = opened(write(tmp_path / "maze.npz", **given, timeouts=marks()))
    assert first_rows(list(dataset.episodes())) == WITHOUT  # type: ignore[arg-type]
    assert any("3 of its 3 episodes" in note and "left out" in note for note in dataset.notes)


def test_rows_in_no_order_of_time_are_refused(tmp_path: Path):
    order = np.random.default_rng(3).permutation(12)
    shuffled = {name: column[order] for name, column in columns().items()}
    assert "in the order of time" in refusal(write(tmp_path / "maze.npz", **shuffled))


@pytest.mark.parametrize(
    "flags", [{}, {"terminals": ()}, {"timeouts": (11,)}, {"terminals": (), "dones": ()}]
)
def test_many_episodes_that_nothing_divides_are_refused(tmp_path: Path, flags: dict):
    given = columns()
    del given["next_observations"]
    marked = {name: marks(rows) for name, rows in flags.items()}
    message = refusal(write(tmp_path / "maze.npz", **given, **marked))
    assert "nothing marks where an episode ends before the last of its 12 rows" in message
    assert "timeouts" in message and "6 steps" in message
    few = {name: column[: STEPS + 1] for name, column in (given | marked).items()}
    assert first_rows(read(write(tmp_path / "few.npz", **few))) == [[0, 1, 2, 3, 4, 5, 6]]


def test_episodes_longer_than_the_tasks_are_warned_of(tmp_path: Path):
    given = columns()
    del given["next_observations"]
    (warning,) = opened(write(tmp_path / "maze.npz", **given, terminals=marks((7,)))).warnings
    assert "1 of its 2 episodes are longer than one of the task, up to 8 rows" in warning
    assert not opened(write(tmp_path / "maze.npz", **given, terminals=marks())).warnings


def test_what_is_not_read_is_named(tmp_path: Path):
    more = {"rewards": np.zeros(12), "infos/goal": np.zeros((12, 2)), "images": np.array(["a"], "S1")}
    (note,) = opened(write(tmp_path / "maze.hdf5", **columns(), timeouts=marks(), **more)).notes
    assert note.startswith("Read observations, actions, next_observations, timeouts; not read: ")
    assert all(name in note for name in more)


@pytest.mark.parametrize("stored", [np.float64, np.int32, np.float16])
def test_observations_of_any_number_are_taken(tmp_path: Path, stored: type):
    given = columns()
    del given["next_observations"]
    given["observations"] = np.asarray(given["observations"], stored)
    episodes = read(write(tmp_path / "maze.npz", **given, terminals=marks()))
    assert all(episode.observation.dtype == np.float32 for episode in episodes)
    assert first_rows(episodes) == WITHOUT


def test_columns_in_the_order_of_fortran_are_read(tmp_path: Path):
    given = {name: np.asfortranarray(column) for name, column in columns().items()}
    assert first_rows(read(write(tmp_path / "maze.npz", **given, timeouts=marks()))) == WITH


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"actions": np.zeros((12, 2), np.int64)}, "its actions are whole numbers"),
        ({"actions": np.zeros((11, 2), np.float32)}, "all as long"),
        ({"observations": np.zeros((12, 2, 2), np.float32)}, "must be (rows, numbers)"),
        ({"next_observations": np.zeros((12, 3), np.float32)}, "next_observations are (12, 3)"),
        ({"observations": np.float32(1.0)}, "must be (rows, numbers)"),
        ({"timeouts": np.float32(1.0)}, "all as long"),
        ({"observations": np.zeros((12, 4), np.complex64)}, "holds complex64"),
        ({"observations": np.array([{}] * 12)}, "holds Python objects"),
        ({"observations": np.array(["a"] * 12)}, "not numbers"),
        ({"observations": np.zeros(12, [("x", "f4")])}, "not numbers"),
    ],
)  # fmt: skip
def test_columns_of_other_kinds_are_refused(tmp_path: Path, change: dict, said: str):
    assert said in refusal(write(tmp_path / "maze.npz", **columns() | change))


def test_a_group_in_a_columns_place_is_named(tmp_path: Path):
    parts = {"observations/pose": columns()["observations"], "actions": columns()["actions"]}
    assert "observations is a group of others, not a column" in refusal(write(tmp_path / "a.hdf5", **parts))


def test_rows_of_a_minari_dataset_are_told_from_columns(tmp_path: Path):
    path = write(tmp_path / "main_data.hdf5", **{"episode_0/actions": np.zeros((3, 2))})
    assert "name the folder that holds this Minari dataset" in refusal(path)


@pytest.mark.parametrize("source", ["a" * 5000, "~nobody-of-that-name/maze.npz", "maze.npz", "a/b-v0", ""])
def test_what_is_not_there_is_said_in_one_line(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        read_foreign(source, GoalChoice((0,)), episode_steps=STEPS, limit=10**8)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


# -- what a file claims ---------------------------------------------------------------------------


def npy(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue() + data


def zipped(path: Path, members: list[tuple[str, bytes]], **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_an_npz_that_claims_more_than_it_holds_is_refused(tmp_path: Path):
    actions = ("actions.npy", npy((12, 2), bytes(96)))
    path = zipped(tmp_path / "huge.npz", [("observations.npy", npy((2**40, 4), bytes(64))), actions])
    assert "observations claims 17,592,186,044,416 bytes" in refusal(path)
    path = zipped(tmp_path / "cut.npz", [("observations.npy", npy((12, 4), bytes(191))), actions])
    assert "observations claims 192 bytes" in refusal(path)
    # Rows without a number take no byte; their flags would.
    members = [(f"{name}.npy", npy((2**40, 0), b"")) for name in ("observations", "actions")]
    assert "must be (rows, numbers)" in refusal(zipped(tmp_path / "empty.npz", members))
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 10**7) + b" " * 10**7
    path = zipped(tmp_path / "header.npz", [("observations.npy", header)], compression=zipfile.ZIP_DEFLATED)
    assert "observations has a header of 10,000,000 bytes" in refusal(path)


def test_an_npz_that_unpacks_to_more_than_the_memory_is_refused(tmp_path: Path):
    members = [("observations.npy", npy((10**7, 4), bytes(16 * 10**7)))]
    path = zipped(tmp_path / "bomb.npz", members, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    assert "160,000,000 bytes, and 100,000,000 of memory are free" in refusal(path)


def test_an_npz_whose_directory_lies_is_refused(tmp_path: Path):
    good = [("observations.npy", npy((12, 4), bytes(192))), ("actions.npy", npy((12, 2), bytes(96)))]
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "twice.npz", [*good, good[0]])
    assert "two columns observations" in refusal(path)
    path = zipped(tmp_path / "lzma.npz", good, compression=zipfile.ZIP_LZMA)
    assert "packed in a way that is not read" in refusal(path)
    content = bytearray(zipped(tmp_path / "lies.npz", good).read_bytes())
    place = content.index(b"PK\x01\x02") + 20  # packed and whole size in the directory's first entry
    content[place : place + 8] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "lies.npz").write_bytes(content)
    assert "cannot be read as an .npz file" in refusal(tmp_path / "lies.npz")
    content = bytearray(zipped(tmp_path / "flipped.npz", good).read_bytes())
    content[content.index(b"actions.npy") + 140] ^= 1  # a number that its checksum denies
    (tmp_path / "flipped.npz").write_bytes(content)
    assert "cannot be read as an .npz file" in refusal(tmp_path / "flipped.npz")


def secret(folder: Path) -> Path:
    path = folder / "secret"
    path.write_bytes(np.full((12, 4), 0.25, np.float32).tobytes())
    return path


def storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset("observations", (12, 4), "f4", external=[(str(secret(folder)), 0, 192)])


def link(file: h5py.File, folder: Path) -> None:
    write(folder / "other.hdf5", a=columns()["observations"])
    file["observations"] = h5py.ExternalLink(str(folder / "other.hdf5"), "a")


def layout(file: h5py.File, folder: Path) -> None:
    write(folder / "other.hdf5", a=columns()["observations"])
    whole = h5py.VirtualLayout((12, 4), "f4")
    whole[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "a", (12, 4))
    file.create_virtual_dataset("observations", whole)


def soft(file: h5py.File, folder: Path) -> None:
    link(file, folder)
    file.move("observations", "elsewhere")
    file["observations"] = h5py.SoftLink("/elsewhere")


def claim_flags(file: h5py.File, folder: Path) -> None:
    file["observations"] = columns()["observations"]
    file.create_dataset("terminals", (2**40,), bool)


def claim(file: h5py.File, folder: Path) -> None:
    file.create_dataset("observations", (2**40, 4), "f4", chunks=(1024, 4))


def bomb(file: h5py.File, folder: Path) -> None:
    data = np.zeros((10**7, 4), np.float32)
    file.create_dataset("observations", data=data, chunks=(10**5, 4), compression="gzip")


def bomb_in_a_chunk(file: h5py.File, folder: Path) -> None:
    data = file.create_dataset("observations", (12, 4), "f4", chunks=(12, 4), compression="gzip")
    data.id.write_direct_chunk((0, 0), zlib.compress(bytes(2 * 10**6)))


def filtered(file: h5py.File, folder: Path) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((12, 4))
    creation.set_filter(4242, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5py.h5s.create_simple((12, 4))
    h5py.h5d.create(file.id, b"observations", h5py.h5t.IEEE_F32LE, space, creation)


def text(file: h5py.File, folder: Path) -> None:
    file["observations"] = ["a"] * 12


def ragged(file: h5py.File, folder: Path) -> None:
    file.create_dataset("observations", (12,), h5py.vlen_dtype(np.float32))


def record(file: h5py.File, folder: Path) -> None:
    file["observations"] = np.zeros(12, [("x", "f4")])


REACHES = [storage, link, layout, soft]
CLAIMS = [claim, claim_flags, bomb, bomb_in_a_chunk, filtered, text, ragged, record]


@pytest.mark.parametrize("make", [*REACHES, *CLAIMS], ids=lambda make: make.__name__)
def test_hdf5_that_reaches_outside_or_claims_too_much_is_refused(tmp_path: Path, make: Callable):
    given = columns()
    del given["observations"]
    path = write(tmp_path / "maze.hdf5", **given, timeouts=marks())
    with h5py.File(path, "a") as file:
        make(file, tmp_path)
    message = refusal(path)
    assert ("another file" in message) == (make in REACHES), message


def test_flags_that_were_never_written_are_all_false(tmp_path: Path):
    path = write(tmp_path / "maze.hdf5", **columns(), timeouts=marks())
    with h5py.File(path, "a") as file:
        file.create_dataset("terminals", (12,), bool)
    assert first_rows(read(path)) == WITH
    with h5py.File(path, "a") as file:
        del file["actions"]
        file.create_dataset("actions", (12, 2), "f4")
    assert "the file holds 0 of it" in refusal(path)


def test_a_link_within_a_file_is_followed(tmp_path: Path):
    path = write(tmp_path / "maze.hdf5", **columns(), timeouts=marks())
    with h5py.File(path, "a") as file:
        file.move("observations", "raw")
        file["observations"] = h5py.SoftLink("/raw")
    assert first_rows(read(path)) == WITH


# -- Minari ---------------------------------------------------------------------------------------


def write_minari(folder: Path, episodes: list[dict[str, np.ndarray]], **metadata) -> Path:
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data/main_data.hdf5", "w") as file:
        for number, episode in enumerate(episodes):
            for place, column in episode.items():
                file[f"episode_{number}/{place}"] = column
    told = {"total_episodes": len(episodes), "total_steps": 5 * len(episodes)} | metadata
    (folder / "data/metadata.json").write_text(json.dumps(told))
    return folder


def episode(steps: int = 5, **changes: np.ndarray | None) -> dict[str, np.ndarray]:
    made = {
        "observations/observation": np.zeros((steps + 1, 4), np.float32),
        "observations/achieved_goal": np.arange(2 * steps + 2, dtype=np.float32).reshape(-1, 2),
        "observations/desired_goal": np.ones((steps + 1, 2), np.float32),
        "actions": np.zeros((steps, 2), np.float32),
        "terminations": np.zeros(steps, bool),
    }
    changed = made | {name.replace("__", "/"): value for name, value in changes.items()}
    return {name: value for name, value in changed.items() if value is not None}


def test_a_damaged_episode_of_minari_is_named_and_the_others_are_read(tmp_path: Path):
    lacking = episode(actions=None)
    ragged = episode(actions=np.array(["a"], "S1"))
    folder = write_minari(tmp_path / "m", [episode(), lacking, ragged, episode(3)])
    found = list(opened(folder, columns=()).episodes())
    assert [each.name for each in found] == [f"episode_{number}" for number in range(4)]
    assert [isinstance(each, BadEpisode) for each in found] == [False, True, True, False]
    assert isinstance(found[1], BadEpisode) and found[1].problem == "it has no actions"


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_one_episode_of_another_kind_is_named_and_the_others_are_read(tmp_path: Path, bad: int):
    parts = {"actions/x": np.zeros((5, 2), np.float32)}
    other = [episode(actions=None) | parts, episode(actions=np.zeros((5, 2), np.int64))]
    for number, made in enumerate(other):
        episodes = [episode(), episode(), episode()]
        episodes[bad] = made
        found = list(opened(write_minari(tmp_path / str(number), episodes), columns=()).episodes())
        problems = [each.problem if isinstance(each, BadEpisode) else "" for each in found]
        said = ["a dictionary of x", "whole numbers"][number]
        assert said in problems.pop(bad) and problems == ["", ""]


def test_more_than_nine_episodes_keep_their_order(tmp_path: Path):
    folder = write_minari(tmp_path / "m", [episode(steps) for steps in range(1, 13)])
    assert [len(each.action) for each in read(folder, columns=())] == list(range(1, 13))


def test_goals_in_dictionaries_are_told_and_chosen(tmp_path: Path):
    goals = {f"observations__{kind}_goal": None for kind in ("achieved", "desired")}
    parts = {
        f"observations/{kind}_goal/{name}": np.full((6, 1), value, np.float32)
        for kind in ("achieved", "desired")
        for name, value in (("kettle", 1.0), ("microwave", 2.0))
    }
    folder = write_minari(tmp_path / "kitchen", [episode(**goals) | parts])
    message = refusal(folder, columns=())
    assert "a dictionary of kettle, microwave" in message and "--achieved-goal kettle,microwave" in message
    assert "did you mean 'kettle'?" in refusal(folder, columns=(), keys=("ketle",))
    (found,) = read(folder, columns=(), keys=("microwave", "kettle"))
    assert found.achieved_goal[0].tolist() == [2.0, 1.0]
    assert found.desired_goal is not None and found.desired_goal[0].tolist() == [2.0, 1.0]
    plain = write_minari(tmp_path / "plain", [episode()])
    assert "--achieved-goal chooses from a dictionary" in refusal(plain, columns=(), keys=("kettle",))


def test_observations_without_what_is_needed_say_what_is_there(tmp_path: Path):
    bare = {
        "observations/state": np.zeros((6, 4)),
        "observations/pose": np.zeros((6, 2)),
        "actions": np.zeros((5, 2)),
    }
    message = refusal(write_minari(tmp_path / "bare", [bare]), columns=())
    assert "its observations are pose, state" in message and "achieved_goal" in message
    without = episode(observations__achieved_goal=None, observations__desired_goal=None)
    folder = write_minari(tmp_path / "without", [without])
    assert "give --goal-columns" in refusal(folder, columns=())
    (found,) = read(folder, columns=(2, 3))
    assert found.achieved_goal.shape == (6, 2) and found.desired_goal is None
    (found,) = read(write_minari(tmp_path / "free", [episode(observations__desired_goal=None)]), columns=())
    assert found.desired_goal is None


def test_goal_columns_that_are_not_used_are_said(tmp_path: Path):
    dataset = opened(write_minari(tmp_path / "m", [episode(), episode()]), columns=(0, 1))
    list(dataset.episodes())
    assert dataset.warnings == ["it says what its achieved goals are: --goal-columns is not used."]


def test_choices_are_no_actions(tmp_path: Path):
    folder = write_minari(tmp_path / "m", [episode(actions=np.zeros(5, np.int64))])
    assert "its actions are whole numbers" in refusal(folder, columns=())


def test_a_minari_dataset_with_fewer_episodes_than_it_says_is_damaged(tmp_path: Path):
    folder = write_minari(tmp_path / "m", [episode()] * 3, total_episodes=10**9)
    assert "has 3 of 1,000,000,000 episodes" in refusal(folder)
    assert "has 3 of 4 episodes" in refusal(write_minari(tmp_path / "n", [episode()] * 3, total_episodes=4))


@pytest.mark.parametrize("make", REACHES, ids=lambda make: make.__name__)
def test_minari_that_reaches_outside_is_not_read(tmp_path: Path, make: Callable):
    folder = write_minari(tmp_path / "m", [episode(11, observations__observation=None)])
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        make(file["episode_0/observations"], tmp_path)
        file.move("episode_0/observations/observations", "episode_0/observations/observation")
    try:
        (found,) = opened(folder, columns=()).episodes()
        assert isinstance(found, BadEpisode) and "another file" in found.problem
    except UserError as error:
        assert "another file" in str(error)


def test_a_dataset_runs_nothing_to_say_what_its_spaces_are(tmp_path: Path):
    """Minari would make the environment, whose entry point is any function of any module."""
    spec = {
        "id": "a/B-v0", "entry_point": "os:mkdir", "kwargs": {"path": str(tmp_path / "run")},
        "max_episode_steps": None, "order_enforce": False, "disable_env_checker": True,
        "additional_wrappers": [],
    }  # fmt: skip
    told = {"data_format": "arrow", "env_spec": json.dumps(spec), "dataset_id": "a/b-v0"}
    folder = write_minari(tmp_path / "m", [episode()], **told)
    assert "does not say what its spaces are" in refusal(folder, columns=())
    write_minari(tmp_path / "n", [episode()], **told | {"data_format": "hdf5"})
    assert len(read(tmp_path / "n", columns=())) == 1
    assert not (tmp_path / "run").exists()
