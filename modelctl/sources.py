"""The files that a Modelfile names: found, and refused with the line at fault when they cannot be what is meant.

Only the kind of file is looked at here (and never opened: a FIFO or a device would hang); what is in it is checked by
`gguf_check` and `adapters`.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from pathlib import Path

from modelctl.parser import Modelfile, ModelfileError, Node

_PATH_START = re.compile(r"\.{0,2}/|~|\.\.?$")
_MODEL_FILE = (".gguf", ".ggml", ".safetensors", ".bin", ".pth", ".pt")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def looks_like_path(value: str, folder: Path) -> bool:
    """Whether FROM's value is a file's path rather than a model's name. A folder of a model's name does not count."""
    if _PATH_START.match(value) or value.lower().endswith(_MODEL_FILE):
        return True
    try:
        return (folder / value).is_file()
    except (OSError, ValueError):  # too long for a path, or a NUL in it
        return False


def locate(modelfile: Modelfile, node: Node, value: str, folder: Path, *, folder_ok: bool = False) -> Path:
    """The absolute path that `value` names from `folder`: a file with something in it, or where `folder_ok` a folder.

    `~` and `~user` are expanded. A symbolic link inside `folder` must not lead out of it: a Modelfile that came with a
    download should reach only what came along. Raises `ModelfileError` at `node`.
    """
    try:
        path = Path(os.path.abspath(folder / Path(value).expanduser()))  # noqa: PTH100 - `..` folds, links stay
    except RuntimeError:
        raise modelfile.error(
            node, f"no user has the home folder {value.split('/')[0]}", "write the whole path"
        ) from None
    try:
        mode, size = _status(path)
    except FileNotFoundError:
        raise modelfile.error(node, f"no such file: {path}", _missing_hint(value, path)) from None
    except OSError as error:
        raise modelfile.error(node, f"cannot read {value}: {error.strerror}") from None
    _check_kind(modelfile, node, path, mode, size, folder_ok)
    _check_inside(modelfile, node, path, folder)
    return path


def _status(path: Path) -> tuple[int, int]:
    status = path.stat()
    return stat.S_IFMT(status.st_mode), status.st_size


def _missing_hint(value: str, path: Path) -> str | None:
    if any(char in value for char in "*?["):
        return "wildcards are not expanded: name one file; each adapter has its own ADAPTER line"
    if path.is_symlink():
        return "it is a symbolic link whose target is missing"
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.8)  # noqa: PTH208
    except OSError:
        return f"the folder {path.parent} does not exist" if not path.parent.exists() else None
    if near:
        return f"did you mean {near[0]}?"
    return "relative paths start in the Modelfile's folder" if not Path(value).is_absolute() else None


def _check_kind(modelfile: Modelfile, node: Node, path: Path, mode: int, size: int, folder_ok: bool) -> None:
    if mode == stat.S_IFDIR and folder_ok:
        return
    if mode != stat.S_IFREG:
        hint = _folder_hint(path) if mode == stat.S_IFDIR else "expected a GGUF file"
        raise modelfile.error(node, f"{path} is {_KINDS.get(mode, 'a special file')}, not a file", hint)
    if size == 0:
        raise modelfile.error(node, f"{path} is empty", "was the download cut off?")


def _folder_hint(path: Path) -> str:
    found = sorted(entry.name for entry in path.iterdir() if entry.name.lower().endswith(_MODEL_FILE))
    ggufs = [name for name in found if name.lower().endswith(".gguf")]
    if ggufs:
        return f"name the file in it: {path.name}/{ggufs[0]}"
    if "adapter_model.safetensors" in found:
        return "it is a LoRA adapter; name it in an ADAPTER line, and the base in FROM"
    if found:
        return "FROM takes GGUF; llama.cpp's convert_hf_to_gguf.py makes it from safetensors"
    return "name a GGUF file"


def _check_inside(modelfile: Modelfile, node: Node, path: Path, folder: Path) -> None:
    target = path.resolve()
    if path.is_relative_to(folder) and not target.is_relative_to(folder.resolve()):
        raise _escape(modelfile, node, path, target)


def _escape(modelfile: Modelfile, node: Node, path: Path, target: Path) -> ModelfileError:
    return modelfile.error(
        node,
        f"{path} is a symbolic link that leads out of the Modelfile's folder",
        f"if that is meant, name its target: {target}",
    )
