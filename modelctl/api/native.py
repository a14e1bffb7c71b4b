"""Ollama's API and ours on top of it. Names, defaults and nullability follow Ollama; what it has not is marked `ours`.

Request fields accept null wherever a client may send one. Durations are nanoseconds, sizes bytes, times RFC 3339 text.
A stream is one JSON object a line; an error in the middle of a stream is the last line, an `Error`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec


class Request(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Unknown fields are ignored, as Ollama does."""


class Reply(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Fields without a default are always present, the others only when they say something."""


class Error(msgspec.Struct, omit_defaults=True):
    """`error` says what is wrong, `hint` (ours) what to do next."""

    error: str
    hint: str = ""


class Empty(msgspec.Struct):
    """`{}`"""


# generate and chat


class Message(msgspec.Struct, omit_defaults=True):
    role: str
    content: str | None = msgspec.field(default_factory=str)  # a factory, so that "" is sent too
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class LoraScale(msgspec.Struct, omit_defaults=True):
    """One adapter of a model, by index or by name. `scale` is checked later, so that the error can name the adapter."""

    scale: Any
    id: int | None = None
    name: str | None = None


Lora = dict[str, Any] | list[LoraScale]  # {"math": 0.7}, {"0": 0.7}, or [{"id": 0, "scale": 0.7}]


class PromptRequest(Request, kw_only=True):
    """What generate and chat have in common.

    `model` may carry a mix (`tutor+math=0.7`); `lora` is a mix too, and wins. Adapters left out of either are off.
    """

    model: str = ""
    stream: bool | None = None  # default true
    format: Any = None  # "json" or a JSON schema
    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None  # "5m", seconds, 0: unload after this, negative: for ever
    lora: Lora | None = None  # ours
    think: bool | str | None = None
    truncate: bool | None = None  # default true: drop the oldest messages that do not fit
    shift: bool | None = None  # default true: at the context's end, drop the oldest half and go on
    logprobs: bool | None = None
    top_logprobs: int | None = None  # 0 to 20
    debug_render_only: bool | None = msgspec.field(default=None, name="_debug_render_only")


class GenerateRequest(PromptRequest, kw_only=True):
    """An empty prompt loads the model; with `keep_alive` 0 it unloads it."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class ChatRequest(PromptRequest, kw_only=True):
    """No messages: as an empty prompt."""

    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class Logprob(TokenLogprob, omit_defaults=True):
    top_logprobs: list[TokenLogprob] = []


class DebugInfo(msgspec.Struct):
    rendered_template: str
    image_count: int = 0


class Answer(Reply, kw_only=True):
    """One object of an answer. Whatever follows `done` comes with the last one only."""

    model: str
    created_at: str
    done: bool
    done_reason: str = ""  # stop, length, load or unload
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    queue_duration: int = 0  # ours
    prompt_cached_count: int = 0  # ours: of prompt_eval_count, taken from the prefix cache
    lora: dict[str, float] | None = None  # ours: the mix it was made with, by adapter name


class GenerateReply(Answer, kw_only=True):
    response: str
    logprobs: list[Logprob] = []
    debug_info: DebugInfo | None = msgspec.field(default=None, name="_debug_info")


class ChatReply(Answer, kw_only=True):
    message: Message
    logprobs: list[Logprob] = []
    debug_info: DebugInfo | None = msgspec.field(default=None, name="_debug_info")


# embeddings


class EmbeddingRequest(Request, kw_only=True):
    """What both forms have in common. `model` and `lora` as in a PromptRequest."""

    model: str = ""
    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None
    lora: Lora | None = None  # ours


class EmbedRequest(EmbeddingRequest, kw_only=True):
    input: Any = None  # text, or a list of texts
    truncate: bool | None = None  # default true: cut inputs that do not fit the context
    dimensions: int | None = None  # keep only so many, and scale them to L2 norm 1 again


class EmbedReply(msgspec.Struct):
    model: str
    embeddings: list[list[float]]  # L2 norm 1
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0


class EmbeddingsRequest(EmbeddingRequest, kw_only=True):
    prompt: str | None = None


class EmbeddingsReply(msgspec.Struct):
    embedding: list[float]


# tokens, in llama-server's shape


class TokenizeRequest(Request, kw_only=True):
    content: str
    model: str = ""  # ours; may be left out while one model is loaded
    add_special: bool | None = None  # default false: no BOS
    parse_special: bool | None = None  # default true: control tokens in the text are such
    with_pieces: bool | None = None  # refused


class TokenizeReply(msgspec.Struct):
    tokens: list[int]


class DetokenizeRequest(Request, kw_only=True):
    tokens: Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]], msgspec.Meta(max_length=1 << 17)]
    model: str = ""


class DetokenizeReply(msgspec.Struct):
    content: str


# models


class NameRequest(Request, kw_only=True):
    """show and delete: `model`, or `name` from older clients."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


class CopyRequest(Request, kw_only=True):
    source: str = ""
    destination: str = ""


class VersionReply(msgspec.Struct):
    version: str


class Details(msgspec.Struct):
    parent_model: str = ""
    format: str = "gguf"
    family: str = ""
    families: list[str] = []
    parameter_size: str = ""
    quantization_level: str = ""


class TaggedModel(Reply, kw_only=True):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class TagsReply(msgspec.Struct):
    """Newest first."""

    models: list[TaggedModel]


class LoraAdapter(msgspec.Struct):
    """One adapter of a model. `scale` is the model's current one; `default_scale` the one of its ADAPTER line."""

    id: int
    name: str
    scale: float
    default_scale: float
    digest: str


class ShownAdapter(LoraAdapter, omit_defaults=True):
    """The same, with what its file says."""

    size: int = 0
    rank: int = 0
    alpha: float = 0.0
    target_modules: list[str] = []
    source: str = ""


class ShowReply(Reply, kw_only=True):
    modelfile: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    license: str = ""
    parameters: str = ""  # one "name value" a line
    template: str = ""
    system: str = ""
    messages: list[Message] = []
    adapters: list[ShownAdapter] = []  # ours


class RunningModel(Reply, kw_only=True):
    name: str
    model: str
    size: int  # base, adapters and KV cache; shared by all names on one runner
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int
    adapters: list[LoraAdapter] = []  # ours, as are the rest
    runner_pid: int = 0
    load_count: int = 0  # how often this base was loaded since the daemon started
    in_flight: int = 0
    device: str = ""  # "CPU", or the device's name
    batches: str = ""  # whether different mixes share batches now, and why


class PsReply(msgspec.Struct):
    """Longest expiry first."""

    models: list[RunningModel]


# adapters (ours)


class LoraChange(Request, kw_only=True):
    """POST /api/lora-adapters: listed adapters change, unlisted ones keep their scale; one bad entry changes nothing.

    `reset` starts from the defaults instead of the current scales. `model` may be left out while one model is loaded.
    `lora_update` "now": answers under way change too, at their next token, unless their request chose a mix.
    """

    adapters: list[LoraScale]
    model: str = ""
    reset: bool = False
    lora_update: str | None = None  # "next" (the default) or "now"


class LoraReply(msgspec.Struct):
    model: str
    adapters: list[LoraAdapter]


class LlamaAdapter(msgspec.Struct):
    """llama-server's form. Its `path` is the adapter's name here: clients have no business with our files."""

    id: int
    path: str
    scale: float


class Success(msgspec.Struct):
    success: bool
