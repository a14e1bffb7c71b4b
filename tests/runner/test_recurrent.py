"""A model whose memory cannot be cut: prefixes are used whole or not at all, and the answers stay right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from modelctl.runner.sequence import Sequence
from tests.runner.harness import Harness
from tests.runner.tiny_models import mamba


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    harness = Harness(mamba(tmp_path_factory.mktemp("mamba") / "mamba.gguf"), {}, exact=False)
    yield harness
    harness.close()


def ask(engine: Harness, raw: str, n: int = 8) -> int:
    ident = engine.submit("", raw=raw, n=n, ignore_eos=True)
    engine.finish()
    return ident


def test_answers_equal_a_cold_start_whatever_was_asked_before(engine: Harness) -> None:
    prompts = ["hello there", "hello", "hello there", "hello there, you", "other", "hello there"]
    warm = [engine.logits[ask(engine, prompt)] for prompt in prompts]
    for prompt, got in zip(prompts, warm, strict=True):
        engine.cold()
        expected = engine.logits[ask(engine, prompt)]
        assert np.allclose(got, expected, atol=1e-4), prompt


def test_a_continued_text_goes_on_from_its_memory(engine: Harness) -> None:
    engine.cold()
    ask(engine, "abcabc")
    kept = list(engine.engine.shared.cache._idle[-1].tokens)
    ident = engine.submit("", raw="placeholder", n=2, ignore_eos=True)
    sequence = engine.engine.inbox.get()
    assert isinstance(sequence, Sequence)
    sequence.tokens = [*kept, 70, 71]
    engine.engine.inbox.put(sequence)
    engine.finish()
    assert engine.done[ident].cached_tokens == len(kept)


def test_deterministic_is_refused_with_the_reason(engine: Harness) -> None:
    ident = engine.submit("", raw="hello", deterministic=True)
    engine.finish()
    assert "recurrent" in engine.failed[ident].message


def test_a_crowd_equals_each_alone(engine: Harness) -> None:
    prompts = [f"text number {i}" for i in range(6)]
    idents = [engine.submit("", raw=p, n=6, ignore_eos=True) for p in prompts]
    engine.finish()
    for ident, prompt in zip(idents, prompts, strict=True):
        engine.cold()
        alone = engine.logits[ask(engine, prompt, n=6)]
        assert np.allclose(engine.logits[ident], alone, atol=1e-4)
