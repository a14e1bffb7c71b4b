"""Text to tokens. A rule is a function of (source, position); the position is all the state there is.

What text/template can't read becomes a last token of kind "error", so that the parser, which knows the context, reports
the first mistake first.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SPACE = " \t\r\n"  # what a trim marker trims: Go's, not Unicode's, idea of space
KEYWORDS = frozenset(["block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with"])

# In the order to try them. Every word must be followed by TERMINATOR; numbers check themselves.
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+?(?=[ \t\r\n]-}})|[ \t\r\n]+)
      |(?P<declare>:=)|(?P<assign>=)|(?P<pipe>\|)|(?P<open>\()|(?P<close>\))
      |(?P<string>"(?:[^"\\\n]|\\[^\n])*")|(?P<raw>`[^`]*`)|(?P<char>'(?:[^'\\\n]|\\[^\n])*')
      |(?P<variable>\$\w*)|(?P<field>\.[^\W\d]\w*)
      |(?P<number>[+-]?(?:0[xX][\da-fA-F_]*(?:\.[\da-fA-F_]*)?(?:[pP][+-]?[\d_]*)?|0[oO][0-7_]*|0[bB][01_]*
          |(?=[+-]|\.?\d)[\d_]*(?:\.[\d_]*)?(?:[eE][+-]?[\d_]*)?)i?)
      |(?P<dot>\.)|(?P<word>\w+)|(?P<other>[!-~])""",
    re.VERBOSE,
)
_TERMINATOR = re.compile(r"[ \t\r\n.,|:)(]|}}|\Z")
_RIGHT = re.compile(r"[ \t\r\n]-}}[ \t\r\n]*|}}")
_WORDS = frozenset(("variable", "field", "dot", "word"))
_UNTERMINATED = {
    '"': "unterminated quoted string",
    "`": "unterminated raw quoted string",
    "'": "unterminated character constant",
    ":": "expected :=",
}


class Token(NamedTuple):
    kind: str  # a group of _TOKEN, a keyword, or one of text, left, right, error, eof
    text: str
    pos: int


def lex(source: str) -> list[Token]:
    tokens: list[Token] = []
    pos = 0
    while (pos := _text(source, pos, tokens)) < len(source):
        pos = _comment(source, pos, tokens) or _action(source, pos, tokens)
        if tokens and tokens[-1].kind == "error":
            return tokens
    tokens.append(Token("eof", "", len(source)))
    return tokens


def _text(source: str, pos: int, tokens: list[Token]) -> int:
    """Up to the next left delimiter, less what its trim marker takes."""
    end = source.find("{{", pos)
    if end < 0:
        end = len(source)
    text = source[pos:end]
    if _trims(source, end):
        text = text.rstrip(SPACE)
    if text:
        tokens.append(Token("text", text, pos))
    return end


def _trims(source: str, left: int) -> bool:
    return source.startswith("{{-", left) and source[left + 3 : left + 4] in tuple(SPACE)


def _comment(source: str, left: int, tokens: list[Token]) -> int:
    """The position after a comment, or 0 when there is none here."""
    start = left + (4 if _trims(source, left) else 2)
    if not source.startswith("/*", start):
        return 0
    end = source.find("*/", start + 2)
    if end < 0:
        return _error(source, left, tokens, "unclosed comment")
    right = _RIGHT.match(source, end + 2)
    if right is None:
        return _error(source, end + 2, tokens, "comment ends before closing delimiter")
    return right.end()


def _action(source: str, left: int, tokens: list[Token]) -> int:
    tokens.append(Token("left", "{{", left))
    pos = left + (4 if _trims(source, left) else 2)
    depth = 0
    while (right := _RIGHT.match(source, pos)) is None:
        token = _TOKEN.match(source, pos)
        problem = _problem(source, pos, token)
        kind = token.lastgroup if token else None
        depth += (kind == "open") - (kind == "close")
        if token is None or kind is None or problem or depth < 0:
            return _error(source, pos if pos < len(source) else left, tokens, problem or "unexpected right paren")
        word = token[0]
        tokens.append(Token(word if kind == "word" and word in KEYWORDS else kind, word, pos))
        pos = token.end()
        if pos >= len(source):
            return _error(source, left, tokens, "unclosed action")
    if depth:
        return _error(source, pos, tokens, "unclosed left paren")
    tokens.append(Token("right", "}}", pos))
    return right.end()


def _problem(source: str, pos: int, token: re.Match[str] | None) -> str:
    """What is wrong with the token at `pos`; empty when nothing is."""
    if token is None:
        return f"unrecognized character in action: {source[pos]!r}" if pos < len(source) else "unclosed action"
    start, end = source[pos], token.end()
    if token.lastgroup == "other" and start in _UNTERMINATED:
        return _UNTERMINATED[start]
    if token.lastgroup in _WORDS and not _TERMINATOR.match(source, end):
        return f"bad character {source[end]!r} after {token[0]!r}"
    if token.lastgroup == "number" and re.match(r"\w|[+-]", source[end : end + 1]):
        return f"bad number syntax: {source[pos : end + 1]!r}"
    return ""


def _error(source: str, pos: int, tokens: list[Token], reason: str) -> int:
    tokens.append(Token("error", reason, pos))
    return len(source)
