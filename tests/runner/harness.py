"""An engine stepped by hand, on the test's own thread: what was asked, what came back, and the logits in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modelctl.runner import llama
from modelctl.runner.engine import Engine
from modelctl.runner.frames import (
    AdapterFile,
    Cancel,
    Delta,
    Done,
    Failed,
    FromRunner,
    Generate,
    Load,
    Prompt,
    Sampling,
    Step,
)
from modelctl.runner.lane import Lane
from modelctl.runner.prepare import Preparer
from modelctl.runner.sequence import Sequence
from modelctl.template.conversation import Conversation, Message

SYSTEM_DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
llama.start_backend(log_level=4)

Mix = dict[str, float]  # adapter name -> scale; the harness uses names as digests


class Harness:
    def __init__(self, base: Path, adapters: dict[str, Path], *, exact: bool = True, **load: Any) -> None:
        files = [AdapterFile(name, str(path)) for name, path in adapters.items()]
        load = {"n_ctx": 512, **load}
        self.engine = Engine(Load(path=str(base), adapters=files, **load), self._collect)
        self.preparer = Preparer(self.engine.base, self.engine.n_ctx)
        self.text: dict[int, str] = {}
        self.done: dict[int, Done] = {}
        self.failed: dict[int, Failed] = {}
        self.other: list[FromRunner] = []
        self.logits: dict[int, list[npt.NDArray[np.float32]]] = {}
        self._n = 0
        if exact:
            self.engine.exact = self.engine._exact_lane()
        for lane in self.engine.lanes:
            self._record(lane)

    def _record(self, lane: Lane) -> None:
        """Keep every row of logits that a token is sampled from."""
        sample = lane._sample

        def recording(wanted: list[tuple[Sequence, int]]) -> list[Delta]:
            if wanted:
                logits, places = lane._logits(wanted)
                for (sequence, _), i in zip(wanted, places, strict=True):
                    self.logits.setdefault(sequence.id, []).append(logits[i].copy())
            return sample(wanted)

        lane._sample = recording  # type: ignore[method-assign]

    def _collect(self, frame: FromRunner) -> None:
        match frame:
            case Step(deltas):
                for delta in deltas:
                    self.text[delta.id] = self.text.get(delta.id, "") + delta.text
                    if delta.done:
                        self.done[delta.id] = delta.done
            case Failed(id=ident):
                self.failed[ident] = frame
            case _:
                self.other.append(frame)

    def submit(
        self,
        question: str | list[Message],
        mix: Mix | None = None,
        *,
        n: int = 24,
        raw: str | None = None,
        **settings: Any,
    ) -> int:
        self._n += 1
        messages = [Message("user", question)] if isinstance(question, str) else question
        prompt = Prompt(raw=raw) if raw is not None else Prompt(conversation=Conversation(messages))
        scales = sorted((name, scale) for name, scale in (mix or {}).items() if scale)
        generate = {key: settings.pop(key) for key in ("n_ctx", "shift") if key in settings}
        sampling = Sampling(**{"temperature": 0.0, "num_predict": n, **settings})
        self.engine.inbox.put(self.preparer.sequence(Generate(self._n, prompt, scales, sampling, **generate)))
        return self._n

    def cancel(self, ident: int) -> None:
        self.engine.inbox.put(Cancel(ident))

    def step(self) -> bool:
        """One engine step; False when nothing is left to do."""
        self.engine._take_work(wait=False)
        self.engine.step()
        return self.engine.busy

    def finish(self) -> None:
        while self.step():
            pass

    def ask(self, question: str | list[Message], mix: Mix | None = None, **settings: Any) -> str:
        ident = self.submit(question, mix, **settings)
        self.finish()
        return self.text.get(ident, "")

    def first_logits(self, ident: int) -> npt.NDArray[np.float32]:
        return self.logits[ident][0]

    @property
    def last(self) -> int:
        return self._n

    def cold(self) -> None:
        """Forget every prefix."""
        for lane in self.engine.lanes:
            lane.cache.clear()

    def close(self) -> None:
        self.engine.close()
