"""The legacy loop's last run: a template up to its {{ .Response }}, where the model goes on."""

from __future__ import annotations

from dataclasses import replace

from modelctl.template.go.nodes import Action, Branch, Call, Node, Tree, names


def cut(trees: dict[str, Tree]) -> dict[str, Tree]:
    """The trees less everything that comes after the action that prints .Response.

    Only printing counts, so `{{ if .Response }}` cuts nothing. A template that is called and prints the response is
    cut inside, and its caller behind the call. Nothing is cut when the prompt would go with it.
    """
    cutter = _Cutter(trees)
    cutter.tree("")
    return cutter.trees if _has_prompt(cutter.trees) == _has_prompt(trees) else trees


def _has_prompt(trees: dict[str, Tree]) -> bool:
    return any("Prompt" in names(tree.body) for tree in trees.values())


class _Cutter:
    def __init__(self, trees: dict[str, Tree]) -> None:
        self.trees = dict(trees)
        self.seen: set[str] = set()

    def tree(self, name: str) -> bool:
        """Cut the tree in place; whether there was anything to cut at."""
        if name in self.seen:
            return False
        self.seen.add(name)
        body, found = self.body(self.trees[name].body)
        if found:
            self.trees[name] = replace(self.trees[name], body=body)
        return found

    def body(self, nodes: tuple[Node, ...]) -> tuple[tuple[Node, ...], bool]:
        for i, node in enumerate(nodes):
            kept, found = self.node(node)
            if found:
                return (*nodes[:i], kept), True
        return nodes, False

    def node(self, node: Node) -> tuple[Node, bool]:
        if isinstance(node, Action):
            return node, not node.pipe.variables and "Response" in names((node,))
        if isinstance(node, Call):
            return node, self.tree(node.name)
        if isinstance(node, Branch):
            return self.branch(node)
        return node, False

    def branch(self, node: Branch) -> tuple[Node, bool]:
        body, found = self.body(node.body)
        if found:
            return replace(node, body=body, orelse=()), True
        orelse, found = self.body(node.orelse)
        return replace(node, orelse=orelse), found
