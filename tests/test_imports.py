"""Who may import whom, and what a command must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "modelctl"

# room -> rooms of ours that it may import, besides itself and `errors`. A file at the top is a room of its own.
ALLOWED: dict[str, set[str]] = {
    "parser": set(),
    "store": set(),
    "errors": set(),
    "mix": set(),
    "config": set(),
    "gguf_check": set(),
    "adapters": {"gguf_check"},
    "template": set(),
    "api": {"template"},
    "model": {"parser", "store", "mix", "gguf_check", "template"},
    "sources": {"parser"},
    "create": {"parser", "store", "gguf_check", "adapters", "model", "sources", "template"},
    "client": {"api", "config"},
    "runner": {"template", "mix", "gguf_check"},
    "llm": {"adapters", "config", "gguf_check", "mix", "model", "parser", "runner", "sources", "store", "template"},
    "daemon": {"create", "model", "template", "api", "store", "config", "mix", "runner", "gguf_check"},
    "cli": {"client", "create", "config", "api", "model", "store", "parser", "mix", "gguf_check"},
}
STANDARD_ONLY = ("parser", "store")
HEAVY = {"llama_cpp", "starlette", "uvicorn", "fastapi", "numpy", "jinja2", "gguf", "safetensors", "uvloop"}


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path
    for room in STANDARD_ONLY:  # rglob does not follow the links to them
        for path in sorted((ROOT / room).rglob("*.py")):
            yield room, path


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import anywhere in the file; `from x import y` counts as x.y."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_the_rooms_are_all_here() -> None:
    rooms = {room for room, _ in sources()}
    assert set(ALLOWED) <= rooms
    assert rooms - set(ALLOWED) <= {"__init__", "__main__", "py"}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    allowed = ALLOWED[room] | {room, "errors"}
    if room in STANDARD_ONLY:
        allowed = {room}
    wrong = []
    for path in (path for owner, path in sources() if owner == room):
        for name, line in imported(path):
            first, _, rest = name.partition(".")
            if first == "modelctl" and rest.split(".")[0] not in allowed | {"", "__version__"}:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not [one for one in wrong if not _is_serve(one)]


def _is_serve(found: str) -> bool:
    """`modelctl serve` is the one command that runs the daemon in its own process."""
    return found.startswith("modelctl/cli/serve.py:") and found.endswith("imports modelctl.daemon")


@pytest.mark.parametrize("room", STANDARD_ONLY)
def test_parser_and_store_use_the_standard_library_alone(room: str) -> None:
    foreign = {
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for owner, path in sources()
        if owner == room
        for name, line in imported(path)
        if name.split(".")[0] not in sys.stdlib_module_names
    }
    assert not foreign


def test_one_package_imports_llama_cpp() -> None:
    users = {
        path.parent.relative_to(PACKAGE).as_posix()
        for _, path in sources()
        for name, _ in imported(path)
        if "llama_cpp" in name
    }
    assert users == {"runner/llama"}


def test_the_rule_sees_what_it_forbids(tmp_path: Path) -> None:
    """A rule that finds nothing because it looks at nothing would pass for ever."""
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from modelctl import daemon\n    import modelctl.store.blobs\n")
    assert list(imported(file)) == [("modelctl.daemon", 2), ("modelctl.store.blobs", 3)]
    assert len(list(sources())) > 50


WATCH = """
import sys
from modelctl import cli
code = cli.invoke(sys.argv[1:])
print(*{name.split(".")[0] for name in sys.modules}, file=sys.stderr)
sys.exit(code)
"""


def loaded(*args: str) -> set[str]:
    """The top-level modules that a command has loaded by its end."""
    run = [sys.executable, "-c", WATCH, *args]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=300)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("args", [["--help"], ["list"], ["run", "--help"], ["lora", "--help"], ["help", "parameters"]])
def test_what_is_typed_all_day_loads_nothing_heavy(args: list[str]) -> None:
    found = loaded(*args)
    assert "modelctl" in found
    assert not found & HEAVY


def test_the_help_of_all_loads_no_command() -> None:
    assert not loaded("--help") & {"rich", "requests", "msgspec", "yaml", "platformdirs"}


def test_list_talks_to_no_daemon() -> None:
    assert "requests" not in loaded("list")
