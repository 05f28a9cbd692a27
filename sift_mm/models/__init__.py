"""Models and data of language, registered in MMEngine's registries."""

from sift_mm.models.gpt import GPT
from sift_mm.models.token_windows import (
    Perplexity,
    TokenCheckHook,
    TokenWindows,
)

__all__ = ['GPT', 'Perplexity', 'TokenWindows', 'TokenCheckHook']
