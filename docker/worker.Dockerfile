# One GPU worker. torch's wheels bring CUDA's libraries; the host brings a driver for CUDA 13 (580 or newer) and the
# NVIDIA container toolkit, so that the base is the node's. Build from the repository's root:
#   docker build -f docker/worker.Dockerfile -t echo-ai-worker .
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir -c constraints.txt hatchling
COPY dicom_node dicom_node
COPY model model
COPY trainer trainer
COPY worker worker
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
COPY constraints.txt /
COPY --from=build /wheels /wheels
# The user has the number that the node's has: they share the folder of instances and reports.
RUN pip install --no-cache-dir -c /constraints.txt "$(echo /wheels/*.whl)[worker,postgres,s3]" \
    && useradd --uid 10001 --no-create-home echo-node \
    && install -d -m 0700 -o echo-node /var/lib/echo-node
# What the toolkit puts in: the driver's libraries and nvidia-smi. matplotlib draws the summary page; its list of fonts
# goes where any user may write.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility MPLCONFIGDIR=/tmp/matplotlib
USER echo-node
WORKDIR /var/lib/echo-node
VOLUME /var/lib/echo-node
CMD ["celery", "-A", "worker.app", "worker", "-Q", "inference", "--pool=prefork", "--concurrency=1", "--loglevel=WARNING"]
