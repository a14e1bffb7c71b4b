"""LLM: the engine, in this process, on a thread of its own as in the runner.

A call checks all its requests first, then gives the engine all of them at once, and puts together what the engine's
frames say.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from modelctl import config
from modelctl.errors import BadRequest, ModelctlError, NotFound
from modelctl.llm import inputs
from modelctl.llm import model as models
from modelctl.llm.outputs import Answer, Request, RequestOutput
from modelctl.llm.params import SamplingParams, check, check_whole
from modelctl.mix import split_model
from modelctl.runner import llama
from modelctl.runner.engine import Engine
from modelctl.runner.frames import AdapterFile, Failed, Generate, Load, Prompt, Render, Step
from modelctl.runner.prepare import Preparer
from modelctl.store import Store
from modelctl.template.conversation import Conversation, Message

Mix = Mapping[str, float] | str
Chat = Sequence[Mapping[str, Any]]
_LOAD = {"num_ctx": "n_ctx", "num_gpu": "n_gpu_layers", "num_thread": "n_threads"}  # a PARAMETER and its argument here
_ERRORS_ONLY = 4  # llama.cpp's log level


class LLM:
    """A base in memory, with its adapters. One call runs at a time; calls from other threads wait.

    `model` is a model of the store ("tutor", or "tutor+math=0.7" for that default mix), or a base's GGUF file.
    `adapters` adds LoRA adapters by name, GGUF files or PEFT folders, at scale 0. `n_ctx`, in tokens, bounds a prompt
    and its answer together; `n_parallel` answers are generated at once. What is left out is as the Modelfile and
    modelctl's settings say. Raises `NotFound`, `BadRequest`, `LoadFailed`.
    """

    def __init__(
        self,
        model: str | Path,
        adapters: Mapping[str, str | Path] | None = None,
        *,
        n_ctx: int | None = None,
        n_parallel: int | None = None,
        n_gpu_layers: int | None = None,
        n_threads: int | None = None,
    ) -> None:
        settings = config.load()
        check_whole("n_parallel", n_parallel, 1)
        given = {"num_ctx": n_ctx, "num_gpu": n_gpu_layers, "num_thread": n_threads}
        asked = {name: check(_LOAD[name], name, value) for name, value in given.items() if value is not None}
        with TemporaryDirectory(prefix="modelctl-") as folder:
            found, mix = models.find(str(model), Store(settings.store_root))
            self._model = models.with_adapters(found, adapters or {}, Path(folder))
            self._default = self._model.default_scales() if mix is None else self._model.scales(mix, {})
            known = {_LOAD[name]: value for name, value in (self._model.parameters | asked).items() if name in _LOAD}
            load = Load(
                str(self._model.base_path),
                n_parallel=n_parallel or settings.num_parallel,
                mixed=settings.mixed_batches,
                mixed_rank=settings.mixed_rank,
                adapters=[AdapterFile(ref.digest, str(ref.path)) for ref in self._model.adapters],
                **{"n_ctx": settings.n_ctx, **known},
            )
            self._start(load)

    def _start(self, load: Load) -> None:
        llama.start_backend(_ERRORS_ONLY)
        self._said: SimpleQueue[object] = SimpleQueue()
        self._engine = Engine(load, self._said.put)
        self._preparer = Preparer(self._engine.base, self._engine.n_ctx)
        self._ids, self._lock = count(1), threading.Lock()
        thread = threading.Thread(target=_serve, args=(self._engine, self._said), name="modelctl-engine", daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _end, self._engine, thread)  # when collected, or when Python ends

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._preparer.n_ctx

    @property
    def adapters(self) -> dict[str, float]:
        """Every adapter's name, and its scale in the default mix."""
        return dict(self._default)

    def get_default_sampling_params(self) -> SamplingParams:
        """What holds without `params`: vLLM's defaults under the Modelfile's PARAMETER lines."""
        return SamplingParams.of(self._model.parameters)

    def generate(
        self,
        prompts: str | Sequence[str],
        params: SamplingParams | Sequence[SamplingParams | None] | None = None,
        mix: Mix | Sequence[Mix | None] | None = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Continue raw prompts, without a template; the outputs are in their order.

        `params` and `mix` hold for all, or are lists with one a prompt. A mix is {"math": 0.7}, "math=0.7+science" or
        "none", adapters left out being at 0; None is the default mix. `progress`: a bar, if stderr is a terminal.
        What can be known to be wrong raises before anything runs. An answer that fails on the way has the
        `finish_reason` "error"; if no answer is any better, its error is raised.
        """
        return self._answer("prompts", inputs.texts(prompts), inputs.raw, params, mix, progress)

    def chat(
        self,
        messages: Chat | Sequence[Chat],
        params: SamplingParams | Sequence[SamplingParams | None] | None = None,
        mix: Mix | Sequence[Mix | None] | None = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation or a list of them, through the model's template; otherwise like `generate`.

        A conversation is a list of {"role": ..., "content": ...}. The Modelfile's SYSTEM (unless the conversation
        begins with its own) and MESSAGE lines come before it.
        """
        return self._answer("messages", inputs.chats(messages), self._conversation, params, mix, progress)

    def close(self) -> None:
        """Free the memory. Closed already: nothing happens."""
        with self._lock:
            self._end()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _conversation(self, chat: Any) -> Prompt:
        given = inputs.messages(chat)
        system = [Message("system", self._model.system)] if self._model.system and given[0].role != "system" else []
        conversation = Conversation([*system, *self._model.messages, *given])
        return Prompt(conversation=conversation, template=self._model.template, truncate=False)

    def _answer(
        self, what: str, asked: list[Any], read: Callable[[Any], Prompt], params: Any, mix: Any, progress: bool
    ) -> list[RequestOutput]:
        all_params = inputs.one_each("params", params, SamplingParams, what, len(asked))
        mixes = inputs.one_each("mix", mix, (str, Mapping), what, len(asked))
        requests: list[Request] = []
        with self._lock:
            if not self._end.alive:
                raise ModelctlError("this LLM is closed", hint="make a new one")
            try:
                for i, each in enumerate(asked):
                    with inputs.blaming(f"{what}[{i}]: " if len(asked) > 1 else ""):
                        requests.append(self._request(read(each), all_params[i], mixes[i]))
            except BaseException:
                _discard(requests)
                raise
            self._run([answer for request in requests for answer in request.answers], progress)
        return [request.output() for request in requests]

    def _request(self, prompt: Prompt, params: SamplingParams | None, mix: Mix | None) -> Request:
        scales = self._default if mix is None else self._scales(mix)
        rendered = self._preparer.rendered(Render(0, prompt))
        if len(rendered.tokens) >= self.n_ctx:
            raise BadRequest(
                f"the prompt has {len(rendered.tokens)} tokens, the context holds {self.n_ctx}",
                hint="shorten the prompt, or make the LLM with a larger n_ctx",
            )
        generates = self._generates(prompt, params or self.get_default_sampling_params(), scales)
        return Request(rendered.text, scales, [Answer(self._preparer.sequence(frame)) for frame in generates])

    def _generates(self, prompt: Prompt, params: SamplingParams, scales: Mapping[str, float]) -> Iterator[Generate]:
        """One for each of the n answers."""
        mix = list(self._model.mix(scales).scales)
        stops = self._model.parameters.get("stop", [])
        for i in range(params.n):
            sampling = params.sampling(i, stop=stops, repeat_last_n=self.n_ctx)
            for token in sampling.logit_bias:
                if not 0 <= token < self._engine.base.n_vocab:
                    raise BadRequest(
                        f"logit_bias: there is no token {token}; they go to {self._engine.base.n_vocab - 1}"
                    )
            yield Generate(next(self._ids), prompt, mix, sampling, shift=False)

    def _scales(self, mix: Mix) -> dict[str, float]:
        given = (split_model(f"+{mix}")[1] or {}) if isinstance(mix, str) else mix
        try:
            return self._model.scales(given, {})
        except NotFound as error:
            if not self._default:
                error.hint = 'it has none; give it some: adapters={"math": "math.gguf"}'
            raise

    def _run(self, answers: list[Answer], progress: bool) -> None:
        """Ends when all have. Interrupted, it cancels them; what the engine still says of them is passed over."""
        waiting = {answer.sequence.id: answer for answer in answers}
        try:
            with _bar(len(answers), progress) as advance:
                for answer in answers:
                    self._engine.inbox.put(answer.sequence)
                while waiting:
                    self._take(waiting, self._said.get())
                    advance(len(answers) - len(waiting))
        except BaseException:
            for answer in answers:
                answer.sequence.cancelled = True
            raise
        failed = [answer.failed for answer in answers if answer.failed]
        if failed and len(failed) == len(answers):
            raise ModelctlError(failed[0].message, hint=failed[0].hint or None)

    def _take(self, waiting: dict[int, Answer], frame: object) -> None:
        """Book what the engine said; who has ended waits no more."""
        match frame:
            case Step(deltas):
                for delta in deltas:
                    if delta.id in waiting:
                        waiting[delta.id].add(delta)
                        if delta.done:
                            del waiting[delta.id]
            case Failed(id=id) if id in waiting:
                waiting.pop(id).failed = frame
            case BaseException():
                self._end()
                raise ModelctlError(f"the engine stopped: {frame!r}", hint="make a new LLM") from frame


def _serve(engine: Engine, out: SimpleQueue[object]) -> None:
    """The engine's thread."""
    try:
        engine.run()
    except BaseException as error:
        out.put(error)


def _end(engine: Engine, thread: threading.Thread) -> None:
    engine.inbox.put(None)
    thread.join()
    engine.close()


def _discard(requests: list[Request]) -> None:
    """Free what the engine has not been given."""
    for sampler in (answer.sequence.sampler for request in requests for answer in request.answers):
        if sampler:
            sampler.close()


@contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A function that is told how many are done."""
    console = Console(stderr=True)
    if not (wanted and total and console.is_terminal):
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("generating", total=total)
        yield lambda done: bar.update(task, completed=done)
