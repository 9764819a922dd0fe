"""Prompts from a template and the columns of a row.

    Translate to French: {{ english }}        each name is a column
    {{ row["two words"] }}                    `row` has all columns

Templates are rendered in the child processes of `refllm.checkpoints.chat_renderer`, sandboxed and
with limits of time, memory and length.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from refllm.batch.columns import NotText, require_columns
from refllm.checkpoints.chat_renderer import Limits, Renderer
from refllm.errors import InvalidInput

__all__ = ["ROW", "RowTemplate"]

ROW = "row"
# What a template has beside its variables, as `refllm.checkpoints.chat_renderer_child` gives it.
GIVEN = frozenset({"dict", "namespace", "raise_exception", "strftime_now"})
# JSON has no such values; a template gets their text.
WRITTEN = (
    *(datetime.date, datetime.time, datetime.timedelta),  # a datetime is a date
    *(decimal.Decimal, uuid.UUID),
)


@dataclass(frozen=True, slots=True)
class RowTemplate:
    """A Jinja template whose variables are columns.

    Attributes:
        source: The template's text.
        names: The columns that it names, sorted; `row` among them if it uses all.
    """

    source: str
    names: tuple[str, ...]

    @classmethod
    def parsed(cls, source: str) -> RowTemplate:
        """Return the template of a text.

        Raises:
            InvalidInput: For a text that Jinja cannot parse.
        """
        environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
        try:
            names = meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise InvalidInput(
                f"the template cannot be parsed: {error.message} (line {error.lineno})"
            ) from error
        except RecursionError as error:
            raise InvalidInput("the template cannot be parsed: it is nested too deep") from error
        return cls(source, tuple(sorted(names - GIVEN)))

    def columns(self, there: Sequence[str]) -> tuple[str, ...]:
        """Return the columns to read, of those that are there.

        Raises:
            InvalidInput: For a name that is no column.
        """
        if ROW in self.names and ROW not in there:
            require_columns(there, [name for name in self.names if name != ROW], "the template")
            return tuple(there)
        require_columns(there, self.names, "the template names a column that is missing: the input")
        return self.names

    def render(self, row: Mapping[str, object]) -> str:
        """Return the prompt of a row, which may have columns that the template does not name.

        Raises:
            InvalidInput: For a null or bytes in a column that the template names, for a template
                that refuses the row or fails with it, and as `Renderer.render`.
            LlmRuntimeError: As `Renderer.render`.
        """
        for name in self.names:
            if name in row and row[name] is None:
                raise InvalidInput(f"the column {name!r} is null")
        uses_all = ROW in self.names and ROW not in row
        named = row if uses_all else {name: row[name] for name in self.names}
        values = {name: _written(name, value) for name, value in named.items()}
        return _renderer().render(self.source, {**values, ROW: values} if uses_all else values)


@functools.cache
def _renderer() -> Renderer:
    return Renderer(Limits(), template="the template", variables="the row", is_strict=True)


def _written(name: str, value: object) -> object:
    if isinstance(value, NotText):
        raise InvalidInput(f"the column {name!r} is {value.reason}")
    return str(value) if isinstance(value, WRITTEN) else value
