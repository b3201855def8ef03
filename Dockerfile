# The manager's image: Python and LlamaMan, no compiler, no llama.cpp and no GPU library. Engines are containers of
# their own beside it, see docs/docker.md.
#
#   docker build -t llamaman .
#
# Written for every builder, the one without BuildKit too. To build without a package index, put wheels of all
# requirements and of hatchling into wheels/ and add `--build-arg PIP_NO_INDEX=1`.

# Any image with Python 3.11 or newer and its venv module, for glibc. A tag moves; for a build that can be repeated
# name a digest that you have checked: --build-arg BASE=python@sha256:...
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
# Extras of pyproject.toml, separated by commas.
ARG EXTRAS=standard
# pip's own variables; unset means pip's defaults.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_NO_INDEX
WORKDIR /src
# pip stays in an environment of its own, which is left behind.
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/llamaman
COPY . .
# The constraints make the extras resolve to the plugins of this checkout, never to namesakes on an index.
RUN mkdir -p wheels \
    && /pip/bin/pip --python /opt/llamaman/bin/python install --no-cache-dir --disable-pip-version-check \
        --find-links wheels --constraint plugins/local.txt ".[${EXTRAS}]" \
    && /opt/llamaman/bin/llamaman --version

FROM ${BASE}
LABEL org.opencontainers.image.title="LlamaMan" \
      org.opencontainers.image.description="Launches, watches and routes to many llama.cpp servers" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/llamaman /opt/llamaman
ENV PATH=/opt/llamaman/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    LLAMAMAN_IN_DOCKER=true \
    MODELS_DIR=/models \
    DATA_DIR=/data \
    LOGS_DIR=/tmp/llama-logs
# What docker-compose.yml mounts; private, so that a container without mounts starts too.
RUN mkdir -m 755 /models && mkdir -m 700 /data
# Dashboard and management, the proxy for clients, and one port for each instance: all served by the manager.
EXPOSE 5000 42069 8000-8020
# root, because the socket's group has another number on each host. Where that number is known, run it as
# `--user 1000 --group-add <number>` with folders that belong to that user; the socket means root on the host anyway.
USER root
# Connecting to 0.0.0.0 reaches this machine itself.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/opt/llamaman/bin/python", "-I", "-c", "import http.client, os; to = http.client.HTTPConnection(os.environ.get('LLAMAMAN_HOST') or '0.0.0.0', int(os.environ.get('LLAMAMAN_PORT') or 5000), timeout=4); to.request('GET', '/health'); raise SystemExit(to.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["llamaman"]
CMD ["serve"]
