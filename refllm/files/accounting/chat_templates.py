"""What becomes of a model's chat templates: of several, a chat uses one.

Sources: gguf-py 0.19.0 (`GGUFWriter.add_chat_template`), transformers 5.24.0
(`tokenization_utils_base.py`, `_from_pretrained` and `get_chat_template`).
"""

from __future__ import annotations

from refllm.files.accounting.keys import Known

__all__ = ["CHAT_TEMPLATE_JSON", "GGUF_CHAT_TEMPLATES", "UNUSED_TEMPLATE"]

UNUSED_TEMPLATE = "a chat uses another of the model's templates"

GGUF_CHAT_TEMPLATES: Known = {
    "tokenizer.chat_templates": "names of templates, which are in the keys of the templates, too",
    "tokenizer.chat_template": UNUSED_TEMPLATE,
    "tokenizer.chat_template.*": UNUSED_TEMPLATE,
}
"""Keys of a GGUF file's metadata, for what is not read."""

CHAT_TEMPLATE_JSON: Known = {"chat_template": UNUSED_TEMPLATE}
"""Keys of chat_template.json, where another file has a template."""
