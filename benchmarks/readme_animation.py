"""Turn a video that `pipeline render` drew into a small animation for a page.

    pipeline render --set episodes=3 --set max_steps=200 --set width=400 --set height=300
    python -m benchmarks.readme_animation runs/rendering-…/episodes.mp4 docs/pictures/quadruped.webp

It plays in real time, with every second frame by default, and begins anew at its end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

from thousandfold.ground.files import atomic_file


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the animation and say how large it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path, help="an mp4 file")
    parser.add_argument("output", type=Path, help="a .webp file")
    parser.add_argument("--every", type=int, default=2, help="frames of the video to one of the animation")
    parser.add_argument("--from-s", type=float, default=0.0, help="second of the video to begin at")
    parser.add_argument("--quality", type=int, default=60, help="of WebP, 0 to 100")
    options = parser.parse_args(arguments)
    if not options.video.is_file():
        parser.error(f"{options.video} is no file")
    if options.every < 1:
        parser.error("--every must be at least 1")
    reader = imageio_ffmpeg.read_frames(str(options.video))
    facts = next(reader)
    frames = [
        Image.frombytes("RGB", facts["size"], frame)
        for number, frame in enumerate(reader)
        if number >= options.from_s * facts["fps"] and number % options.every == 0
    ]
    if not frames:
        parser.error(f"--from-s {options.from_s:g} is beyond the end of {options.video}")
    with atomic_file(options.output) as temporary:
        frames[0].save(
            temporary,
            "WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=round(1000 * options.every / facts["fps"]),
            loop=0,
            quality=options.quality,
            method=6,
        )
    size = options.output.stat().st_size / 1000
    print(f"{options.output}: {len(frames)} frames of {facts['size'][0]} x {facts['size'][1]}, {size:.0f} kB")


if __name__ == "__main__":
    main()
