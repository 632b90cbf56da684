# The commands of this project in an image.
#
#   docker build -t cggm .
#   docker build -t cggm --build-arg BASE=nvidia/cuda:13.0.2-base-ubuntu24.04 \
#       --build-arg TORCH_INDEX=https://pypi.org/simple .
#   docker run --rm --shm-size=2g -v "$PWD:/data" cggm brats train --data /data/cases
#
# The second one is for NVIDIA GPUs (docker run --gpus all); PyTorch's wheels bring CUDA's libraries.
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/cggm
ENV PATH=/opt/cggm/bin:$PATH

WORKDIR /source
COPY . .
# PyTorch first and from its own index, or the rest would bring another build of it.
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" -c constraints.txt torch torchvision \
    && pip install --no-cache-dir -c constraints.txt ".[seg,cls]" \
    && useradd --create-home --non-unique --uid 1000 cggm

USER 1000
WORKDIR /data
ENTRYPOINT ["cggm"]
CMD ["--help"]
