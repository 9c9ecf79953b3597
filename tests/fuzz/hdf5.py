"""Fuzzing of HDF5: columns, Minari's rows, and shards of ours: python -m tests.fuzz.hdf5 --minutes 10."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from hypothesis import strategies as st

from tests.fuzz.runner import damaged, main
from thousandfold.ground.errors import UserError
from thousandfold.replay.goal_dataset import DatasetError, load_shards
from thousandfold.stages.dataset.foreign_episodes import ENDS, ForeignEpisode, GoalChoice, read_foreign

EPISODES, STEPS, GOALS = 2, 5, 3
_OURS = {
    "observations/observation": (STEPS + 1, 4),
    "observations/achieved_goal": (STEPS + 1, 2),
    "observations/desired_goal": (STEPS + 1, 2),
    "actions": (STEPS, 2),
    "terminations": (STEPS,),
    "infos/teacher_mean": (STEPS + 1, 2),
    "infos/teacher_log_std": (STEPS + 1, 2),
    "infos/alternative_goal": (STEPS + 1, GOALS, 2),
    "infos/alternative_mean": (STEPS + 1, GOALS, 2),
    "infos/alternative_log_std": (STEPS + 1, GOALS, 2),
    "infos/is_success": (STEPS + 1,),
}
METADATA = {
    "total_episodes": EPISODES,
    "total_steps": EPISODES * STEPS,
    "data_format": "hdf5",
    "thousandfold": {"format_version": 2},
}


def _put(draw: st.DrawFn, file: h5py.File, place: str, shape: tuple[int, ...]) -> None:
    """Put a column into a file: as a rule a plain one, now and then what no reader should take."""
    data = np.random.default_rng(len(place)).integers(0, 2, shape)
    flags = place.split("/")[-1] in (*ENDS, "is_success")
    match draw(st.integers(0, 60)):
        case 0:
            file[place] = h5py.ExternalLink("/dev/zero", "/x")
        case 1:
            file[place] = h5py.SoftLink(draw(st.sampled_from(["/", "/actions", f"/{place}", "/nowhere"])))
        case 2:
            file.create_dataset(place, shape, "f4", external=[("/proc/self/environ", 0, 2**20)])
        case 3:
            file.create_dataset(place, (draw(st.sampled_from([2**20, 2**31, 2**50])), 4), "f4", chunks=(8, 4))
        case 4:
            kinds = [
                h5py.vlen_dtype(np.float32),
                h5py.string_dtype(),
                h5py.ref_dtype,
                [("x", "f4")],
                "S4",
                "c8",
            ]
            file.create_dataset(place, shape, np.dtype(draw(st.sampled_from(kinds))))
        case 5:
            file.create_group(place)
        case 6:
            file.create_dataset(
                place, data=data.astype("f4"), compression="lzf", shuffle=True, fletcher32=True
            )
        case 7:
            file.create_dataset(place, data=h5py.Empty("f4"))
        case 8:
            group = file.require_group(place)
            group["self"] = group
        case number:
            kind = "?" if flags else draw(st.sampled_from(["f4", "f4", "f4", "f8", "f2"]))
            packed = {"compression": "gzip", "chunks": True} if number % 3 == 0 else {}
            file.create_dataset(place, data=data.astype(kind), **packed)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Draw a file of columns, or of the episodes of a shard."""
    memory = io.BytesIO()
    options: dict = draw(st.sampled_from([{}, {"libver": "latest"}, {"track_order": True}]))
    with h5py.File(memory, "w", **options) as file:
        if draw(st.booleans()):
            rows = draw(st.sampled_from([1, 12, 12, 200]))
            for name in ("observations", "next_observations"):
                _put(draw, file, name, (rows, 4))
            _put(draw, file, "actions", (rows, 2))
            for name in draw(st.lists(st.sampled_from(ENDS), max_size=2, unique=True)):
                _put(draw, file, name, (rows,))
        else:
            for number in range(EPISODES):
                for place, shape in _OURS.items():
                    _put(draw, file, f"episode_{number}/{place}", shape)
    return memory.getvalue()


def read(path: Path) -> None:
    """Read a file as an import does, and as a load of a shard does; the first refusal is raised."""
    folder = path.parent / "minari/data"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.json").write_text(json.dumps(METADATA))
    shutil.copyfile(path, folder / "main_data.hdf5")
    refusals = [
        refusal for reader in (_columns, _minari, _shard) if (refusal := _refused(reader, path, folder))
    ]
    if len(refusals) == 3:
        raise refusals[0]
    if many := [refusal for refusal in refusals if "\n" in str(refusal)]:
        raise many[0]


def _refused(reader: Callable[[Path, Path], None], path: Path, folder: Path) -> Exception | None:
    try:
        reader(path, folder)
    except (UserError, DatasetError) as error:
        return error
    return None


def _columns(path: Path, folder: Path) -> None:
    _take(str(path), GoalChoice((0, 1)))


def _minari(path: Path, folder: Path) -> None:
    _take(str(folder), GoalChoice())


def _take(source: str, goal: GoalChoice) -> None:
    for episode in read_foreign(source, goal, episode_steps=100, limit=2**28).episodes():
        if isinstance(episode, ForeignEpisode):
            np.isfinite(episode.observation).all()


def _shard(path: Path, folder: Path) -> None:
    load_shards([folder])


CASES = damaged(files())

if __name__ == "__main__":
    main("tests.fuzz.hdf5:read", CASES, ".hdf5")
