"""Tokens to trees, one for the main template and one for each define and block."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NoReturn

from modelctl.template.go import literals
from modelctl.template.go.errors import GoTemplateError
from modelctl.template.go.lexer import Token, lex
from modelctl.template.go.nodes import (
    Action,
    Branch,
    Call,
    Chain,
    Command,
    Dot,
    Field,
    Function,
    Jump,
    Literal,
    Node,
    Operand,
    Pipe,
    Text,
    Tree,
    Variable,
)

MAX_DEPTH = 50  # of nested actions and parentheses: real templates need five, Python's stack holds a few hundred

_OPERANDS = frozenset(["char", "dot", "field", "word", "number", "nil", "raw", "string", "variable", "open"])
_LITERALS = {"number": literals.number, "char": literals.character, "string": literals.string, "raw": literals.string}


def parse(source: str, functions: Collection[str]) -> dict[str, Tree]:
    """The trees by name, the main one under "". Raises `GoTemplateError`."""
    return _Parser(source, functions).parse()


class _Scope:
    """The variables of one template, as a stack: a variable's slot is its height."""

    def __init__(self) -> None:
        self.names = ["$"]
        self.n_slots = 1
        self.ranges = 0  # how many ranges we are in; break and continue need one

    def declare(self, name: str) -> int:
        self.names.append(name)
        self.n_slots = max(self.n_slots, len(self.names))
        return len(self.names) - 1

    def find(self, name: str) -> int | None:
        if name not in self.names:
            return None
        return len(self.names) - 1 - self.names[::-1].index(name)


