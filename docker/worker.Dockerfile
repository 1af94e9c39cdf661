# One GPU worker. torch's wheels bring CUDA's libraries; the host brings a driver for CUDA 13 (580 or newer) and the
# NVIDIA container toolkit. Build from the repository's root:
#   docker build -f docker/worker.Dockerfile -t echo-ai-worker .
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS python
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3.12 python3.12-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3.12 -m venv /opt/worker
# matplotlib draws the summary page; its list of fonts goes where any user may write.
ENV PATH=/opt/worker/bin:$PATH MPLCONFIGDIR=/tmp/matplotlib

FROM python AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir -c constraints.txt hatchling
COPY dicom_node dicom_node
COPY model model
COPY trainer trainer
COPY worker worker
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python
COPY constraints.txt /
COPY --from=build /wheels /wheels
# The user has the number that the node's has: they share the folder of instances and reports.
RUN pip install --no-cache-dir -c /constraints.txt "$(echo /wheels/*.whl)[worker,postgres,s3]" \
    && useradd --uid 10001 --no-create-home echo-node \
    && install -d -m 0700 -o echo-node /var/lib/echo-node
USER echo-node
WORKDIR /var/lib/echo-node
VOLUME /var/lib/echo-node
CMD ["celery", "-A", "worker.app", "worker", "-Q", "inference", "--pool=prefork", "--concurrency=1", "--loglevel=WARNING"]
