"""The store as a whole: gc, verify, du, pin, export, import. They need no daemon and work beside one."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from modelctl import config
from modelctl.cli import term
from modelctl.cli.adapters import short
from modelctl.cli.options import Json, open_store
from modelctl.errors import BadRequest, Conflict, ModelctlError, NotFound, UsageError

if TYPE_CHECKING:
    from modelctl.store import Store
    from modelctl.store.ollama import Imported
    from modelctl.store.usage import ModelUsage, Usage
    from modelctl.store.verify import Report

PIPE = "-"

Force = Annotated[bool, typer.Option("--force", "-f", help="replace what is there")]


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    grace: Annotated[
        str, typer.Option("--grace", metavar="TIME", help="spare what is younger: 30m, 0 for none")
    ] = "1h",
    force: Annotated[
        bool, typer.Option("--force", help="go on although some model is damaged, and give it up")
    ] = False,
) -> None:
    """Free the space that no model needs."""
    from modelctl.store.collect import collect

    found = collect(open_store(config.load()), grace=_grace(grace), dry_run=dry_run, force=force)
    verb = "would free" if dry_run else "freed"
    term.say(f"{verb} {term.size(found.n_bytes)} in {_count(len(found.blobs), 'blob')}")
    if found.n_young:
        term.note(
            f"{_count(found.n_young, 'blob')} younger than {grace} stay; to remove them too: modelctl gc --grace 0"
        )
    for path in found.foreign:
        term.note(f"{path} is none of the store's and stays; see: modelctl verify")


def verify(
    repair: Annotated[bool, typer.Option("--repair", help="move what is wrong to the quarantine folder")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="do not take up an interrupted run")] = False,
) -> None:
    """Read every byte in the store and say what is wrong. Nothing is ever deleted."""
    from modelctl.store.verify import verify

    with _bar("verifying") as progress:
        report = verify(open_store(config.load()), repair=repair, resume=not restart, progress=progress)
    resumed = f" ({report.n_resumed} of them by an earlier run)" if report.n_resumed else ""
    term.say(f"verified {_count(report.n_blobs, 'blob')}, {term.size(report.n_bytes)}{resumed}")
    if report.problems:
        raise _problems(report, repair)
    term.say("no problems")


def du(as_json: Json = False) -> None:
    """Show the bytes of each model: its own, those it shares, and what gc would free."""
    from modelctl.store.usage import usage

    found = usage(open_store(config.load()))
    if as_json:
        term.print_json(_usage_json(found))
        return
    if found.models:
        models = sorted(found.models, key=lambda model: -model.n_bytes)
        term.table(("NAME", "SIZE", "OWN", "SHARED"), [_usage_row(model) for model in models])
        term.say()
    term.say(f"{term.size(found.n_bytes)} in all")
    if found.n_garbage_blobs:
        blobs = _count(found.n_garbage_blobs, "blob")
        term.say(f"{term.size(found.n_garbage)} of it in {blobs} that no model needs; to free it: modelctl gc")
    if found.n_staged:
        term.say(f"{term.size(found.n_staged)} half-written, by a command that still runs or was killed")
    if found.n_quarantined:
        term.say(f"{term.size(found.n_quarantined)} in quarantine")
    for damage in found.damaged:
        term.note(f"not counted: {damage.name.short if damage.name else damage.path}: {damage.problem}")


def pin(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="a model; without one, the pins there are")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="let go of it: MODEL is the name@sha256:… of a pin")] = False,
) -> None:
    """Keep a model as it is now, as name@sha256:…, whatever becomes of the name."""
    store = open_store(config.load())
    if remove:
        _unpin(store, name)
    elif name:
        term.say(store.pin(name).name.short)
    else:
        for ref in store.pinned():
            term.say(ref.name.short)


def export(
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="a tar file to write; - writes to stdout")],
    force: Force = False,
) -> None:
    """Write a model to one file: an OCI image layout in a tar."""
    from modelctl.store import archive

    store = open_store(config.load())
    if file == PIPE:
        if sys.stdout.isatty():
            raise UsageError("a terminal is no place for a model", hint=f"modelctl export {name} - > model.tar")
        archive.export(store, name, sys.stdout.buffer)
        return
    with _new_file(Path(file), force) as out, _bar(f"writing {file}") as progress:
        archive.export(store, name, out, progress)
    term.note(f"wrote {name} to {file}")


def import_models(
    args: Annotated[list[str] | None, typer.Argument(metavar="FILE | [DIR] [MODEL]...")] = None,
    from_ollama: Annotated[
        bool,
        typer.Option(
            "--from-ollama", help="from Ollama's store, in its usual place or DIR: all models, or those named"
        ),
    ] = False,
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="what to call the model of FILE")] = "",
    force: Force = False,
) -> None:
    """Read a model from a file that `export` wrote (- reads stdin), or models from Ollama's store.

    Everything is checked on its way in. Ollama's store is left as it is; where the file system can, files are shared
    with it and take no space. Adapters get scale 1.0, which is what Ollama runs them at.
    """
    store = open_store(config.load())
    if from_ollama:
        if name:
            raise UsageError("--as names the model of a file; models of Ollama's keep their names")
        _import_from_ollama(store, args or [], force)
    elif not args or len(args) > 1:
        raise UsageError("import takes one file", hint="modelctl import model.tar, or modelctl import --from-ollama")
    else:
        _import_file(store, args[0], name or None, force)


def _grace(text: str) -> float:
    try:
        seconds = config.parse_duration(text)
    except BadRequest as error:
        raise UsageError(f"--grace: {error.message}", hint=error.hint) from None
    if seconds < 0:
        raise UsageError("--grace cannot be negative", hint="0 spares nothing")
    return seconds


def _problems(report: Report, repair: bool) -> ModelctlError:
    for problem in report.problems:
        term.note(f"{problem.path}: {problem.what}")
        if problem.models:
            term.note(f"  needed by {', '.join(map(short, problem.models))}: create or import them again")
        if problem.moved_to:
            term.note(f"  moved to {problem.moved_to}")
    hint = None if repair else "modelctl verify --repair moves what is wrong out of the way"
    return ModelctlError(_count(len(report.problems), "problem"), hint=hint)


def _usage_row(model: ModelUsage) -> tuple[str, ...]:
    return short(model.name.short), term.size(model.n_bytes), term.size(model.n_own), term.size(model.n_shared)


def _usage_json(found: Usage) -> dict[str, Any]:
    models = [
        {"name": model.name.short, "size": model.n_bytes, "own": model.n_own, "shared": model.n_shared}
        for model in found.models
    ]
    garbage = {"size": found.n_garbage, "blobs": found.n_garbage_blobs}
    rest = {"staged": found.n_staged, "quarantined": found.n_quarantined}
    return {"models": models, "size": found.n_bytes, "garbage": garbage, **rest}


def _unpin(store: Store, name: str) -> None:
    from modelctl.store import ModelName

    wanted = ModelName.parse(name)
    if wanted.digest is None:
        raise UsageError("which pin?", hint="modelctl pin shows them; name one with its @sha256:…")
    if wanted not in [ref.name for ref in store.pinned()]:
        raise NotFound(f"{name} is not pinned", hint="modelctl pin shows what is")
    store.remove(wanted)
    term.say(f"let go of {wanted.short}")


@contextlib.contextmanager
def _new_file(path: Path, force: bool) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete, or not at all."""
    if path.is_dir() or (path.exists() and not force):
        raise Conflict(f"{path} exists already", hint=None if path.is_dir() else "--force replaces it")
    half = path.with_name(f".{path.name[:80]}.{os.getpid()}.part")
    try:
        with half.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


