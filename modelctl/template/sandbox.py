"""jinja2's sandbox, with bounds: it keeps templates from reaching out, but not from asking for the whole machine.

The rule: no value that a template makes may weigh more than MAX_OUTPUT, counted as if it were printed, and all values
of one render together not more than MAX_MADE. So whatever an operation is given is of bounded size, and the few that
multiply sizes are estimated before they run. `tick` is called wherever templates loop or call.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from modelctl.template.limits import MAX_OUTPUT, TemplateLimit, check_size, tick

MAX_MADE = (
    32 * MAX_OUTPUT
)  # characters a render may make on the way; loops that build a prompt piece by piece need some
MAX_BITS = 1 << 16  # of an integer
MAX_ARGUMENT = 1_000_000  # a width, count or precision

_WHAT = "a value the template makes"


class _Made(threading.local):
    total = 0


_made = _Made()


def new_render() -> None:
    """Start counting what a render makes."""
    _made.total = 0


def weighed(value: Any) -> Any:
    """`value`, unless it is too large."""
    if isinstance(value, str | bytes | list | tuple | dict | set):
        _made.total += len(value)
        if _made.total > MAX_MADE:
            raise TemplateLimit(f"the template makes more than {MAX_MADE >> 20} MB of values")
    if type(value) is not str or len(value) > MAX_OUTPUT:  # most values are strings, and small
        weigh(value)
    return value


def weigh(value: Any) -> int:
    """The size of `value` as if printed. Shared parts count each time: a list of a list of a list ... doubles so."""
    weight = 0
    stack = [value]
    while stack:
        item = stack.pop()
        weight += 1
        if isinstance(item, str | bytes):
            weight += len(item)
        elif isinstance(item, int):
            _check_bits(item.bit_length())
        elif isinstance(item, Namespace):
            stack.append(object.__getattribute__(item, "_Namespace__attrs"))
        elif isinstance(item, Mapping):
            stack += item.keys()
            stack += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            stack += item
        check_size(weight + len(stack), _WHAT)
    return weight


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TemplateLimit(f"a number the template makes has more than {MAX_BITS} bits")


def _check_argument(*values: Any) -> None:
    if any(isinstance(value, int) and abs(value) > MAX_ARGUMENT for value in values):
        raise TemplateLimit(f"the template asks for a width or count above {MAX_ARGUMENT:,}")


def join(parts: Iterable[str]) -> str:
    """ "".join for the parts of the output, a macro or a block, which come one by one."""
    kept: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        check_size(size)
        kept.append(part)
    return "".join(kept)


# Operations whose result can be far larger than what they are given: estimates, from above, of its size.


def _times(left: Any, right: Any) -> None:
    for value, count in ((left, right), (right, left)):
        if isinstance(value, str | bytes | list | tuple) and isinstance(count, int):
            check_size(weigh(value) * max(count, 0), _WHAT)
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def _power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))


def _percent(left: Any, right: Any) -> None:
    if isinstance(left, str | bytes):
        _format(left, right)


_DIRECTIVE = re.compile(r"%[^a-zA-Z%]*|\{[^}]*")


def _format(form: Any, *args: Any, **names: Any) -> None:
    """Each directive prints at most all arguments, and what its digits pad it to."""
    text = str(form)
    directives = _DIRECTIVE.findall(text)
    digits = [number for directive in directives for number in re.findall(r"\d+", directive)]
    if any(len(number) > 7 for number in digits):
        raise TemplateLimit(f"{_WHAT} is padded too far")
    if any("*" in directive or "{" in directive[1:] for directive in directives):
        _check_argument(*_flat(args), *names.values())
        digits += [str(MAX_ARGUMENT)] * (len(directives) // 2)
    check_size(len(text) + sum(map(int, digits)) + len(directives) * weigh([args, names]), _WHAT)


def _flat(args: Iterable[Any]) -> list[Any]:
    return [item for arg in args for item in (arg if isinstance(arg, tuple | list) else (arg,))]


def _replace(text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    if not isinstance(text, bytes):
        text, old, new = str(text), str(old), str(new)
    check_size(len(text) + text.count(old) * len(new), _WHAT)


def _join(separator: Any, parts: Any) -> None:
    check_size(weigh(parts) + len(str(separator)) * (len(parts) if hasattr(parts, "__len__") else 0), _WHAT)


def _expand(text: Any, size: Any = 8, *_: Any, **__: Any) -> None:
    _check_argument(size)
    check_size(len(text) + text.count("\t") * abs(int(size)), _WHAT)


def _translate(text: Any, table: Any) -> None:
    widest = max((len(v) for v in table.values() if isinstance(v, str)), default=1) if isinstance(table, dict) else 1
    check_size(len(text) * widest, _WHAT)


def _pad(_text: Any, *args: Any, **names: Any) -> None:
    _check_argument(*args, *names.values())


def _indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    _check_argument(width)
    size = len(width) if isinstance(width, str) else int(width)
    check_size(len(str(text)) + size * (str(text).count("\n") + 1), _WHAT)


def _per_word(text: Any, *args: Any, **names: Any) -> None:
    _check_argument(*args, *names.values())
    extra = weigh([args, names])
    check_size(len(str(text)) * 2 if extra < 200 else len(str(text)) * extra, _WHAT)


def _small(_value: Any, *args: Any, **names: Any) -> None:
    """For arguments that no template needs large: round's precision, tojson's indent and separators."""
    for value in _flat((*args, *names.values())):
        if (isinstance(value, int) and abs(value) > 1000) or (isinstance(value, str) and len(value) > 100):
            raise TemplateLimit(f"{_WHAT} is padded too far")


def _numbers(values: Any, *args: Any, **names: Any) -> None:
    if any(isinstance(start, list | tuple) for start in (*args, *names.values())):
        raise TemplateLimit("sum adds numbers, not lists")


_BINARY: dict[str, Callable[[Any, Any], None]] = {"*": _times, "**": _power, "%": _percent}
_METHODS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "to_bytes"), _pad),
    "replace": _replace,
    "join": _join,
    "expandtabs": _expand,
    "translate": _translate,
}
_FILTERS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "batch", "slice", "truncate"), _pad),
    **dict.fromkeys(("round", "tojson"), _small),
    **dict.fromkeys(("wordwrap", "urlize"), _per_word),
    "replace": _replace,
    "format": _format,
    "indent": _indent,
    "sum": _numbers,
    "join": lambda parts, separator="", *_, **__: _join(separator, parts),
}
_NEEDS_LIST = frozenset(("join", "sum", "list", "sort", "unique", "string"))  # what generators are drawn into


def _bounded(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with its estimate before and the scales after it."""
    estimate = _FILTERS.get(name)
    n_passed = 1 if hasattr(filter_, "jinja_pass_arg") else 0  # the context or environment that comes first

    @wraps(filter_)
    def run(*args: Any, **names: Any) -> Any:
        tick()
        if len(args) > n_passed and name in _NEEDS_LIST:
            args = (*args[:n_passed], _drawn(args[n_passed]), *args[n_passed + 1 :])
        if estimate:
            estimate(*args[n_passed:], **names)
        return weighed(filter_(*args, **names))

    return run


