"""Typed calls to a daemon. `_request` is the only place that talks, and turns whatever goes wrong into our errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import msgspec

from modelctl import errors
from modelctl.api import native
from modelctl.config import Address

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
CONNECT_TIMEOUT = 5.0  # seconds; answers may take as long as they need
VERSION_TIMEOUT = 10.0
BY_STATUS: dict[int, type[errors.ModelctlError]] = {
    400: errors.BadRequest,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.TooLarge,
    503: errors.Busy,
}


class _Line(msgspec.Struct):
    """What any line of a stream may be: an answer's, or the error that ends it."""

    error: str = ""
    hint: str = ""
    done: bool = False


class Client:
    """One daemon. Every call raises `DaemonUnreachable` when none answers, else the error that the daemon names."""

    def __init__(self, address: Address) -> None:
        import requests

        self.address = address
        self._session = requests.Session()
        self._session.trust_env = not address.is_local  # a proxy cannot reach this machine's loopback

    def version(self) -> str:
        """Any daemon answers this at once; what takes longer is something else, or has hung."""
        return self._call("GET", "/api/version", native.VersionReply, timeout=VERSION_TIMEOUT).version

    def ps(self) -> native.PsReply:
        return self._call("GET", "/api/ps", native.PsReply)

    def tags(self) -> native.TagsReply:
        return self._call("GET", "/api/tags", native.TagsReply)

    def show(self, model: str) -> native.ShowReply:
        return self._call("POST", "/api/show", native.ShowReply, native.NameRequest(model=model))

    def lora(self, model: str) -> native.LoraReply:
        """The adapters of a model, with their current scales."""
        return self._call("GET", "/api/lora-adapters", native.LoraReply, params={"model": model})

    def set_lora(self, change: native.LoraChange) -> native.LoraReply:
        return self._call("POST", "/api/lora-adapters", native.LoraReply, change)

    def unload(self, model: str) -> None:
        request = native.GenerateRequest(model=model, keep_alive=0, stream=False)
        self._call("POST", "/api/generate", native.GenerateReply, request)

    def chat(self, request: native.ChatRequest) -> Iterator[native.ChatReply]:
        """The pieces of an answer as they come; closing the iterator cancels it."""
        response = self._request("POST", "/api/chat", request, stream=True)
        return self._lines(response, native.ChatReply)

    def chat_once(self, request: native.ChatRequest) -> native.ChatReply:
        return self._call("POST", "/api/chat", native.ChatReply, request)

    def _call(
        self,
        method: str,
        path: str,
        reply: type[T],
        body: msgspec.Struct | None = None,
        *,
        params: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> T:
        response = self._request(method, path, body, params=params, timeout=timeout)
        return self._decode(response.content, reply)

    def _lines(self, response: requests.Response, reply: type[T]) -> Iterator[T]:
        import requests

        try:
            with response:
                for line in response.iter_lines():
                    kind = self._decode(line, _Line)
                    if kind.error:
                        raise _error(500, kind.error, kind.hint)
                    yield self._decode(line, reply)
                    if kind.done:
                        return
        except requests.RequestException:
            pass
        raise errors.ModelctlError("the daemon broke off in the middle of the answer", hint="see: modelctl logs")

    def _request(
        self,
        method: str,
        path: str,
        body: msgspec.Struct | None = None,
        *,
        params: dict[str, str] | None = None,
        timeout: float | None = None,
        stream: bool = False,
    ) -> requests.Response:
        import requests

        try:
            response = self._session.request(
                method,
                self.address.url + path,
                data=None if body is None else msgspec.json.encode(body),
                headers={"Content-Type": "application/json"},
                params=params,
                timeout=(CONNECT_TIMEOUT, timeout),
                stream=stream,
                allow_redirects=False,
            )
            if response.status_code != 200:
                raise self._refusal(response)
        except requests.ConnectionError as error:
            raise self._no_connection(error) from None
        except requests.ReadTimeout:
            raise self._stranger(f"nothing comes back in {timeout:g} seconds") from None
        except (requests.RequestException, ValueError) as error:  # ValueError: urllib3 on an impossible address
            raise errors.ModelctlError(f"calling {self.address.url} failed: {error}") from None
        return response

    def _no_connection(self, error: requests.ConnectionError) -> errors.ModelctlError:
        """Only what nobody listens to is unreachable: something else on the port must not make us start a daemon."""
        import requests
        from urllib3.exceptions import ProtocolError

        cause = error.args[0] if error.args else None
        if isinstance(cause, ProtocolError):
            if "BadStatusLine" in repr(cause):
                return self._stranger("that is no HTTP")
            return errors.ModelctlError("the daemon went away before it answered", hint="see: modelctl logs")
        if isinstance(error, requests.exceptions.SSLError):
            return errors.ModelctlError(f"{self.address.url} offers no encryption that can be trusted: {cause}")
        hint = (
            "start one with: modelctl serve" if self.address.is_local else "is MODELCTL_HOST right, and the daemon up?"
        )
        return errors.DaemonUnreachable(f"no daemon answers at {self.address.url}", hint=hint)

    def _refusal(self, response: requests.Response) -> errors.ModelctlError:
        try:
            said = msgspec.json.decode(response.content, type=native.Error)
        except msgspec.MsgspecError:
            return self._stranger(f"status {response.status_code}")
        return _error(response.status_code, said.error, said.hint)

    def _decode(self, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.MsgspecError as error:
            raise self._stranger(str(error)) from None

    def _stranger(self, what: str) -> errors.ModelctlError:
        return errors.ModelctlError(
            f"what answers at {self.address.url} does not speak modelctl's language ({what})",
            hint="another program on that port, or another version? MODELCTL_HOST=:11500 takes another port",
        )


def _error(status: int, message: str, hint: str) -> errors.ModelctlError:
    """On the wire `hint` is the end of the message too."""
    if hint and message.endswith(hint):
        message = message[: -len(hint)].rstrip(" .;:,")
    return BY_STATUS.get(status, errors.ModelctlError)(message, hint=hint or None)
