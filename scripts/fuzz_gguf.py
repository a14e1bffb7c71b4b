"""Feed mutated GGUF files and PEFT folders to the checks: they may answer, or raise `BadRequest`; nothing else.

    nice -n 19 python scripts/fuzz_gguf.py --seconds 60 [--seed 1] [--native] [--keep FOLDER]

Mutants are made of the tiny base, the tiny adapter and the tiny PEFT folder of the tests: by structure (keys, counts,
types, shapes, offsets) and by byte. --native also loads and decodes what the checks accept with llama.cpp, in a child
process, and reports files that kill it or make NaN: each is a rule that is missing. A seed gives the same mutants
always. Exit code 1 if anything but a `BadRequest` came out, or an accepted adapter killed the child.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS / "gguf_check"), str(TESTS / "adapters")]

from gguf_files import CODES, TYPES, File, Key, Tensor, pair, tiny_adapter, tiny_base  # noqa: E402
from native import results  # noqa: E402
from peft_folders import peft  # noqa: E402

from modelctl.adapters import prepare  # noqa: E402
from modelctl.errors import BadRequest  # noqa: E402
from modelctl.gguf_check import Header, check_base, read_header  # noqa: E402

NUMBERS = [0, 1, 2, 3, 4, 7, 31, 32, 33, 63, 64, 65, 255, 256, 512, 513, 1024, 65535, 65536, 1 << 20, (1 << 31) - 1]
NUMBERS += [1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
REALS = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, float("nan"), float("inf"), -float("inf"), 0.5, 8.0]
TEXTS = ["", "llama", "lora", "adapter", "model", "qwen2", "\0", "a" * 300, "ü", "none", "gpt2", "blk.0.attn_q.weight"]
MEMORY = 4 << 30  # bytes of address space; a check that allocates what a file claims hits this
BATCH = 40


def number(rng: random.Random, kind: str) -> int:
    bits = 8 * struct.calcsize(CODES[kind])
    value = rng.choice(NUMBERS) % (1 << bits)
    return value - (1 << bits) if CODES[kind].islower() and value >= 1 << (bits - 1) else value


def scalar(rng: random.Random, kind: str) -> object:
    if kind == "str":
        return rng.choice(TEXTS)
    if kind in ("f32", "f64"):
        return rng.choice(REALS)
    return rng.randrange(3) if kind == "bool" else number(rng, kind)


def new_value(rng: random.Random, key: Key) -> Key:
    kind = rng.choice([*CODES, "str", "arr", *[key.kind] * 8])
    if kind != "arr":
        return replace(key, kind=kind, value=scalar(rng, kind), length=None)
    if key.kind == "arr" and rng.random() < 0.5:
        return replace(key, value=key.value[: rng.randrange(len(key.value) + 1)], length=rng.choice([None, *NUMBERS]))
    element = rng.choice([*CODES, "str"])
    values = [scalar(rng, element) for _ in range(rng.choice([0, 1, 2, 3, 512, 513]))]
    return replace(key, kind="arr", element=element, value=values, length=None)


def mutate_key(rng: random.Random, file: File) -> File:
    at = rng.randrange(len(file.keys))
    key = file.keys[at]
    choice = rng.random()
    if choice < 0.7:
        changed = [new_value(rng, key)]
    elif choice < 0.8:
        changed = []
    elif choice < 0.9:
        changed = [
            key,
            replace(key, name=rng.choice([str(key.name), "", "general.alignment", "split.count", "x" * 99])),
        ]
    else:
        changed = [replace(key, name=rng.choice([b"\xff\xfe", "general.type", "adapter.lora.alpha"]))]
    return replace(file, keys=[*file.keys[:at], *changed, *file.keys[at + 1 :]])


def mutate_tensor(rng: random.Random, file: File) -> File:
    at = rng.randrange(len(file.tensors))
    tensor = file.tensors[at]
    small = [1, 2, 3, 4, 8, 32, 64, 96, 128, 256, 320]
    changes: list[Callable[[], Tensor]] = [
        lambda: replace(tensor, shape=tuple(rng.choice(small) for _ in range(rng.randrange(5)))),
        lambda: replace(tensor, shape=tuple(reversed(tensor.shape))),
        lambda: replace(tensor, shape=(*tensor.shape[:-1], rng.choice(NUMBERS))),
        lambda: replace(tensor, shape=(*tensor.shape, rng.choice([1, 2]))),
        lambda: replace(tensor, type=rng.choice(list(TYPES))),
        lambda: replace(tensor, type=rng.choice([4, 5, 31, 36, 43, 99, (1 << 32) - 1])),
        lambda: replace(tensor, offset=rng.choice(NUMBERS)),
        lambda: replace(tensor, name=rng.choice([str(file.tensors[0].name), f"{tensor.name}x", "", "n" * 64, b"\xff"])),
        lambda: replace(tensor, name=str(tensor.name).replace(".0.", f".{rng.choice([1, 2, 99, -1])}.")),
        lambda: replace(tensor, data=struct.pack("<f", rng.choice(REALS)) * (len(tensor.bytes()) // 4)),
    ]
    fits = [*file.tensors[:at], rng.choice(changes)(), *file.tensors[at + 1 :]]
    return replace(file, tensors=fits[:at] + fits[at + 1 :] if rng.random() < 0.1 else fits)


def mutate_targets(rng: random.Random, file: File) -> File:
    """More pairs, of right and wrong shapes, on any tensor of the base, so that some mutants are good."""
    weight = rng.choice(tiny_base().tensors)
    n_in, n_out = (*weight.shape, 1)[:2]
    rank = rng.choice([1, 2, 4, 32, 256])
    added = pair(str(weight.name), n_in, n_out, rank, (rng.choice(list(TYPES)), rng.choice(["F32", "F16"])))
    return file.add(*added)


def mutate_counts(rng: random.Random, file: File) -> File:
    changes = [
        ("version", [0, 1, 2, 4, 3 << 24]),
        ("n_keys", NUMBERS),
        ("n_tensors", NUMBERS),
        ("alignment", [1, 8, 64]),
    ]
    name, values = rng.choice(changes)
    return replace(file, **{name: rng.choice(values)})


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    mutant = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(min(len(mutant), rng.choice([64, 4096, len(mutant)]))) if mutant else 0
        match rng.randrange(5):
            case 0:
                mutant[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                mutant[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
            case 2:
                mutant[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
            case 3:
                del mutant[at : at + rng.choice([1, 8, 1000])]
            case _:
                mutant[at:at] = mutant[: rng.choice([1, 8, 100])]
    return bytes(mutant[: rng.randrange(len(mutant) + 1)] if rng.random() < 0.1 else mutant)


def mutant(rng: random.Random, file: File, mutators: list[Callable[[random.Random, File], File]]) -> bytes:
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        file = rng.choice(mutators)(rng, file)
    data = file.build()
    return mutate_bytes(rng, data) if rng.random() < 0.3 else data


def make_base(rng: random.Random, path: Path) -> Path:
    path.write_bytes(
        mutant(rng, tiny_base(tied=rng.random() < 0.3), [mutate_key, mutate_key, mutate_tensor, mutate_counts])
    )
    return path


def make_adapter(rng: random.Random, path: Path) -> Path:
    file = tiny_adapter(*rng.sample(["attn_q", "attn_v", "ffn_down", "ffn_up"], 2))
    path.write_bytes(mutant(rng, file, [mutate_key, mutate_tensor, mutate_tensor, mutate_targets, mutate_counts]))
    return path


def make_peft(rng: random.Random, path: Path) -> Path:
    values = [None, True, [], {}, "", "x", -1, 0, 1, 4, 7, 1 << 70, 0.5, REALS[7], ["q_proj"], {"q_proj": 3}, {".*": 4}]
    folder = peft(dtype=rng.choice(["F32", "F16", "BF16"]))
    for _ in range(rng.choice([0, 1, 2])):
        key = rng.choice(
            [*folder.config, "use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"]
        )
        folder = folder.configured(**{key: rng.choice(values)})
    if rng.random() < 0.4:
        old = rng.choice(list(folder.tensors))
        kept = folder.tensors[old]
        new = rng.choice(
            [old.replace("lora_A", "lora_B"), old.replace(".0.", ".9."), old[:-7], "x", old.replace("q", "k")]
        )
        folder = folder.without(old).add(new, kept)
    folder.write(path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if rng.random() < 0.3:
            (path / name).write_bytes(mutate_bytes(rng, (path / name).read_bytes()))
    return path


class Run:
    """One target's mutants: counts, the slowest check, what came out that should not have."""

    def __init__(self, name: str, keep: Path | None) -> None:
        self.name = name
        self.keep = keep
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0
        self.bad = 0

    def check(self, case: str, path: Path, accept: Callable[[Path], object]) -> bool:
        started = time.perf_counter()
        try:
            accept(path)
            outcome = "accepted"
        except BadRequest as error:
            outcome = "refused"
            json.dumps(error.message).encode()
        except Exception:
            outcome = "UNTYPED ERROR"
            self.report(case, path, traceback.format_exc())
        self.slowest = max(self.slowest, time.perf_counter() - started)
        self.counts[outcome] += 1
        return outcome == "accepted"

    def report(self, case: str, path: Path, what: str) -> None:
        self.bad += 1
        print(f"{self.name} {case}: {what}", flush=True)
        if self.keep:
            path.rename(self.keep / f"{self.name}-{case}{path.suffix}")

    def summary(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items()))
        return f"{self.name}: {sum(self.counts.values())} mutants: {counts}; slowest check {self.slowest * 1000:.0f} ms"


