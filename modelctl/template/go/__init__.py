"""Go's text/template, as far as chat templates use it, and the way Ollama runs a conversation through one."""

from modelctl.template.go.chat import GoTemplate, variables
from modelctl.template.go.errors import GoTemplateError

__all__ = ["GoTemplate", "GoTemplateError", "variables"]
