"""The examples in the package's docstrings are run, and give what they print."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import refllm

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(refllm.__path__, "refllm.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_every_example_of_a_module_gives_what_it_prints(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"np": np}, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_package_has_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [
        test.name
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    ]
    assert "refllm.sampling.top_p" in found
