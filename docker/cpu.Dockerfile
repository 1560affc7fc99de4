# GoCA without a GPU:  docker build -t goca -f docker/cpu.Dockerfile .
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/cache MPLCONFIGDIR=/tmp/matplotlib
COPY . /src
# PyPI's torch brings several GB of CUDA libraries; this index has the build without.
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu" \
    && pip install --constraint /src/constraints.txt "/src[app,captions,tensorboard]" \
    && rm -rf /src \
    && useradd --uid 1000 --create-home goca \
    && mkdir /work /cache \
    && chown goca /work /cache
USER 1000
WORKDIR /work
ENTRYPOINT ["goca"]
CMD ["--help"]
