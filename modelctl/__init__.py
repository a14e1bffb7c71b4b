"""modelctl: one base model, many LoRA adapters, rescaled live."""

__version__ = "0.1.0"
