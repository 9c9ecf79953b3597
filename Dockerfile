# The whole pipeline in one image, on the CPU and on an NVIDIA GPU with driver 580 or newer; docs/docker.md says how.
#   docker build -t thousandfold .
FROM python:3.11-slim-bookworm AS build
ENV PATH=/opt/thousandfold/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/thousandfold
WORKDIR /source
COPY constraints.txt ./
# PyPI's torch brings the libraries of CUDA along. TORCH_INDEX names an index whose torch leaves them out: the image
# then runs on the CPU alone, and is some gigabytes smaller.
ARG TORCH_INDEX=
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir --no-deps -c constraints.txt --index-url "$TORCH_INDEX" torch; fi
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[train,postgresql,sign,tensorboard,wandb,hub]"

FROM python:3.11-slim-bookworm
# OpenGL without a display: EGL, with Mesa's software renderer behind it, and OSMesa. The compiler is for
# `policy to-c` and for benchmarks, which time the C code.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev libegl1 libgl1 libgl1-mesa-dri libosmesa6 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/thousandfold /opt/thousandfold
# With --user the container runs as anybody, who needs a home and the workspace too.
RUN useradd --create-home --uid 1000 pipeline \
 && mkdir /workspace \
 && chown pipeline /workspace \
 && chmod 1777 /workspace /home/pipeline
# NVIDIA's container runtime brings the driver's OpenGL only where graphics is asked for.
ENV PATH=/opt/thousandfold/bin:$PATH \
    HOME=/home/pipeline \
    THOUSANDFOLD_WORKSPACE=/workspace \
    WARP_CACHE_PATH=/workspace/cache/warp \
    MUJOCO_GL=egl \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
USER pipeline
WORKDIR /workspace
VOLUME /workspace
EXPOSE 5000
ENTRYPOINT ["pipeline"]
CMD ["--help"]
