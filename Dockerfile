FROM python:3.11-slim AS build
WORKDIR /app
COPY requirements.txt .
RUN python -m venv /opt/venv
RUN /opt/venv/bin/pip install --no-cache-dir -r requirements.txt

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 user
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY app.py .
COPY timeripple timeripple
COPY ui ui
COPY assets assets
USER user
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860 GRADIO_TEMP_DIR=/tmp/gradio PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD /opt/venv/bin/python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/')"
CMD ["/opt/venv/bin/python", "app.py"]
