# GoCA on NVIDIA GPUs:  docker build -t goca:cuda -f docker/cuda.Dockerfile .   docker run --gpus all ...
# PyPI's torch brings its own CUDA libraries: the image needs none, the machine its driver and NVIDIA's container toolkit.
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/cache MPLCONFIGDIR=/tmp/matplotlib
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY . /src
RUN pip install --constraint /src/constraints.txt "/src[app,captions,quantization,tensorboard]" \
    && rm -rf /src \
    && useradd --uid 1000 --create-home goca \
    && mkdir /work /cache \
    && chown goca /work /cache
USER 1000
WORKDIR /work
ENTRYPOINT ["goca"]
CMD ["--help"]
