# nppkit in a container; docs/container.md has the commands. --build-arg DEVICE=cpu (the default) or DEVICE=cuda.
FROM python:3.11-slim-bookworm

# make runs the commands, g++ compiles training steps for a CPU, Snakemake wants git
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ git make \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 nppkit \
 && install --directory --mode=777 /nppkit /study

USER 1000
WORKDIR /nppkit
COPY --chown=1000 pyproject.toml constraints.txt README.md LICENSE Makefile Snakefile ./
COPY --chown=1000 nppkit nppkit
COPY --chown=1000 notebooks notebooks
COPY --chown=1000 profiles profiles

# PyPI's wheel of torch brings CUDA; its own index has one without, smaller by gigabytes
ARG DEVICE=cpu
RUN case "$DEVICE" in cuda) ;; *) export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ;; esac \
 && python -m venv .venv \
 && .venv/bin/pip install --no-cache-dir --constraint constraints.txt --editable . \
 && .venv/bin/pip check \
 && touch .venv/bin/.installed \
 && install --directory --mode=777 .snakemake

# All that a run makes lies in the folder that is mounted here, whoever runs it: results/, figures/, checkpoints/, caches. Who that
# is, the image need not know by name; Snakemake asks for one
ENV USER=nppkit NPPKIT_HOME=/study HOME=/study TORCHINDUCTOR_CACHE_DIR=/study/.cache/inductor XDG_CACHE_HOME=/study/.cache
VOLUME /study
ENTRYPOINT ["make"]
CMD ["help"]
