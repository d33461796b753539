# One bundle and its runtime; neither torch nor HEAT. From the repository's root:
#   docker build --file docker/edge.Dockerfile --build-arg BUNDLE=heat-run/bundle-onnx --tag detector .
#   docker run --rm --volume "$PWD":/images detector /images/image.jpg --save /images/out
FROM python:3.11-slim
# Or openvino, for a bundle of that format.
ARG RUNTIME=onnxruntime
ARG BUNDLE=heat-run/bundle-onnx
ENV PYTHONUNBUFFERED=1
COPY constraints.txt /tmp/constraints.txt
RUN python -m pip install --no-cache-dir --constraint /tmp/constraints.txt \
        numpy opencv-python-headless "${RUNTIME}" \
    && rm /tmp/constraints.txt \
    && useradd --create-home --uid 1000 detector
COPY ${BUNDLE} /bundle
USER 1000
WORKDIR /home/detector
ENTRYPOINT ["python", "/bundle/detect.py"]
