"""The page of a run inside a notebook.

The page is the attribute `srcdoc` of an iframe. An address of type data: cannot hold it: Chromium
opens none above 2 MiB, and the page of 60 tokens has more. One of type blob: needs a script in the
notebook, which notebooks do not run in a saved output. So the saved notebook shows the page as it
is, without a server and without refllm.

The iframe is a sandbox: the page's script can neither read the notebook nor run its cells, because
it has an origin of its own. It may make a file to download, and may copy numbers where the browser
allows that.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from refllm.engine import LocalEngine
from refllm.errors import InvalidInput
from refllm.inspect.beside import is_trace, run_beside
from refllm.inspect.document import document_of
from refllm.inspect.files import single_file
from refllm.inspect.run import run_of
from refllm.interface import InferencingParams
from refllm.models.load import LlamaModel

__all__ = ["VIEWS", "Shown", "View", "show"]

View: TypeAlias = Literal[
    "tokens", "sampling", "attention", "lens", "block", "quantization", "embeddings", "beside"
]
VIEWS = MappingProxyType(
    {
        "tokens": "Tokens",
        "sampling": "Sampling",
        "attention": "Attention",
        "lens": "Layers",
        "block": "Inside a block",
        "quantization": "Quantization",
        "embeddings": "Embeddings",
        "beside": "Two runs",
    }
)
"""The views of the page by their names, with their titles."""

ARRAY_BYTES = 2_600_000  # as in the file of `refllm inspect --html`
SANDBOX = "allow-scripts allow-downloads"


@dataclass(frozen=True, slots=True)
class Shown:
    """A page that a notebook shows as the result of a cell.

    Attributes:
        page: The page: HTML that needs no other file.
        title: What the frame is called by a screen reader.
        height: The height of the frame in pixels.
    """

    page: str = field(repr=False)
    title: str
    height: int

    def _repr_html_(self) -> str:
        """Return the frame, as Jupyter asks for it.

        Characters beyond ASCII are references: the hash by which the page allows its script is that
        of UTF-8, and the text of a `srcdoc` is in the encoding of the page around it.
        """
        page = html.escape(self.page).encode("ascii", "xmlcharrefreplace").decode("ascii")
        return (
            f'<iframe srcdoc="{page}" title="{html.escape(self.title)}" '
            f'sandbox="{SANDBOX}" allow="clipboard-write" loading="lazy" '
            f'width="100%" height="{self.height}"></iframe>'
        )


def show(
    model: str | Path,
    *texts: str,
    view: View = "tokens",
    token: int | None = None,
    layer: int = 0,
    head: int = 0,
    value: str | None = None,
    beside: str | Path | None = None,
    max_tokens: int | None = None,
    params: InferencingParams | None = None,
    seed: int | None = None,
    profile: str | None = None,
    numerics: str = "exact",
    height: int = 720,
) -> Shown:
    """Run a model, and return the page of `refllm inspect` for a notebook.

    It needs no extra: the page is a file, and no server.

    Args:
        model: A name or path, as `LocalEngine.load`.
        texts: The prompt; for an embedding model one text or several. Without one, an example.
        view: The view that is open at first, one of `VIEWS`.
        token: The token that is chosen at first, from 0; without it the first one that was drawn.
        layer: The layer that is chosen at first.
        head: The head that is chosen at first.
        value: The value that is chosen at first inside a block, such as "Qcur-0#2"; its layer is
            `layer`.
        beside: A second run for the view "beside", as `refllm diff` takes it: MODEL@int8,
            MODEL@PROFILE, another model, or a trace's file, whose text and parameters are then run.
        max_tokens: Where the text ends, 20 by default; `params` has its own limit.
        params: The interface's parameters.
        seed: The seed of the random numbers, 0 by default.
        profile: The order of the sampling stages; by default "contract", or that of a trace beside
            it.
        numerics: "exact" or "int8".
        height: The height of the frame in pixels.

    Raises:
        InvalidInput: For a view that the page does not have, a token, layer, head or value that
            the run does not have, a text that is not str, what a trace beside it has already, and
            as `run_of` and `run_beside`.
        ModelNotSupported: As `LocalEngine.load`.
        LlmRuntimeError: As `run_of` and `run_beside`.

    Example:
        >>> shown = show("tiny-chat", "Once upon", view="attention", max_tokens=1)
        >>> shown._repr_html_()[:31]
        '<iframe srcdoc="&lt;!doctype ht'
    """
    if view not in VIEWS:
        raise InvalidInput(f"unknown view {view!r:.80}; use one of {', '.join(VIEWS)}")
    if view == "beside" and beside is None:
        raise InvalidInput('the view "beside" needs a second run: beside="tiny-chat@int8"')
    if params is not None and max_tokens is not None:
        raise InvalidInput("give max_tokens inside params, or alone")
    if others := [text for text in texts if not isinstance(text, str)]:
        raise InvalidInput(
            f"a text must be str, got {type(others[0]).__name__}; give each as an argument of its "
            "own"
        )
    given = [
        label
        for label, x in (("max_tokens", max_tokens), ("params", params), ("seed", seed))
        if x is not None
    ]
    asked = params or InferencingParams(max_tokens=20 if max_tokens is None else max_tokens)
    name, spec, second = str(model), None if beside is None else str(beside), None
    engine_of = partial(LocalEngine, numerics=numerics, compiles_apart=True)
    if spec is None:
        engine = engine_of(seed=seed or 0, profile=profile or "contract")
        run = run_of(engine, model, texts, asked, name=name)
    else:
        if given and is_trace(spec):
            raise InvalidInput(f"{spec} is a trace, which has its own {', '.join(given)}")
        run, second = run_beside(
            engine_of,
            model,
            texts,
            asked,
            name=name,
            spec=spec,
            seed=seed or 0,
            profile=profile,
            numerics=numerics,
        )
    config = run.model.config
    if view == ("embeddings" if isinstance(run.model, LlamaModel) else "sampling"):
        raise InvalidInput(f"{name} has no view {view!r}")
    for label, x, n in (
        ("token", token, len(run.token_ids[0])),
        ("layer", layer, config.n_layers),
        ("head", head, config.n_heads),
    ):
        if x is not None and not 0 <= x < n:
            raise InvalidInput(f"{label} must be from 0 to {n - 1}, got {x}")
    if value is not None and f"0/{value}" not in run.values:
        raise InvalidInput(f"{name} has no value {value!r:.80}, such as l_out-{layer}")
    document = document_of(run, n_array_bytes=ARRAY_BYTES, beside=second)
    place: dict[str, str | int] = {"view": view, "layer": layer, "head": head}
    place |= {k: v for k, v in (("token", token), ("value", value)) if v is not None}
    page = single_file(document, at=place)
    return Shown(page, f"{VIEWS[view]} of {name}, by refllm inspect", height)
