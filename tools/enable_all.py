"""A pytest plugin that enables VRGA, at gamma = 0, in every transformers model that a test makes.

``transformers_tests.py`` beside it loads the plugin twice: with ``--vrga``, and without, where it
only reports what each test came to.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

import vrga_ext
from vrga_ext.integrations.transformers.call.attention import IMPLEMENTATIONS

counts: dict[str, Counter[str]] = {"enabled": Counter(), "refused": Counter(), "read": Counter()}
_depth = 0  # of what makes or enables models, inside each other


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vrga", action="store_true", help="enable VRGA in every model")
    parser.addoption("--outcomes", type=Path, required=True, help="JSON file to write")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes(config.getoption("--outcomes")))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Wrap what makes models, once the tests' modules have imported their classes."""
    if session.config.getoption("--vrga"):
        base: Any = PreTrainedModel
        for model_class in set(_subclasses(base)):  # an inherited constructor is outermost, too
            model_class.__init__ = _enabling_init(model_class.__init__)
        base.from_pretrained = classmethod(_enabling_loader(base.from_pretrained.__func__))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Start every test from the same random numbers, which transformers' tests do not."""
    transformers.set_seed(0)
    common = sys.modules.get("tests.test_modeling_common")
    if common is not None:
        common.global_rng.seed(0)


class Outcomes:
    """Writes down what every test came to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes: dict[str, str] = {}
        self._errors: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of the phases and subtests of a test the worst counts."""
        outcome = report.outcome
        if outcome == "failed":
            self._errors[report.nodeid] = report.longreprtext
        ranks = ("passed", "skipped", "failed")
        before = self._outcomes.get(report.nodeid, "passed")
        self._outcomes[report.nodeid] = max(before, outcome, key=ranks.index)

    def pytest_sessionfinish(self) -> None:
        found = {"outcomes": self._outcomes, "errors": self._errors, **counts}
        self._path.write_text(json.dumps(found))


def _subclasses(kind: Any) -> Iterator[Any]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


@contextlib.contextmanager
def _inside() -> Iterator[bool]:
    """Whether nothing else makes or enables a model around this block."""
    global _depth
    _depth += 1
    try:
        yield _depth == 1
    finally:
        _depth -= 1


def _enabling_init(init: Any) -> Any:
    """A constructor whose model is enabled at its end, unless it is a part of another one.

    It gets a configuration of its own, as enabled models need it: tests make several of one.
    """

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        with _inside() as outermost:
            if outermost:
                args = tuple(_own(value) for value in args)
                kwargs = {name: _own(value) for name, value in kwargs.items()}
            init(self, *args, **kwargs)
            if outermost:
                _enable(self)

    return wrapped


def _own(argument: Any) -> Any:
    """A copy of a configuration, as it was before VRGA; any other argument as it is."""
    if not isinstance(argument, PreTrainedConfig):
        return argument
    config = copy.deepcopy(argument)
    text_config = config.get_text_config(decoder=True)
    for stock, ours in IMPLEMENTATIONS.items():
        if text_config._attn_implementation == ours:
            text_config._attn_implementation = stock
    return config


def _enabling_loader(load: Any) -> Any:
    @functools.wraps(load)
    def wrapped(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with _inside() as outermost:
            loaded = load(cls, *args, **kwargs)
            if outermost:
                _enable(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    return wrapped


def _enable(model: Any) -> None:
    name = type(model).__name__
    try:
        handle = vrga_ext.enable(model, gamma=0.0)
    except ValueError as error:
        counts["refused"][f"{name}: {error}"] += 1
    else:
        counts["enabled"][name] += 1
        handle.region_hook = _count


def _count(sample: int, region: vrga_ext.Region) -> vrga_ext.Region:
    """A hook of the handle: counts rows of prompts whose heads and tokens were chosen."""
    counts["read"]["rows"] += 1
    return region
