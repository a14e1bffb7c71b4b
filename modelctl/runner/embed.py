"""Embeddings: texts in, one vector each, beside the generations and under any mix."""

from __future__ import annotations

from collections.abc import Iterator

from modelctl.errors import BadRequest, LoadFailed
from modelctl.runner.frames import Embed, Embedded
from modelctl.runner.llama import Base, Context

N_SEQ = 16  # inputs in one batch
N_BATCH = 512  # tokens in one batch, or one longer input: generations wait for no more than that


class Embedder:
    """Owns a context that pools instead of predicting; its memory is empty between requests."""

    def __init__(self, base: Base, n_tokens: int, n_threads: int) -> None:
        self.base = base
        self.n_tokens = n_tokens
        self.context = Context(
            base, n_cells=n_tokens, n_seq=N_SEQ, n_batch=n_tokens, n_threads=n_threads, embeddings=True
        )

    def embed(self, request: Embed) -> Iterator[Embedded | None]:
        """One batch at each `next`; the last brings the answer. Raises `BadRequest` at once: for an empty input, and
        for one too long if it may not be cut."""
        return self._embed(request, [self._tokens(text, request.truncate) for text in request.inputs])

    def _embed(self, request: Embed, inputs: list[list[int]]) -> Iterator[Embedded | None]:
        vectors: list[list[float]] = []
        for i, batch in enumerate(_batches(inputs)):
            if i:
                yield None
            self.context.set_mix(tuple(request.mix))
            vectors += self._run(batch)
            self.context.set_mix(())  # so that no adapter is held that may be freed
        yield Embedded(request.id, vectors, sum(map(len, inputs)))

    def _tokens(self, text: str, truncate: bool) -> list[int]:
        tokens = self.base.tokenize(text, special=False, bos=self.base.adds_bos)
        if not tokens:
            raise BadRequest("an input is empty", hint="send at least one word")
        if len(tokens) > self.n_tokens and not truncate:
            raise BadRequest(
                f"the input length exceeds the context length: {len(tokens)} tokens, at most {self.n_tokens}"
            )
        return tokens[: self.n_tokens]

    def _run(self, batch: list[list[int]]) -> list[list[float]]:
        tokens = [t for one in batch for t in one]
        positions = [p for one in batch for p in range(len(one))]
        seqs = [seq for seq, one in enumerate(batch) for _ in one]
        if not self.context.decode(tokens, positions, seqs, [1] * len(tokens)):
            raise LoadFailed("the embedding batch does not fit")
        vectors = [self.context.embedding(seq).tolist() for seq in range(len(batch))]
        self.context.clear()
        return vectors

    def close(self) -> None:
        self.context.close()


def _batches(inputs: list[list[int]]) -> list[list[list[int]]]:
    """In order, as many as fit."""
    batches: list[list[list[int]]] = [[]]
    for one in inputs:
        if batches[-1] and (len(batches[-1]) == N_SEQ or sum(map(len, batches[-1])) + len(one) > N_BATCH):
            batches.append([])
        batches[-1].append(one)
    return batches if inputs else []