def try_natively(run: Run, base: Path, accepted: list[Path]) -> None:
    """All in one child until one kills it; the rest in the next."""
    left = list(accepted)
    while left:
        found = results(base, *left)
        for path in [path for path in left if path.name in found]:
            run.counts[f"natively {found[path.name]}"] += 1
            if found[path.name] in ("died", "nan"):
                run.report(path.stem, path, f"accepted, but natively: {found[path.name]}")
            left.remove(path)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=30, help="for each of base, adapter and PEFT folder")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--native", action="store_true")
    arguments.add_argument("--keep", type=Path, help="where to move files that came through wrongly")
    options = arguments.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        runs = [fuzz(kind, options, Path(scratch)) for kind in ("base", "adapter", "peft")]
    print("\n".join(run.summary() for run in runs))
    return 1 if any(run.bad for run in runs) else 0


def fuzz(kind: str, options: argparse.Namespace, folder: Path) -> Run:
    run = Run(kind, options.keep)
    base_path = tiny_base().write(folder / "good.gguf")
    base = read_header(base_path)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    deadline = time.monotonic() + options.seconds
    waiting: list[Path] = []
    case = 0
    while time.monotonic() < deadline:
        name = f"{options.seed}-{case}"
        rng = random.Random(f"{kind} {name}")
        path, accept = one(kind, rng, folder / f"{kind}-{name}", base, work)
        if run.check(name, path, accept) and options.native and kind != "peft":
            waiting.append(path)
        elif path.is_file():
            path.unlink()
        case += 1
        if len(waiting) >= BATCH or (waiting and kind == "base"):
            natively(run, kind, base_path, waiting)
            waiting = []
    natively(run, kind, base_path, waiting)
    return run


def one(kind: str, rng: random.Random, path: Path, base: Header, work: Path) -> tuple[Path, Callable[[Path], object]]:
    if kind == "base":
        return make_base(rng, path.with_suffix(".gguf")), lambda file: check_base(read_header(file))
    if kind == "adapter":
        return make_adapter(rng, path.with_suffix(".gguf")), lambda file: prepare(file, base, work)
    return make_peft(rng, work.parent / "peft"), lambda folder: prepare(folder, base, work)


def natively(run: Run, kind: str, base: Path, waiting: list[Path]) -> None:
    if kind == "base":
        for path in waiting:
            found = results(path)[path.name]
            run.counts[f"natively {found}"] += 1
            if found == "died":
                run.report(path.stem, path, "accepted, but natively: died")
    else:
        try_natively(run, base, waiting)
    for path in waiting:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