def _import_file(store: Store, file: str, name: str | None, force: bool) -> None:
    from modelctl.store import archive

    with _input(file) as source:
        status = os.fstat(source.fileno())
        total = status.st_size if stat.S_ISREG(status.st_mode) else 0
        with _bar(f"reading {file}", total) as progress:
            refs = archive.import_(store, source, name=name, replace=force, progress=progress)
    for ref in refs:
        term.say(f"imported {short(ref.name.short)}  {ref.digest.short}")


@contextlib.contextmanager
def _input(file: str) -> Iterator[BinaryIO]:
    if file == PIPE:
        yield sys.stdin.buffer
        return
    if Path(file).is_dir():
        raise BadRequest(
            f"{file} is a folder", hint="expected a tar file; Ollama's store: modelctl import --from-ollama"
        )
    with Path(file).open("rb") as source:
        yield source


def _import_from_ollama(store: Store, args: list[str], force: bool) -> None:
    from modelctl.store import ollama

    folder = Path(args.pop(0)).expanduser() if args and _is_folder(args[0]) else ollama.default_folder()
    with _bar(f"importing from {folder}") as progress:
        found = list(ollama.import_models(store, folder, args, replace=force, describe=_describe, progress=progress))
    for one in found:
        _say_imported(one)
    n_failed = sum(one.error is not None for one in found)
    if n_failed:
        raise ModelctlError(f"{_count(n_failed, 'model')} could not be imported")


def _is_folder(text: str) -> bool:
    """Whether an argument means a folder rather than a model: it looks like a path, or has Ollama's folders in it."""
    return text.startswith(("/", ".", "~")) or (Path(text) / "manifests").is_dir()


def _say_imported(one: Imported) -> None:
    name = short(one.name.short)
    if one.error is not None:
        term.error(f"{name}: {one.error.message}", one.error.hint)
    elif one.ref is not None:
        from modelctl.store import media

        n = len(one.ref.manifest.of_type(media.ADAPTER))
        adapters = f", {_count(n, 'adapter')} at scale 1" if n else ""
        term.say(f"imported {name}  {one.ref.digest.short}, {term.size(one.n_new_bytes)} new{adapters}")


def _describe(adapter: Path, base: Path) -> Mapping[str, str]:
    """Rank, alpha and target modules of an adapter; nothing of one that does not fit, which `run` will refuse."""
    from modelctl import gguf_check
    from modelctl.store import media

    try:
        info = gguf_check.check_adapter(gguf_check.read_header(adapter), gguf_check.read_header(base))
    except BadRequest as error:
        term.note(f"warning: an adapter will not run: {error.message}")
        return {}
    said = {media.ADAPTER_RANK: str(info.rank), media.ADAPTER_TARGETS: ",".join(info.target_modules)}
    return said if info.alpha is None else {**said, media.ADAPTER_ALPHA: repr(info.alpha)}


@contextlib.contextmanager
def _bar(label: str, total: int = 0) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal. `total` where the work itself does not know it."""
    from modelctl.cli.progress import report_to

    with report_to(sys.stderr) as report:
        yield lambda done, of: report.progress(label, done, of or total)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
