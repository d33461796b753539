# Everything that profiles, trains, thins and exports. From the repository's root:
#   docker build --file docker/build.Dockerfile --tag heat .
#   docker run --rm --volume "$PWD":/work heat build --data my-data --target-fps 24
FROM python:3.11-slim AS wheel
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
# A CPU build of torch; the default index brings CUDA along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1
COPY constraints.txt /opt/heat/constraints.txt
COPY --from=wheel /wheels /opt/heat/wheels
RUN python -m pip install --no-cache-dir --constraint /opt/heat/constraints.txt \
        --extra-index-url "${TORCH_INDEX}" "$(ls /opt/heat/wheels/*.whl)[build]" \
    && useradd --create-home --uid 1000 heat
USER 1000
WORKDIR /work
ENTRYPOINT ["heat"]
