# The environment of tools/setup_env.sh in a container:
#   docker build -t gersp_mm .
#   docker run --rm -it --gpus all --shm-size 8g -v /my/images:/images gersp_mm pretrain \
#       --images /images/tiles --natural /images/photographs --out /images/run
FROM python:3.11-slim

# git: the commit that rows and checkpoints note; libgl1 and libglib2.0-0: OpenCV.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /gersp_mm
COPY . .
RUN bash tools/setup_env.sh --downstream

ENV PATH=/gersp_mm/.venv/bin:$PATH
ENTRYPOINT ["gersp"]
CMD ["--help"]
