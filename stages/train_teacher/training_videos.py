"""Videos of a teacher while it trains: the same few episodes every so many evaluations."""

from __future__ import annotations

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures.opengl import NoOpenGLError
from thousandfold.envs.pictures.scene_rendering import SceneRenderer
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.pipeline.resume import ResumableWork
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.stages.networks import torch_policy
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings
from thousandfold.stages.videos import (
    EpisodePainter,
    VideoError,
    record_episodes,
    require_ffmpeg,
    write_video,
)

VIDEO_FOLDER = "videos"
_EPISODE_STREAM = 9
_EPISODES, _WIDTH, _HEIGHT = 2, 480, 360


class TrainingVideos:
    """Draws a video of the evaluated actor every `video_every` evaluations, into the teacher's artifact.

    Starts and goals come from a generator of their own: a training with videos learns what it learns without.

    Args:
        settings, task, device: of the training.
        work: the artifact and its tracking run.
    """

    def __init__(
        self, settings: TrainTeacherSettings, task: CompiledTask, device: str, work: ResumableWork
    ) -> None:
        self._settings, self._task, self._device, self._work = settings, task, device, work
        self._every = settings.video_every if work.context.ranks.leads else 0

    def draw_if_due(self, actor: NormalizedActor, evaluations: int, env_steps: int) -> None:
        """Draw the actor after so many evaluations and steps, where a video is due.

        Where nothing can be drawn here, that is said once and the training goes on.
        """
        if not self._every or evaluations % self._every:
            return
        name = f"{VIDEO_FOLDER}/step-{env_steps:012d}.mp4"
        try:
            require_ffmpeg()
            with SceneRenderer(self._task, _WIDTH, _HEIGHT) as renderer:
                episodes = record_episodes(
                    self._task,
                    torch_policy(actor, self._device, self._settings.cuda_graph),
                    episodes=_EPISODES,
                    seed=seed_sequence(self._settings.seed, _EPISODE_STREAM),
                )
                write_video(self._work.artifact.file(name), EpisodePainter(renderer), episodes)
        except (NoOpenGLError, VideoError) as error:
            self._every = 0
            self._work.context.console.say(f"No videos are made: {error}")
            return
        self._work.log_files(name)
