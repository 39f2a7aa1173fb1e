"""The cases of whole models: prefill, decode step, ``generate``, peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

import vrga_ext
from bench import models
from bench.case import Settings, Unavailable
from bench.implementations import ADAPTER, DYNAMIC, NOT_ENABLED, RELEASED, STATIC
from bench.models import ModelCase
from bench.released import ReleasedWay
from bench.timing import WARM_UP, Sample, seconds_of
from vrga_ext.integrations.transformers.sequence.kv_cache import CacheArgument, returned_cache

_OVERRIDES: dict[str, dict[str, Any]] = {
    ADAPTER: {"gamma": 0.0},
    STATIC: {"gate": "static"},
    DYNAMIC: {"gate": "dynamic", "entropy_factor": 0.05},
}
_RELEASED_ERROR = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}  # of the largest logit


def enabled_model(name: str, case: ModelCase, device: str) -> tuple[Any, Any]:
    """A implementation's model on the weights that all share, and its handle if it has one."""
    model = models.twin(models.build(case.model, case.dtype, device))
    if name == RELEASED:
        return model, ReleasedWay(model, case.question_end)
    handle = None
    if name != NOT_ENABLED:
        end = case.question_end
        handle = vrga_ext.enable(model, question_end=end, **_OVERRIDES[name])
    return model, handle


class Models:
    """One case of a whole model: a model per implementation, on shared weights."""

    def __init__(self, case: ModelCase, settings: Settings) -> None:
        self._case, self._device = case, settings.device
        self._models: dict[str, Any] = {}
        self._caches: dict[str, DynamicCache] = {}
        self._inputs = models.make_prompt(case, settings.device)
        self._logits: Tensor | None = None  # of the model as it was
        self._token = torch.full((case.batch, 1), 99, device=settings.device)

    def check(self, name: str) -> dict[str, Any]:
        """Read the prompt and check what comes out of it."""
        case = self._case
        kept = 2 * models.weights_kept_bytes(case)
        if name == RELEASED and kept > models.free_bytes(self._device):
            raise Unavailable(f"needs about {kept / 1e9:.0f} GB for the weights it keeps")
        model, handle = enabled_model(name, case, self._device)
        self._models[name] = model
        output = self._prefill(name)
        logits = output.logits[:, -1].double()
        if self._logits is None:
            self._logits = logits
        error = ((logits - self._logits).abs().max() / self._logits.abs().max()).item()
        # The prompt itself is never reweighted; only the released way computes it differently.
        limit = _RELEASED_ERROR[case.dtype] if name == RELEASED else 0.0
        assert error <= limit, f"the prompt's logits differ by {error:.3g}, wanted {limit:.3g}"
        self._caches[name] = returned_cache(output)
        extra = {"device": self._device, "error": error}
        if name in (STATIC, DYNAMIC):
            regions = handle.regions
            assert all(region.boosted.numel() for region in regions), "nothing is boosted"
            layers = {layer for region in regions for layer, _ in region.visual_heads}
            every = model.config.get_text_config(decoder=True).num_hidden_layers
            extra["gated_layers"] = every if name == DYNAMIC else len(layers)
        return extra

    def _prefill(self, name: str) -> Any:
        model = self._models[name]
        inputs = CacheArgument(model).put(self._inputs, DynamicCache())
        return model(**inputs, use_cache=True, logits_to_keep=1)


class Prefill(Models):
    """Reading the prompt, image included."""

    def sample(self, name: str) -> Sample:
        """Seconds of a prefill."""
        self._caches.pop(name, None)
        return lambda turn: seconds_of(lambda: self._prefill(name), self._device)


class DecodeStep(Models):
    """One more token; the cache grows by one in every round, for every implementation."""

    def sample(self, name: str) -> Sample:
        """Seconds of a decode step."""
        model = self._models[name]
        step = CacheArgument(model).put({"input_ids": self._token}, self._caches[name])
        return lambda turn: seconds_of(lambda: model(**step, use_cache=True), self._device)


class Generate(Models):
    """``generate`` from the prompt to the last token."""

    def __init__(self, case: ModelCase, settings: Settings, new_tokens: int) -> None:
        super().__init__(case, settings)
        self._new_tokens = new_tokens
        self.extra: dict[str, dict[str, Any]] = {}
        self._first: dict[str, list[float]] = {}
        self._rate: dict[str, list[float]] = {}

    def check(self, name: str) -> dict[str, Any]:
        """As the others; the rates are filled in when the case has been timed."""
        if name == RELEASED and self._case.compiled:
            raise Unavailable("reads results on the host, which cannot be compiled")
        self.extra[name] = super().check(name)
        del self._caches[name]
        return self.extra[name]

    def sample(self, name: str) -> Sample:
        """Seconds of a generation; time to first token and tokens per second on the way."""
        model, case = self._models[name], self._case
        arguments: dict[str, Any] = {"max_new_tokens": self._new_tokens, "do_sample": False}
        arguments["min_new_tokens"] = self._new_tokens
        if case.compiled:
            arguments["cache_implementation"] = "static"
        first: list[float] = []
        rates: list[float] = []

        def sample(turn: int) -> float:
            watch = _Watch()
            total = seconds_of(
                lambda: model.generate(**self._inputs, **arguments, streamer=watch), self._device
            )
            first.append(watch.times[1] - watch.times[0])
            seconds = watch.times[-1] - watch.times[1]
            rates.append(case.batch * (self._new_tokens - 1) / seconds)
            measured = slice(WARM_UP if turn >= WARM_UP else 0, None)
            self.extra[name]["first_token_s"] = _median(first[measured])
            self.extra[name]["tokens_per_second"] = _median(rates[measured])
            return total

        return sample


class _Watch(BaseStreamer):
    """Times at which ``generate`` starts, and hands over each token, already on the host."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]
        self._prompt = True

    def put(self, value: Tensor) -> None:
        if self._prompt:
            self._prompt = False
        else:
            self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left over."""


# glibc raises the size from which it returns freed memory at once as it goes, by chance: peaks of
# the same prefill then differ by a sixth.
_RETURNED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


class PeakMemory:
    """Peak memory of a prefill, each implementation in a process of its own."""

    def __init__(self, case: ModelCase, settings: Settings) -> None:
        self._case, self._settings = case, settings
        self._seconds: dict[str, float] = {}

    def check(self, name: str) -> dict[str, Any]:
        """Run ``bench.memory`` once."""
        kept = 2 * models.weights_kept_bytes(self._case)
        device = self._settings.device
        if name == RELEASED and kept > models.free_bytes(device):
            raise Unavailable(f"needs about {kept / 1e9:.0f} GB for the weights it keeps")
        request = json.dumps(
            {
                "name": name,
                "case": asdict(self._case),
                "device": device,
                "threads": torch.get_num_threads(),
            }
        )
        done = subprocess.run(
            [sys.executable, "-m", "bench.memory", request],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | _RETURNED_AT_ONCE,
        )
        if done.returncode:
            raise RuntimeError(f"bench.memory failed:\n{done.stderr[-2000:]}")
        measured = json.loads(done.stdout.splitlines()[-1])
        self._seconds[name] = measured.pop("seconds")
        return {"device": device} | measured

    def sample(self, name: str) -> Sample:
        """Seconds of the one prefill."""
        return lambda turn: self._seconds[name]


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
