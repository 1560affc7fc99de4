# GoCA on NVIDIA GPUs:  docker build -t goca:cuda -f docker/cuda.Dockerfile .   docker run --gpus all ...
# PyPI's torch brings its own CUDA libraries: the image needs none, the machine its driver and NVIDIA's container toolkit.
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HOME=/tmp HF_HOME=/cache
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY . /src
RUN pip install --constraint /src/constraints.txt "/src[app,captions,quantization,tensorboard]" \
    && rm -rf /src \
    && mkdir -m 1777 /work /cache
# Any user may run it (docker run --user), whether the image knows a home of theirs or not.
USER 1000
WORKDIR /work
ENTRYPOINT ["goca"]
CMD ["--help"]
