"""LoRA adapters from outside: GGUF files checked against a base, PEFT folders converted first.

numpy, gguf and safetensors are imported when a file is at hand, never by importing this.
"""

from __future__ import annotations

from pathlib import Path

from modelctl.adapters.convert import Progress, convert
from modelctl.adapters.finite import check_finite
from modelctl.adapters.peft_config import CONFIG
from modelctl.errors import BadRequest
from modelctl.gguf_check import AdapterInfo, Header, check_adapter, read_header

__all__ = ["AdapterInfo", "Progress", "check_finite", "convert", "is_peft", "prepare"]


def is_peft(path: Path) -> bool:
    """A folder with an adapter_config.json in it."""
    return path.is_dir() and (path / CONFIG).is_file()


def prepare(path: Path, base: Header, workdir: Path, progress: Progress | None = None) -> tuple[Path, AdapterInfo, str]:
    """The GGUF file for an ADAPTER line, what it is, and what `path` was: "gguf" or "peft".

    A GGUF file is returned as it is; a PEFT folder is converted into `workdir`. Either is checked against `base`,
    weights included. Raises `BadRequest`.
    """
    kind = "peft" if is_peft(path) else "gguf"
    if kind == "peft":
        file = workdir / f"{path.resolve().name}.gguf"
        convert(path, base, file, progress)
    else:
        file = path
    if file.is_dir():
        raise BadRequest(f"{path}: a folder without {CONFIG}", hint="expected a PEFT folder, or a GGUF file")
    header = read_header(file)
    info = check_adapter(header, base)
    check_finite(header)
    return file, info, kind
