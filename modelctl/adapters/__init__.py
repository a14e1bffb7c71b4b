"""LoRA adapters from outside: GGUF files checked against a base, PEFT folders converted first.

numpy, gguf and safetensors are imported when a file is at hand, never by importing this.
"""

from __future__ import annotations

from pathlib import Path

from modelctl.adapters.convert import Progress, convert
from modelctl.adapters.finite import check_finite
from modelctl.adapters.peft_config import CONFIG
from modelctl.gguf_check import AdapterInfo, Header, InvalidGGUF, check_adapter, read_header

__all__ = ["AdapterInfo", "Progress", "check_finite", "convert", "is_peft", "prepare"]


def is_peft(path: Path) -> bool:
    """A folder with an adapter_config.json in it."""
    return path.is_dir() and (path / CONFIG).is_file()


def prepare(path: Path, base: Header, workdir: Path, progress: Progress | None = None) -> tuple[Path, AdapterInfo, str]:
    """The GGUF file for an ADAPTER line, what it is, and what `path` was: "gguf" or "peft".

    A GGUF file is returned as it is; a PEFT folder is converted into `workdir`. Either is checked against `base`,
    weights included. Raises `BadRequest`.
    """
    if is_peft(path):
        file = workdir / f"{path.resolve().name}.gguf"
        convert(path, base, file, progress)
        try:
            return file, _check(file, base), "peft"
        except InvalidGGUF as error:  # what it names should be what was given
            file.unlink(missing_ok=True)
            raise InvalidGGUF(path, error.problem, hint=error.hint) from None
    if path.is_dir():
        hint = "expected a PEFT folder, with adapter_config.json and adapter_model.safetensors, or a GGUF file"
        raise InvalidGGUF(path, f"a folder without {CONFIG}", hint=hint)
    return path, _check(path, base), "gguf"


def _check(file: Path, base: Header) -> AdapterInfo:
    header = read_header(file)
    info = check_adapter(header, base)
    check_finite(header)
    return info
