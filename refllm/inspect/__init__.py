"""See every number of a run: why each token was drawn, and every value that led to it.

    drawing        the draws of a generation, each with what it depended on
    stages         one draw through penalty, temperature, softmax, top-k, top-p: why a token lost
    run            a run that is kept: texts, draws, and every value by llama.cpp's name
    quantization   a block of a weight byte by byte, and the error of each type
    beside         a second run, and where refllm diff finds it apart from the first
    document       all of it as JSON; document.schema.json describes it
    files          the page as one file
    app            the page on loopback, which draws a step again with other parameters
    notebook       the page inside a notebook: `refllm.inspect.show`
    page/          the page itself: plain modules and a style, no build

`refllm explain`, `refllm chat` and `refllm inspect` are its commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refllm.inspect.notebook import Shown, show

__all__ = ["Shown", "show"]


def __getattr__(name: str) -> object:
    """Import what a notebook needs when it is used; `refllm explain` needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module 'refllm.inspect' has no attribute {name!r}")
    from refllm.inspect import notebook

    return getattr(notebook, name)
