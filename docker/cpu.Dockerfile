# GoCA without a GPU:  docker build -t goca -f docker/cpu.Dockerfile .
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HOME=/tmp HF_HOME=/cache
COPY . /src
# PyPI's torch brings several GB of CUDA libraries; this index has the build without.
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu" \
    && pip install --constraint /src/constraints.txt "/src[app,captions,tensorboard]" \
    && rm -rf /src \
    && mkdir -m 1777 /work /cache
# Any user may run it (docker run --user), whether the image knows a home of theirs or not.
USER 1000
WORKDIR /work
ENTRYPOINT ["goca"]
CMD ["--help"]
