"""What a template renders: the conversation, in the shape the wire and the runner's frames share."""

from __future__ import annotations

from typing import Any

import msgspec


class Message(msgspec.Struct, omit_defaults=True):
    role: str
    content: str = ""
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = []
    tool_name: str = ""
    tool_call_id: str = ""


class Conversation(msgspec.Struct, omit_defaults=True):
    """One prompt to be. `suffix` set means fill-in-the-middle; the last user message is then the prefix."""

    messages: list[Message] = []
    suffix: str = ""
    tools: list[dict[str, Any]] = []
    think: bool | str | None = None