def _drawn(value: Any) -> Any:
    """A generator's items as a list, as long as they are not too many; anything else as it is."""
    if not hasattr(value, "__next__"):
        return value
    items: list[Any] = []
    size = 0
    for item in value:
        tick()
        size += weigh(item)
        check_size(size, _WHAT)
        items.append(item)
    return items


def _concatenate(parts: list[Any]) -> str:
    return join(map(str, parts))


class _Watch(NodeTransformer):
    """Puts a tick into every loop, and lists, dicts and `~` on the scales."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        call = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter("concatenate", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _filter("weighed", self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return _filter("weighed", self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter("weighed", node) if node.ctx == "load" else node


def _filter(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, f" {name}", [], [], None, None, lineno=node.lineno)  # the blank: no template can say it


class Names(Namespace):
    """namespace(), without names that Python itself looks for: __html__, __call__, ..."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named self: a template may have a name "self"
        Namespace.__init__(args[0], {_public(name): value for name, value in dict(*args[1:], **kwargs).items()})

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(_public(name), value)


def _public(name: str) -> str:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace can't hold {name!r}")
    return name


class _Dict:
    """dict(), without the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    concat = staticmethod(join)
    tick = staticmethod(tick)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.globals["lipsum"]
        self.globals |= {"dict": _Dict(), "namespace": Names}
        self.filters |= {" concatenate": _concatenate, " weighed": weighed}
        self.filters = {name: _bounded(name, filter_) for name, filter_ in self.filters.items()}

    def add_filter(self, name: str, filter_: Callable[..., Any]) -> None:
        self.filters[name] = _bounded(name, filter_)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Watch().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(max(left.bit_length(), right.bit_length()))
        if operator in _BINARY:
            _BINARY[operator](left, right)
        return weighed(self.binop_table[operator](left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        tick()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | bytes | int) and name in _METHODS:
            if name == "join" and args:
                args = (_drawn(args[0]), *args[1:])
            _METHODS[name](owner, *args, **kwargs)
        return weighed(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **names: Any) -> str:
            _format(value.__self__, *args, **names)
            return wrapped(*args, **names)

        return bounded
