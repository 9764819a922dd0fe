"""Put the page of a run into the site: the directive `run`.

    ```{run} a-real-head
    :model: tiny-chat
    :view: attention
    :max-tokens: 1

    Once upon a time there lived a girl
    ```

The model runs while Sphinx reads the page, and `refllm.inspect.show` makes the file
`runs/a-real-head.html` of the site, which is shown below the directive and can be opened alone. The
content is the prompt, or for an embedding model a text in each line. Nothing is kept in the
repository, so the pages cannot be older than the code.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

import refllm.inspect
from refllm.errors import LlmError
from refllm.inspect.notebook import SANDBOX

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MAX_BYTES = 3_000_000  # of a file
DEPENDENCIES = Path(refllm.inspect.__file__).parent
FRAME = """<figure class="run">
<iframe src="{address}" title="{title}" sandbox="{sandbox}" allow="clipboard-write" loading="lazy"
 height="{height}"></iframe>
<figcaption><a href="{address}">{title}</a>, {size:.1f} MB; it makes no request.</figcaption>
</figure>"""


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive with Sphinx."""
    app.add_directive("run", RunDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class RunDirective(SphinxDirective):
    """The page of a run, as a file of the site and in a frame."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[Any] = MappingProxyType(
        {
            "model": directives.unchanged_required,
            "view": directives.unchanged_required,
            "value": directives.unchanged_required,
            "beside": directives.unchanged_required,
            **dict.fromkeys(
                ("token", "layer", "head", "seed", "max-tokens", "height"),
                directives.nonnegative_int,
            ),
        }
    )

    def run(self) -> list[nodes.Node]:
        """Run the model, write the file, and return the frame that shows it."""
        if self.env.app.builder.format != "html":
            return []
        for path in DEPENDENCIES.rglob("*.*"):
            if path.suffix in {".py", ".js", ".css", ".html"}:
                self.env.note_dependency(str(path))
        options = {name.replace("-", "_"): value for name, value in self.options.items()}
        show: Callable[..., refllm.inspect.Shown] = refllm.inspect.show
        try:
            shown = show(options.pop("model"), *self.content, **options)
        except LlmError as error:
            raise self.error(str(error)) from error
        data = shown.page.encode()
        if len(data) > MAX_BYTES:
            raise self.error(f"the page has {len(data)} bytes, of at most {MAX_BYTES}")
        file = Path(self.env.app.outdir, "runs", f"{self.arguments[0]}.html")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        frame = FRAME.format(
            address="../" * self.env.docname.count("/") + f"runs/{file.name}",
            title=html.escape(shown.title),
            sandbox=SANDBOX,
            height=shown.height,
            size=len(data) / 1e6,
        )
        return [nodes.raw("", frame, format="html")]
