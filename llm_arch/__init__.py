"""llm_arch: from text to a fine-tuned, reusable BERT- or GPT-class model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llm_arch.task import Task
    from llm_arch.trainer import Trainer

# Imported on first use: `import llm_arch` (and `llm-arch --help`) must not load torch and Lightning.
_LAZY = {"Task": "llm_arch.task", "Trainer": "llm_arch.trainer"}

__all__ = ["Task", "Trainer", "__version__"]


def __getattr__(name: str) -> Any:
    """Load `Task` or `Trainer` when first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'llm_arch' has no attribute {name!r}")
