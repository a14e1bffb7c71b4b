"""From a Generate frame to a Sequence: render, tokenise, check what fits. Runs beside the engine, not on its thread."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from modelctl import template
from modelctl.errors import BadRequest, LoadFailed
from modelctl.runner import grammar, sampling
from modelctl.runner.frames import Detokenize, Generate, Prompt, Render, Rendered, Tokenize
from modelctl.runner.llama import Base, Sampler
from modelctl.runner.sequence import Sequence
from modelctl.runner.text import TextStream

RENDER_SECONDS = 2.0
PREDICT_CONTEXTS = 10  # num_predict < 0 means "as long as it likes", bounded by this many contexts, as in Ollama


@dataclass
class Preparer:
    base: Base
    n_ctx: int  # the runner's; a request may ask for less

    def sequence(self, request: Generate) -> Sequence:
        """Raises `BadRequest` for a template, prompt, grammar or mix that cannot be run."""
        arrived = time.perf_counter_ns()
        missing = [digest for digest, _ in request.mix if digest not in self.base.attached]
        if missing:
            raise BadRequest(f"adapter {missing[0][:19]} is not attached")
        self._check_tokens(request.sampling.logit_bias)
        n_ctx = min(request.n_ctx or self.n_ctx, self.n_ctx)
        n_keep = request.sampling.num_keep
        tokens = self._fit(self.tokens(request.prompt, n_ctx), request, n_ctx)
        settings = request.sampling
        settings.grammar = grammar.of(settings)
        n_predict = settings.num_predict if settings.num_predict >= 0 else PREDICT_CONTEXTS * n_ctx
        return Sequence(
            id=request.id,
            scales=tuple((digest, scale) for digest, scale in request.mix),
            tokens=tokens,
            n_ctx=n_ctx,
            n_predict=max(1, n_predict),
            sampling=settings,
            sampler=self._sampler(request, tokens),
            text=TextStream(settings.stop),
            shift=request.shift,
            arrived=arrived,
            n_keep=n_keep + int(self.base.adds_bos),
        )

    def rendered(self, request: Render) -> Rendered:
        n_ctx = min(request.n_ctx or self.n_ctx, self.n_ctx)
        pieces = self._pieces(request.prompt, n_ctx)
        return Rendered(request.id, "".join(p.text for p in pieces), self._tokenize(pieces))

    def tokenized(self, request: Tokenize) -> Rendered:
        tokens = self.base.tokenize(request.text, special=request.special, bos=request.bos)
        return Rendered(request.id, request.text, tokens)

    def detokenized(self, request: Detokenize) -> Rendered:
        self._check_tokens(request.tokens)
        text = b"".join(self.base.piece(token, special=True) for token in request.tokens)
        return Rendered(request.id, text.decode(errors="replace"), request.tokens)

    def _check_tokens(self, tokens: Iterable[int]) -> None:
        """llama.cpp ends the process for one that it does not know."""
        unknown = next((token for token in tokens if not 0 <= token < self.base.n_vocab), None)
        if unknown is not None:
            raise BadRequest(f"there is no token {unknown}; this model's are 0 to {self.base.n_vocab - 1}")

    def tokens(self, prompt: Prompt, n_ctx: int) -> list[int]:
        return self._tokenize(self._pieces(prompt, n_ctx))

    def _pieces(self, prompt: Prompt, n_ctx: int) -> list[template.Piece]:
        if prompt.raw is not None:
            return [template.Piece(prompt.raw, True)]
        with template.time_limit(RENDER_SECONDS):
            loaded = template.load(
                prompt.template,
                gguf_template=self.base.chat_template,
                bos=self.base.text_of(self.base.bos),
                eos=self.base.text_of(self.base.eos),
            )
            if not prompt.truncate:
                return template.pieces(loaded, prompt.conversation, self.base.control)
            return template.fit(
                loaded, prompt.conversation, self.base.control, n_ctx - 1, lambda pieces: len(self._tokenize(pieces))
            )

    def _tokenize(self, pieces: list[template.Piece]) -> list[int]:
        """BOS once: where the model wants one and the template has not written it already."""
        bos = self.base.text_of(self.base.bos)
        tokens: list[int] = []
        for i, piece in enumerate(pieces):
            first = i == 0 and self.base.adds_bos and not (bos and piece.text.startswith(bos))
            tokens += self.base.tokenize(piece.text, special=piece.special, bos=first)
        return tokens

    def _fit(self, tokens: list[int], request: Generate, n_ctx: int) -> list[int]:
        """A prompt that is too long even without its oldest messages keeps its head and its tail, as in Ollama."""
        if not tokens:
            raise BadRequest("the prompt is empty", hint="send at least one word")
        if len(tokens) < n_ctx:
            return tokens
        if not request.prompt.truncate:
            raise BadRequest(
                f"the prompt has {len(tokens)} tokens, the context holds {n_ctx}",
                hint="shorten the prompt, raise num_ctx, or leave truncate on",
            )
        keep = min(request.sampling.num_keep + int(self.base.adds_bos), n_ctx // 2)
        return tokens[:keep] + tokens[len(tokens) - (n_ctx // 2 - keep) :] if n_ctx > 1 else tokens[-1:]

    def _sampler(self, request: Generate, tokens: list[int]) -> Sampler | None:
        if sampling.is_greedy(request.sampling):
            return None
        try:
            sampler = Sampler(self.base, sampling.chain(request.sampling), request.sampling.grammar)
        except LoadFailed as error:
            raise BadRequest(error.message, hint="llama.cpp's own words are in the log") from error
        last_n = request.sampling.repeat_last_n
        for token in tokens[-last_n:] if last_n > 0 else tokens if last_n < 0 else []:
            sampler.accept(token)
        return sampler
