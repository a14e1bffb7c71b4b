"""Trees to Python closures: a template is taken apart once and rendered many times.

An operand becomes a function from (frame, dot) to its value, a node one that writes to the frame and says whether a
break or continue is on its way out. All that does not depend on the data is done here, before the first render.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from modelctl.template.go import gojson
from modelctl.template.go.errors import FunctionError, GoTemplateError
from modelctl.template.go.format import show
from modelctl.template.go.funcs import FUNCTIONS, Function, typescript_type
from modelctl.template.go.nodes import (
    Action,
    Branch,
    Call,
    Chain,
    Command,
    Dot,
    Field,
    Jump,
    Literal,
    Node,
    Operand,
    Pipe,
    Text,
    Tree,
    Variable,
)
from modelctl.template.go.nodes import Function as FunctionName
from modelctl.template.go.values import Struct, sorted_items, truth, type_name
from modelctl.template.limits import MAX_OUTPUT, TemplateLimit, check_size, tick

MAX_CALLS = 100  # templates calling templates; Python's stack holds some 250 such calls

UNSET = object()  # a variable whose declaration has not run
MISSING: Any = object()  # no value from an earlier stage of the pipeline


class Output:
    """What a render has written so far, and how deep in calls it is."""

    __slots__ = ("calls", "parts", "size")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.size = 0
        self.calls = 0

    def write(self, text: str) -> None:
        self.size += len(text)
        if self.size > MAX_OUTPUT:
            check_size(self.size)
        self.parts.append(text)


class Frame:
    """The variables of one running template, by slot; slot 0 is $."""

    __slots__ = ("out", "vars")

    def __init__(self, out: Output, dollar: Any, n_slots: int) -> None:
        self.out = out
        self.vars = [dollar] + [UNSET] * (n_slots - 1)


Eval: TypeAlias = Callable[[Frame, Any], Any]
Step: TypeAlias = Callable[[Frame, Any], str | None]  # "break", "continue" or None


class Program:
    """Compiled templates, ready to run."""

    def __init__(self, source: str, trees: dict[str, Tree]) -> None:
        self._source = source
        self._trees = trees
        self._bodies = {name: self._list(tree.body) for name, tree in trees.items()}

    def run(self, data: Any) -> str:
        """The main template's output. Raises `GoTemplateError` and `TemplateLimit`."""
        out = Output()
        try:
            self._bodies[""](Frame(out, data, self._trees[""].n_slots), data)
        except RecursionError:
            raise TemplateLimit("the template recurses too deeply") from None
        return "".join(out.parts)

    def _fail(self, reason: str, at: Node | Operand | Command) -> NoReturn:
        raise GoTemplateError(reason, self._source, at.pos)

    # nodes

    def _list(self, nodes: tuple[Node, ...]) -> Step:
        steps = [self._node(node) for node in nodes]
        if len(steps) == 1:
            return steps[0]

        def run(frame: Frame, dot: Any) -> str | None:
            for step in steps:
                if jump := step(frame, dot):
                    return jump
            return None

        return run

    def _node(self, node: Node) -> Step:
        match node:
            case Text():
                return self._text(node)
            case Action():
                return self._action(node)
            case Call():
                return self._call(node)
            case Jump():
                return lambda _frame, _dot: node.keyword
            case Branch(keyword="range"):
                return self._range(node)
            case Branch():
                return self._if_or_with(node)

    def _text(self, node: Text) -> Step:
        text = node.text

        def run(frame: Frame, _dot: Any) -> None:
            frame.out.write(text)

        return run

    def _action(self, node: Action) -> Step:
        value = self._pipe(node.pipe)
        if node.pipe.variables:
            return lambda frame, dot: value(frame, dot) and None

        def run(frame: Frame, dot: Any) -> None:
            result = value(frame, dot)
            if result is not None:  # Go prints <no value>, which helps no model
                frame.out.write(result if type(result) is str else show(result))

        return run

    def _if_or_with(self, node: Branch) -> Step:
        value, body, orelse = self._pipe(node.pipe), self._list(node.body), self._list(node.orelse)
        moves_dot = node.keyword == "with"

        def run(frame: Frame, dot: Any) -> str | None:
            result = value(frame, dot)
            if not truth(result):
                return orelse(frame, dot)
            return body(frame, result if moves_dot else dot)

        return run

    def _range(self, node: Branch) -> Step:
        value, body, orelse = self._pipe(node.pipe), self._list(node.body), self._list(node.orelse)
        slots = [variable.slot for variable in node.pipe.variables]

        def run(frame: Frame, dot: Any) -> str | None:
            items = self._items(value(frame, dot), node)
            if not items:
                return orelse(frame, dot)
            for key, item in items:
                tick()
                if slots:
                    frame.vars[slots[-1]] = item
                    if len(slots) == 2:
                        frame.vars[slots[0]] = key
                if body(frame, item) == "break":
                    break
            return None

        return run

    def _items(self, value: Any, node: Branch) -> Any:
        """(key, item) pairs; empty when there is nothing to range over."""
        match value:
            case list():
                return value and enumerate(value)
            case dict():
                return sorted_items(value)
            case None:
                return ()
            case int() if not isinstance(value, bool):
                return range(value) and zip(range(value), range(value), strict=True)
        return self._fail(f"range can't iterate over a value of type {type_name(value)}", node)

    def _call(self, node: Call) -> Step:
        argument = self._pipe(node.pipe) if node.pipe else lambda _frame, _dot: None
        n_slots = self._trees[node.name].n_slots

        def run(frame: Frame, dot: Any) -> None:
            tick()
            out = frame.out
            if out.calls == MAX_CALLS:
                raise TemplateLimit(f'template "{node.name}" calls itself more than {MAX_CALLS} levels deep')
            data = argument(frame, dot)
            out.calls += 1
            self._bodies[node.name](Frame(out, data, n_slots), data)
            out.calls -= 1

        return run

    # pipelines

    def _pipe(self, pipe: Pipe) -> Eval:
        value = self._stages(pipe.commands)
        if not pipe.variables:
            return value
        slots = [variable.slot for variable in pipe.variables]

        def run(frame: Frame, dot: Any) -> Any:
            result = value(frame, dot)
            for slot in slots:
                frame.vars[slot] = result
            return result

        return run

    def _stages(self, commands: tuple[Command, ...]) -> Eval:
        value = self._command(commands[0], None)
        for command in commands[1:]:
            value = self._command(command, value)
        return value

    def _command(self, command: Command, final: Eval | None) -> Eval:
        """`final` gives the value of the stage before, which becomes the last argument."""
        first = command.args[0]
        if isinstance(first, FunctionName):
            return self._function(first, command, final)
        if len(command.args) > 1 or final:
            return self._not_a_function(first, final)
        if isinstance(first, Literal) and first.value is None:
            self._fail("nil is not a command", first)
        return self._operand(first)

    def _not_a_function(self, operand: Operand, final: Eval | None) -> Eval:
        def run(frame: Frame, dot: Any) -> Any:
            if final:
                final(frame, dot)
            self._fail("can't give argument to what is not a function", operand)

        return run

    def _function(self, name: FunctionName, command: Command, final: Eval | None) -> Eval:
        function = FUNCTIONS[name.name]
        args = [self._operand(arg) for arg in command.args[1:]] + ([final] if final else [])
        self._check_arguments(name, function, command, len(args))
        if name.name in ("and", "or"):
            return self._short_circuit(args, stop=name.name == "or")

        def run(frame: Frame, dot: Any) -> Any:
            values = [arg(frame, dot) for arg in args]
            try:
                for value in values[function.text_args]:
                    if type(value) is not str:
                        raise FunctionError(f"expected string; got {type_name(value)}")
                result = function.call(*values)
            except FunctionError as e:
                self._fail(f"error calling {name.name}: {e}", name)
            if type(result) is str:
                check_size(len(result), f"what {name.name} makes")
            return result

        return run

    def _check_arguments(self, name: FunctionName, function: Function, command: Command, n: int) -> None:
        if n < function.min_args or (function.max_args is not None and n > function.max_args):
            exactly = function.min_args == function.max_args
            want = f"{function.min_args}" if exactly else f"at least {function.min_args}"
            self._fail(f"wrong number of args for {name.name}: want {want} got {n}", name)

    def _short_circuit(self, args: list[Eval], stop: bool) -> Eval:
        def run(frame: Frame, dot: Any) -> Any:
            value = None
            for arg in args:
                value = arg(frame, dot)
                if truth(value) == stop:
                    break
            return value

        return run

    # operands

    def _operand(self, node: Operand) -> Eval:
        match node:
            case Literal():
                value = node.value
                return lambda _frame, _dot: value
            case Dot():
                return lambda _frame, dot: dot
            case Field():
                return self._fields(self._field_of_dot(node), node.names[1:], node)
            case Variable(names=()):
                return self._variable(node)
            case Variable():
                first = self._field(self._variable(node), node.names[0], node, chained=False)
                return self._fields(first, node.names[1:], node)
            case Chain():
                first = self._field(self._operand(node.node), node.names[0], node, chained=False)
                return self._fields(first, node.names[1:], node)
            case Pipe():
                return self._pipe(node)
            case FunctionName():
                return self._function(node, Command(node.pos, (node,)), None)

    def _variable(self, node: Variable) -> Eval:
        slot = node.slot

        def run(frame: Frame, _dot: Any) -> Any:
            value = frame.vars[slot]
            if value is UNSET:
                self._fail(f"undefined variable {node.name}", node)
            return value

        return run

    def _fields(self, value: Eval, names: tuple[str, ...], node: Operand) -> Eval:
        for name in names:
            value = self._field(value, name, node, chained=True)
        return value

    def _field_of_dot(self, node: Field) -> Eval:
        """What _field does, one call shorter: most of a chat template's operands are this."""
        name = node.names[0]

        def run(_frame: Frame, dot: Any) -> Any:
            if type(dot) is Struct and name in dot.values:
                return dot.values[name]
            return self._rare_field(dot, name, node, chained=False)

        return run

    def _field(self, value: Eval, name: str, node: Operand, chained: bool) -> Eval:
        def run(frame: Frame, dot: Any) -> Any:
            owner = value(frame, dot)
            if type(owner) is dict:
                return owner.get(name)
            if type(owner) is Struct and name in owner.values:
                return owner.values[name]
            return self._rare_field(owner, name, node, chained)

        return run

    def _rare_field(self, owner: Any, name: str, node: Operand, chained: bool) -> Any:
        if isinstance(owner, dict):
            return owner.get(name)
        if owner is None:
            return self._fail(f"nil pointer evaluating .{name}", node) if chained else None
        if isinstance(owner, Struct) and name == "ToTypeScriptType":
            return typescript_type(owner)
        if isinstance(owner, Struct) and name == "String":
            return gojson.encode(owner)
        known = f": it has {' '.join('.' + n for n in owner.values)}" if isinstance(owner, Struct) else ""
        return self._fail(f"can't evaluate field {name} in type {type_name(owner)}{known}", node)
