# The node without torch: receives, keeps the ledger, delivers. Build from the repository's root:
#   docker build -f docker/node.Dockerfile -t echo-ai-node .
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
RUN pip install --no-cache-dir -c /constraints.txt "$(echo /wheels/*.whl)[postgres,s3]" \
    && useradd --uid 10001 --no-create-home echo-node \
    && install -d -m 0700 -o echo-node /var/lib/echo-node
USER echo-node
WORKDIR /var/lib/echo-node
VOLUME /var/lib/echo-node
EXPOSE 11112 8042
CMD ["dicom-node", "serve"]
