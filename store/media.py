"""Media types of manifests and layers, and the annotation keys of adapter layers.

Ollama's types for what Ollama has, so that its manifests and ours can be read alike.
"""

from __future__ import annotations

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.docker.container.image.v1+json"

MODEL = "application/vnd.ollama.image.model"
ADAPTER = "application/vnd.ollama.image.adapter"
PROJECTOR = "application/vnd.ollama.image.projector"
TEMPLATE = "application/vnd.ollama.image.template"
SYSTEM = "application/vnd.ollama.image.system"
PARAMS = "application/vnd.ollama.image.params"
MESSAGES = "application/vnd.ollama.image.messages"
LICENSE = "application/vnd.ollama.image.license"

# Annotations of an adapter layer; all values are strings.
ADAPTER_PREFIX = "modelctl.adapter."
ADAPTER_NAME = ADAPTER_PREFIX + "name"
ADAPTER_INDEX = ADAPTER_PREFIX + "index"  # its ADAPTER line's place, from 0
ADAPTER_SCALE = ADAPTER_PREFIX + "scale"  # the scale it starts at
ADAPTER_SOURCE = ADAPTER_PREFIX + "source"  # where it came from, for people
ADAPTER_RANK = ADAPTER_PREFIX + "rank"
ADAPTER_ALPHA = ADAPTER_PREFIX + "alpha"
ADAPTER_TARGETS = ADAPTER_PREFIX + "targets"  # target modules, comma-separated

REF_NAME = "org.opencontainers.image.ref.name"  # in an archive's index: the model's name
