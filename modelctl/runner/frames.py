"""The frames daemon and runner exchange over a socketpair: a 4-byte little-endian length, then a msgpack struct.

Many requests share the pair, told apart by `id`, chosen by the daemon. All times are nanoseconds. Each request ends
with exactly one Done (in a Step) or one Failed; nothing with its id follows.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgspec

from modelctl.template.conversation import Conversation

MAX_FRAME = 1 << 28  # bytes; a corrupt length must not make us allocate the machine away


class AdapterFile(msgspec.Struct, array_like=True, frozen=True):
    digest: str
    path: str


class Prompt(msgspec.Struct, omit_defaults=True):
    """Either `raw` text, tokenised as it stands, or a `conversation` for a template."""

    raw: str | None = None
    conversation: Conversation = msgspec.field(default_factory=Conversation)
    template: str | None = None  # Go template; None: the GGUF's own Jinja template
    truncate: bool = True  # drop the oldest messages of a conversation that does not fit n_ctx; False: fail


class Sampling(msgspec.Struct, omit_defaults=True):
    """Sampler settings, Ollama's names and defaults. num_predict < 0: until the end of the context."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    seed: int = -1
    num_predict: int = -1
    num_keep: int = 4
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: list[str] = []
    logit_bias: dict[int, float] = {}
    logprobs: int = -1  # -1: none; 0: of the sampled token; n: of the n most likely too
    grammar: str = ""  # GBNF
    json_schema: str = ""  # JSON text of a schema; "{}" is any JSON value
    deterministic: bool = False  # the same bits alone or in any crowd, at the price of speed


# daemon -> runner


class Load(msgspec.Struct, tag="load", omit_defaults=True):
    """The first frame: what to load, once. Answered by Ready or by Failed(id=0) and exit."""

    path: str
    n_ctx: int = 4096  # the longest one sequence may grow
    n_cells: int = 0  # KV cells that all sequences share; 0: each has its own, if there is memory for that
    n_parallel: int = 8  # sequences that may generate at once
    n_batch: int = 512
    n_gpu_layers: int = -1
    main_gpu: int = 0
    use_mmap: bool = True
    n_threads: int = 0  # 0: adapt to the machine
    mixed: str = "auto"  # different mixes in one batch: "auto", "always" or "never"
    mixed_rank: int = 256  # the adapters joined for that have at most this rank in sum
    adapters: list[AdapterFile] = []


class Attach(msgspec.Struct, tag="attach"):
    """Load adapters, at scale 0; those attached already are skipped. Answered by Attached or Failed."""

    id: int
    adapters: list[AdapterFile]


class Generate(msgspec.Struct, tag="generate", omit_defaults=True):
    id: int
    prompt: Prompt
    mix: list[tuple[str, float]] = []  # (adapter digest, scale); every digest must be attached
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    n_ctx: int = 0  # this model's own limit, when below the runner's
    shift: bool = True  # at the context's end drop the oldest half and go on; False: end with "length"


class Render(msgspec.Struct, tag="render"):
    """Answered by Rendered: the exact prompt, without running it."""

    id: int
    prompt: Prompt
    n_ctx: int = 0


class Tokenize(msgspec.Struct, tag="tokenize"):
    """Answered by Rendered: the tokens of a bare text."""

    id: int
    text: str
    special: bool  # control tokens in the text are such, not what they look like
    bos: bool  # begin as the model wants texts to begin


class Detokenize(msgspec.Struct, tag="detokenize"):
    """Answered by Rendered: the text of tokens, control tokens included, or Failed."""

    id: int
    tokens: list[int]


class Cancel(msgspec.Struct, tag="cancel"):
    """Answered, like every end, by the Done of that id, with reason "cancel"; unknown ids are ignored."""

    id: int


class Remix(msgspec.Struct, tag="remix"):
    """Go on with the generations `ids` under another mix, from their next token; ids that have ended are ignored.
    Unanswered."""

    id: int
    ids: list[int]
    mix: list[tuple[str, float]]


class Embed(msgspec.Struct, tag="embed", omit_defaults=True):
    """Answered by Embedded or Failed."""

    id: int
    inputs: list[str]
    mix: list[tuple[str, float]] = []
    truncate: bool = True  # cut inputs that do not fit the context; False: fail


class Stats(msgspec.Struct, tag="stats"):
    id: int


Request = Attach | Generate | Render | Tokenize | Detokenize | Cancel | Remix | Embed | Stats
ToRunner = Load | Request

# runner -> daemon


class Ready(msgspec.Struct, tag="ready"):
    load_ns: int
    n_ctx: int
    n_ctx_train: int
    n_params: int
    model_bytes: int
    kv_bytes: int  # of the KV cache
    gpu_offload: bool  # the installed llama.cpp can offload
    gpu_layers: int
    device: str  # "CPU", or the device's name


class Attached(msgspec.Struct, tag="attached"):
    id: int
    load_ns: int


class Logprob(msgspec.Struct, array_like=True):
    token: str
    logprob: float
    bytes: list[int]
    top: list[Logprob] = []


class Done(msgspec.Struct, array_like=True):
    reason: str  # "stop", "length" or "cancel"
    prompt_tokens: int
    cached_tokens: int  # of them, taken from the prefix cache
    queue_ns: int  # from arrival to the first prompt token decoded
    prompt_ns: int
    eval_tokens: int
    eval_ns: int
    stop: str = ""  # the stop string that ended it, if one did


class Delta(msgspec.Struct, array_like=True):
    id: int
    text: str
    n_tokens: int = 1
    logprobs: list[Logprob] = []
    done: Done | None = None


class Step(msgspec.Struct, tag="step"):
    """The new text of every sequence, one frame an engine step."""

    deltas: list[Delta]


class Rendered(msgspec.Struct, tag="rendered"):
    id: int
    text: str
    tokens: list[int]


class Embedded(msgspec.Struct, tag="embedded"):
    id: int
    vectors: list[list[float]]  # [n_inputs][n_embd], L2 norm 1
    n_tokens: int


class StatsReply(msgspec.Struct, tag="stats_reply"):
    id: int
    values: dict[str, Any]


class Failed(msgspec.Struct, tag="failed", omit_defaults=True):
    """A request's error, with the HTTP status it deserves; id 0 is the Load."""

    id: int
    status: int
    message: str
    hint: str = ""


FromRunner = Ready | Attached | Step | Rendered | Embedded | StatsReply | Failed

_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()
to_runner = msgspec.msgpack.Decoder(ToRunner)
from_runner = msgspec.msgpack.Decoder(FromRunner)


def pack(frame: ToRunner | FromRunner) -> bytes:
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


def unpack_length(head: bytes | bytearray) -> int:
    """The body's length; `ValueError` when it cannot be one."""
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes: the stream is corrupt")
    return int(length)


def receive(sock: socket.socket) -> bytes | None:
    """One frame's body from a blocking socket; None at the end of the stream."""
    head = _receive_exactly(sock, _LENGTH.size)
    return None if head is None else _receive_exactly(sock, unpack_length(head))


def _receive_exactly(sock: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = sock.recv(min(size - len(parts), 1 << 20))
        except ConnectionError:  # the other side died with frames of ours unread
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)
