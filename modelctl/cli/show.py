"""modelctl show"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelctl import config
from modelctl.cli import term
from modelctl.cli.adapters import rule
from modelctl.cli.options import Json, choose_model, open_store
from modelctl.errors import UsageError

if TYPE_CHECKING:
    from modelctl.model import AdapterRef, Model

EXCERPT = 6  # lines of a long text in the overview


def _flag(name: str, help: str) -> Any:
    return typer.Option(f"--{name}", help=help)


def show(
    name: Annotated[str, typer.Argument(metavar="MODEL")] = "",
    modelfile: Annotated[bool, _flag("modelfile", "only a Modelfile that makes it again")] = False,
    parameters: Annotated[bool, _flag("parameters", "only the parameters")] = False,
    template: Annotated[bool, _flag("template", "only the prompt template: its own, or the base's")] = False,
    system: Annotated[bool, _flag("system", "only the system message")] = False,
    license: Annotated[bool, _flag("license", "only the licences")] = False,
    adapters: Annotated[bool, _flag("adapters", "only the adapters, with their default scales")] = False,
    as_json: Json = False,
) -> None:
    """Show what a model is made of."""
    from modelctl.model import Model

    parts: dict[Callable[[Model], None], bool] = {
        _modelfile: modelfile,
        _parameters: parameters,
        _template: template,
        _system: system,
        _license: license,
        _adapters: adapters,
    }
    chosen = [part for part, wanted in parts.items() if wanted]
    if len(chosen) + as_json > 1:
        raise UsageError("show prints one thing at a time", hint="name one of the options only")
    settings = config.load()
    model = Model.load(open_store(settings), name or choose_model(settings, None))
    if as_json:
        term.print_json(_as_json(model))
    else:
        (chosen[0] if chosen else _overview)(model)


def _modelfile(model: Model) -> None:
    term.say(model.modelfile().rstrip("\n"))


def _parameters(model: Model) -> None:
    for name, value in model.parameters.items():
        for one in value if isinstance(value, list) else [value]:
            term.say(f"{name:<20} {one}")


def _template(model: Model) -> None:
    if model.template is None:
        term.note("no TEMPLATE: the base's own Jinja template is used", faint=True)
    term.say(model.template or model.base_info().chat_template or "")


def _system(model: Model) -> None:
    term.say(model.system or "")


def _license(model: Model) -> None:
    term.say("\n\n".join(model.licenses))


def _adapters(model: Model) -> None:
    if not model.adapters:
        term.note(f"{model.name} has no adapters; an ADAPTER line in its Modelfile adds one")
        return
    rows = [_row(ref) for ref in model.adapters]
    term.table(("ID", "NAME", "SCALE", "RANK", "ALPHA", "SIZE", "TARGETS", "SOURCE"), rows)


def _row(ref: AdapterRef) -> tuple[object, ...]:
    alpha = f"{ref.alpha:g}" if ref.alpha else "-"
    targets = ",".join(ref.target_modules) or "-"
    size = term.size(ref.size)
    return ref.index, ref.name, f"{ref.scale:g}", ref.rank or "-", alpha, size, targets, ref.source or "-"


def _overview(model: Model) -> None:
    info = model.base_info()
    _section(
        "Model",
        {
            "architecture": info.architecture,
            "parameters": model.details.parameter_size,
            "quantization": model.details.quantization_level,
            "context length": info.context_length,
            "embedding length": info.embedding_length,
            "size": term.size(model.size),
            "id": model.digest.removeprefix("sha256:")[:12],
        },
    )
    if model.adapters:
        _title("Adapters")
        _adapters(model)
        term.say(rule(model.name, model.default_scales()))
        term.say()
    _section("Parameters", {name: _listed(value) for name, value in model.parameters.items()})
    _text("System", model.system or "")
    _text("Template", model.template or "")
    _section("Messages", {f"{at} {message.role}": message.content for at, message in enumerate(model.messages, 1)})
    _section("Kept, without effect", model.kept)
    _text("License", "\n".join(model.licenses))


def _title(text: str) -> None:
    print(term.bold(text))


def _section(title: str, values: Mapping[str, object]) -> None:
    if not values:
        return
    _title(title)
    width = max(map(len, values))
    for name, value in values.items():
        print(f"  {term.line(name):<{width}}  {term.line(value)}")
    print()


def _listed(value: object) -> str:
    return " ".join(map(repr, value)) if isinstance(value, list) else str(value)


def _text(title: str, text: str) -> None:
    if not text:
        return
    _title(title)
    lines = text.strip().splitlines()
    for line in lines[:EXCERPT]:
        print(f"  {term.line(line)}")
    if len(lines) > EXCERPT:
        print(term.dim(f"  … {len(lines) - EXCERPT} more lines: --{title.lower()}"))
    print()


def _as_json(model: Model) -> dict[str, Any]:
    import msgspec

    whole = {one.name: getattr(model, one.name) for one in dataclasses.fields(model)}
    return {**msgspec.to_builtins(whole, enc_hook=str), "modelfile": model.modelfile()}
