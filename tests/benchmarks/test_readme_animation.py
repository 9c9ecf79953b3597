"""A video becomes an animation that plays as fast as the video."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from benchmarks import readme_animation


def test_every_second_frame_for_twice_as_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, output = tmp_path / "episodes.mp4", tmp_path / "it.webp"
    writer = imageio_ffmpeg.write_frames(str(video), (64, 48), fps=20)
    writer.send(None)
    for level in range(0, 200, 20):
        writer.send(np.full((48, 64, 3), level, np.uint8).tobytes())
    writer.close()
    readme_animation.main([str(video), str(output)])
    with Image.open(output) as animation:
        assert (animation.n_frames, animation.size, animation.info["loop"]) == (5, (64, 48), 0)
        animation.seek(2)
        animation.load()
        assert animation.info["duration"] == 100
        assert np.asarray(animation.convert("RGB")).mean() == pytest.approx(80, abs=8)
    assert "5 frames of 64 x 48" in capsys.readouterr().out
    readme_animation.main([str(video), str(output), "--from-s", "0.3"])
    assert "2 frames" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        readme_animation.main([str(video), str(output), "--from-s", "3"])
    assert "--from-s 3 is beyond the end of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [(["no.mp4", "it.webp"], "no.mp4 is no file"), ([__file__, "it.webp", "--every=0"], "least 1")],
)
def test_bad_input(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        readme_animation.main(options)
    assert raised.value.code == 2 and said in capsys.readouterr().err
