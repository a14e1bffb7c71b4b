"""OpenAI's API, as far as it makes sense for a local model. `lora` is ours, and so are mixes in `model`.

Streams are server-sent events; an error in the middle is an event with an `error` object, and the last one.
"""

from __future__ import annotations

from typing import Any

import msgspec

from modelctl.api.native import Lora


class ErrorBody(msgspec.Struct):
    message: str
    type: str  # invalid_request_error, not_found_error or api_error
    param: str | None = None
    code: str | None = None


class Error(msgspec.Struct):
    error: ErrorBody


class Message(msgspec.Struct, omit_defaults=True):
    """`content` is text, or a list of parts of which only the text ones are understood."""

    role: str
    content: Any = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class SamplingRequest(msgspec.Struct, kw_only=True):
    """Temperature and top_p are 1 when neither the request nor the model's PARAMETERs set them."""

    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None  # 1 to 8
    logit_bias: dict[str, float] | None = None  # token id -> -100 to 100
    deterministic: bool | None = None  # ours: the same seed gives the same text, in any company
    lora: Lora | None = None  # ours


class ChatRequest(SamplingRequest, kw_only=True):
    messages: list[Message] = []
    max_completion_tokens: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionRequest(SamplingRequest, kw_only=True):
    prompt: Any = None  # text, or a list of one text
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = None


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(msgspec.Struct):
    role: str
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: AnswerMessage
    finish_reason: str | None
    logprobs: ChatLogprobs | None = None


class MessageDelta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: MessageDelta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


class CompletionLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None


class Reply(msgspec.Struct, omit_defaults=True):
    """A whole answer or a chunk of one; `object` tells which."""

    id: str
    object: str  # chat.completion, chat.completion.chunk or text_completion
    created: int  # seconds since the epoch
    model: str
    choices: list[Any]  # ChatChoice, ChatChunkChoice or CompletionChoice, as `object` says
    system_fingerprint: str
    usage: Usage | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    model: str = ""
    input: Any = None  # text, or a list of texts
    encoding_format: str | None = None  # float or base64
    dimensions: int | None = None
    lora: Lora | None = None  # ours


class Embedding(msgspec.Struct):
    index: int
    embedding: list[float] | str  # base64: of little-endian float32
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(msgspec.Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


class ModelCard(msgspec.Struct, omit_defaults=True):
    """`root` and `parent`, as vLLM has them: an adapter's digest, and the model that it belongs to."""

    id: str
    created: int
    owned_by: str
    object: str = msgspec.field(default_factory=lambda: "model")
    root: str | None = None
    parent: str | None = None


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"
