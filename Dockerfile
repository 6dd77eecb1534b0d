# featkit on CPUs; docs/howto/docker.md says how to build and use it.
FROM python:3.12-slim

# A package index with CPU-only wheels of torch; empty: pip's default.
ARG TORCH_INDEX=""

WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY featkit ./featkit
RUN python -m pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch torchvision
RUN python -m pip install --no-cache-dir ".[int8]"

# With --user, the home folder may not be writable: downloaded weights and data sets are kept beside the results.
ENV FEATKIT_WEIGHTS=/weights \
    FEATKIT_HOME=/data/.featkit \
    XDG_CACHE_HOME=/data/.featkit/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1
RUN useradd --create-home featkit && mkdir -p /data /weights && chown featkit /data
USER featkit
WORKDIR /data
ENTRYPOINT ["featkit"]
CMD ["--help"]
