"""The page's files, and the page as one file that needs no server and asks for nothing.

The single file has the style, the modules as one script, and the document, deflated. Its
Content-Security-Policy allows that style and that script by their SHA-256, and no request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["MODULES", "PAGE", "TYPES", "single_file"]

PAGE = Path(__file__).parent / "page"
# In the order of their imports: each imports only modules before it.
MODULES = (
    *("dom.js", "data.js", "state.js", "colors.js", "numbers.js"),
    *("tokens.js", "sampling.js", "attention.js", "lens.js", "block.js", "quantization.js"),
    *("embeddings.js", "beside.js", "main.js"),
)
TYPES: Mapping[str, str] = MappingProxyType(
    {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
)
IMPORT = re.compile(r"^import \{[^}]*\} from \"\./[a-z]+\.js\";\n", re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?function|const|class)", re.MULTILINE)
HEAD = re.compile(r"<!-- live -->.*?<!-- /live -->\n", re.DOTALL)


def single_file(document: Mapping[str, Any], *, at: Mapping[str, str | int] | None = None) -> str:
    """Return the page of a document as one HTML file.

    Args:
        document: From `refllm.inspect.document.document_of`, with its arrays.
        at: Where the page is opened: its "view", "token", "layer", "head" and "value".
    """
    style = (PAGE / "style.css").read_text("utf-8")
    modules = [(PAGE / name).read_text("utf-8") for name in MODULES]
    script = "".join(EXPORT.sub("", IMPORT.sub("", module)) for module in modules)
    arrays = {name: array["data"] for name, array in document["arrays"].items() if array["data"]}
    shapes = {name: {**array, "data": None} for name, array in document["arrays"].items()}
    small = json.dumps({**document, "arrays": shapes}, ensure_ascii=False, allow_nan=False)
    deflated = base64.b64encode(zlib.compress(small.encode(), 9)).decode("ascii")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
        f"<style>{style}</style>\n"
        f'<script type="text/plain" id="document">{deflated}</script>\n'
        f'<script type="application/json" id="arrays">{json.dumps(arrays)}</script>\n'
    )
    page = (PAGE / "index.html").read_text("utf-8")
    page = HEAD.sub(lambda _: head, page)
    place = "".join(f' data-{key}="{html.escape(str(x))}"' for key, x in (at or {}).items())
    page = page.replace("<body>", f"<body{place}>")
    return page.replace("</body>", f'<script type="module">{script}</script>\n</body>')


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"