class _Parser:
    def __init__(self, source: str, functions: Collection[str]) -> None:
        self.source = source
        self.functions = functions
        self.tokens = lex(source)
        self.i = 0
        self.depth = 0
        self.scope = _Scope()
        self.trees: dict[str, Tree] = {}
        self.calls: list[Call] = []

    # tokens

    def peek(self) -> Token:
        token = self.tokens[self.i]
        if token.kind == "error":
            self.fail(token.text, token)
        return token

    def peek_solid(self) -> Token:
        """The next token that is not space; the space is skipped."""
        while self.peek().kind == "space":
            self.i += 1
        return self.peek()

    def next(self) -> Token:
        token = self.peek()
        self.i += 1
        return token

    def next_solid(self) -> Token:
        self.peek_solid()
        return self.next()

    def expect(self, kinds: tuple[str, ...], context: str) -> Token:
        token = self.next_solid()
        if token.kind not in kinds:
            self.unexpected(token, context)
        return token

    def unexpected(self, token: Token, context: str) -> NoReturn:
        shown = "the end of the template" if token.kind == "eof" else repr(token.text)
        self.fail(f"unexpected {shown} in {context}", token)

    def fail(self, reason: str, at: Token | Node | Operand, hint: str | None = None) -> NoReturn:
        raise GoTemplateError(reason, self.source, at.pos, hint=hint)

    # templates

    def parse(self) -> dict[str, Tree]:
        body: list[Node] = []
        while self.peek_solid().kind != "eof":
            if self._keyword() == "define":
                self._define()
                continue
            body += self._one("the template")
        self._add("", body, self.scope, self.tokens[0])
        for call in self.calls:
            if call.name not in self.trees:
                self.fail(f'template "{call.name}" is not defined', call, hint=f'add {{{{define "{call.name}"}}}}')
        return self.trees

    def _keyword(self) -> str:
        """The first word of the action that comes next; empty when text does."""
        if self.peek().kind != "left":
            return ""
        after = (token for token in self.tokens[self.i + 1 : self.i + 3] if token.kind != "space")
        return next(after, self.peek()).kind

    def _one(self, context: str) -> list[Node]:
        token = self.next_solid()
        if token.kind == "text":
            return [Text(token.pos, token.text)]
        if token.kind != "left":
            self.unexpected(token, context)
        return [self._action(token)]

    def _items(self, opening: Token, context: str) -> tuple[tuple[Node, ...], str]:
        """Nodes up to an end or else, whose keyword is consumed and returned."""
        self._deeper(opening)
        body: list[Node] = []
        while (keyword := self._keyword()) not in ("end", "else"):
            if self.peek().kind == "eof":
                self.fail(
                    f"{context} is never closed",
                    opening,
                    hint="every if, with, range, define and block ends in {{end}}",
                )
            if keyword == "define":
                self.fail(
                    f"unexpected define in {context}", self.peek(), hint="define templates outside of other actions"
                )
            body += self._one(context)
        self.next()
        self.next_solid()
        self.depth -= 1
        return tuple(body), keyword

    def _deeper(self, at: Token) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH} levels", at)

    def _define(self) -> None:
        opening = self.next()
        self.next_solid()
        name = self._template_name("define")
        self.expect(("right",), "define")
        self._definition(name, opening, "define")

    def _definition(self, name: str, opening: Token, keyword: str) -> None:
        outer, self.scope = self.scope, _Scope()
        body, stop = self._items(opening, f'{keyword} "{name}"')
        if stop != "end":
            self.unexpected(self.tokens[self.i - 1], keyword)
        self.expect(("right",), "end")
        self._add(name, list(body), self.scope, opening)
        self.scope = outer

    def _add(self, name: str, body: list[Node], scope: _Scope, at: Token) -> None:
        """A second definition counts only when the first was blank; two with content are a mistake."""
        blank = all(isinstance(node, Text) and not node.text.strip() for node in body)
        known = self.trees.get(name)
        if known is not None and not all(isinstance(n, Text) and not n.text.strip() for n in known.body):
            if not blank:
                self.fail(f'template "{name}" is defined twice', at)
            return
        self.trees[name] = Tree(name, tuple(body), scope.n_slots)

    def _template_name(self, context: str) -> str:
        token = self.expect(("string", "raw"), context)
        return str(self._literal(token).value)

    # actions

    def _action(self, left: Token) -> Node:
        token = self.peek_solid()
        rules: dict[str, Callable[[Token], Node]] = {
            "if": self._branch,
            "with": self._branch,
            "range": self._branch,
            "template": self._template,
            "block": self._block,
            "break": self._jump,
            "continue": self._jump,
        }
        if token.kind in ("end", "else"):
            self.fail(f"unexpected {{{{{token.text}}}}}", token, hint="there is no if, with or range open here")
        if token.kind not in rules:
            return Action(token.pos, self._pipeline("command", "right"))
        self.next()
        return rules[token.kind](token)

    def _jump(self, token: Token) -> Jump:
        self.expect(("right",), token.text)
        if not self.scope.ranges:
            self.fail(f"{{{{{token.text}}}}} outside {{{{range}}}}", token)
        return Jump(token.pos, token.kind)

    def _template(self, token: Token) -> Call:
        name = self._template_name("template")
        pipe = None
        if self.peek_solid().kind == "right":
            self.next()
        else:
            pipe = self._pipeline("template", "right")
        self.calls.append(Call(token.pos, name, pipe))
        return self.calls[-1]

    def _block(self, token: Token) -> Call:
        name = self._template_name("block")
        pipe = self._pipeline("block", "right")
        self._definition(name, token, "block")
        return Call(token.pos, name, pipe)

    def _branch(self, token: Token) -> Branch:
        """if, with, range, with their else. The variables the pipeline declares live until the end."""
        height = len(self.scope.names)
        pipe = self._pipeline(token.kind, "right")
        self.scope.ranges += token.kind == "range"
        inner = len(self.scope.names)
        body, stop = self._items(token, token.text)
        del self.scope.names[inner:]
        self.scope.ranges -= token.kind == "range"
        orelse = self._orelse(token) if stop == "else" else ()
        if stop == "end":
            self.expect(("right",), "end")
        del self.scope.names[height:]
        return Branch(token.pos, token.kind, pipe, body, orelse)

    def _orelse(self, opening: Token) -> tuple[Node, ...]:
        """`else`, or `else if` and `else with`, which share the {{end}} of what they belong to."""
        token = self.next_solid()
        if token.kind in ("if", "with") and token.kind == opening.kind:
            self._deeper(token)
            chained = self._branch(token)
            self.depth -= 1
            return (chained,)
        if token.kind != "right":
            self.unexpected(token, "else")
        body, stop = self._items(opening, opening.text)
        if stop != "end":
            self.fail("expected {{end}}, found a second {{else}}", self.tokens[self.i - 1])
        self.expect(("right",), "end")
        return body

    # pipelines

    def _pipeline(self, context: str, end: str) -> Pipe:
        first = self.peek_solid()
        self._deeper(first)
        declared, assigns = self._declarations(context)
        commands: list[Command] = []
        while (token := self.peek_solid()).kind != end:
            if token.kind not in _OPERANDS:
                self.unexpected(token, context)
            commands.append(self._command())
        if not commands:
            self.fail(f"missing value for {context}", token)
        self.next()
        self._check_stages(commands)
        self.depth -= 1
        return Pipe(first.pos, tuple(commands), tuple(self._bind(v, assigns) for v in declared))

    def _declarations(self, context: str) -> tuple[list[Token], bool]:
        """`$x :=`, `$x =`, and for range `$i, $x :=`. They are bound after the pipeline, which can't see them yet.

        Go also reads `range $i, $list`: one variable, and the pipeline $list.
        """
        declared: list[Token] = []
        while self.peek_solid().kind == "variable":
            start = self.i
            variable = self.next()
            token = self.peek_solid()
            if token.kind in ("declare", "assign"):
                self.next()
                return [*declared, variable], token.kind == "assign"
            if token.text != ",":
                self.i = start
                break
            self.next()
            declared.append(variable)
            if context != "range" or len(declared) == 2:
                self.fail(f"too many declarations in {context}", token)
            if self.peek_solid().kind != "variable":
                self.fail("range can only initialize variables", self.peek())
        return declared, False

    def _bind(self, token: Token, assigns: bool) -> Variable:
        if not assigns:
            return Variable(token.pos, token.text, self.scope.declare(token.text))
        return self._variable(token)

    def _variable(self, token: Token) -> Variable:
        slot = self.scope.find(token.text)
        if slot is None:
            self.fail(f"undefined variable {token.text}", token, hint=f"declare it first: {{{{ {token.text} := … }}}}")
        return Variable(token.pos, token.text, slot)

    def _check_stages(self, commands: list[Command]) -> None:
        for i, command in enumerate(commands[1:], 2):
            if isinstance(command.args[0], Literal | Dot):
                self.fail(f"non executable command in pipeline stage {i}", command.args[0])

    def _command(self) -> Command:
        first = self.peek_solid()
        args: list[Operand] = []
        while True:
            operand = self._operand()
            if operand is not None:
                args.append(operand)
            token = self.next()
            if token.kind == "space":
                self.peek_solid()
                continue
            if token.kind in ("right", "close"):
                self.i -= 1
            elif token.kind != "pipe":
                self.unexpected(token, "operand")
            break
        if not args:
            self.fail("empty command", first)
        return Command(first.pos, tuple(args))

    def _operand(self) -> Operand | None:
        """A term and the fields that follow it without a space."""
        term = self._term()
        if term is None or self.peek().kind != "field":
            return term
        pos = self.peek().pos
        names: list[str] = []
        while self.peek().kind == "field":
            names.append(self.next().text[1:])
        if isinstance(term, Field):
            return Field(term.pos, term.names + tuple(names))
        if isinstance(term, Variable):
            return Variable(term.pos, term.name, term.slot, tuple(names))
        if isinstance(term, Literal | Dot):
            self.fail("unexpected . after a term that has no fields", self.tokens[self.i - len(names)])
        return Chain(pos, term, tuple(names))

    def _term(self) -> Operand | None:
        token = self.peek_solid()
        if token.kind not in _OPERANDS:
            return None
        self.next()
        match token.kind:
            case "dot":
                return Dot(token.pos)
            case "nil":
                return Literal(token.pos, None, "nil")
            case "variable":
                return self._variable(token)
            case "field":
                return Field(token.pos, (token.text[1:],))
            case "open":
                return self._pipeline("parenthesized pipeline", "close")
            case "word":
                return self._word(token)
        return self._literal(token)

    def _word(self, token: Token) -> Operand:
        if token.text in ("true", "false"):
            return Literal(token.pos, token.text == "true", token.text)
        if token.text not in self.functions:
            self.fail(
                f"function {token.text!r} is not defined", token, hint="there are: " + " ".join(sorted(self.functions))
            )
        return Function(token.pos, token.text)

    def _literal(self, token: Token) -> Literal:
        try:
            return Literal(token.pos, _LITERALS[token.kind](token.text), token.text)
        except ValueError as e:
            self.fail(str(e), token)
