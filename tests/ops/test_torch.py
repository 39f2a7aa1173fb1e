"""As PyTorch operations: schema, fakes, compilation, errors, fallback, autograd."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from importlib.metadata import version

import pytest
import torch
from torch.autograd import forward_ad

import vrga_ext
from tests.ops.cases import DTYPES, attention_case
from vrga_ext import ops, reference

GATE = ("dynamic", 1.5, 1.0, 0.6, 0.2)


def packed_arguments(dtype):
    case = attention_case(batch=2, keys=50, dim=16, mask="bias", some_heads=True, dtype=dtype)
    t = case.tensors
    scores = (t["query"] @ t["key"].repeat_interleave(4, 1).mT).contiguous()
    attention = (t["query"], t["key"], t["value"], t["key_flags"], t["attn_mask"], t["heads"])
    row = (t["query"][:, :, 0], t["key"], t["key_flags"], None)
    return {
        "decode_attention": (*attention, 0.25, 0.0, *GATE),
        "row_statistics": (*row, 0.25, 0.0),
        "reweighted_softmax": (scores, t["key_flags"], t["heads"], *GATE),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["decode_attention", "row_statistics", "reweighted_softmax"])
def test_opcheck(name, dtype):
    op = getattr(torch.ops.vrga_ext, name).default
    report = torch.library.opcheck(op, packed_arguments(dtype)[name])
    assert set(report.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", ["decode_attention", "row_statistics", "reweighted_softmax"])
def test_fake_has_the_layout_of_the_kernel(name):
    arguments = packed_arguments(torch.bfloat16)[name]
    real = getattr(torch.ops.vrga_ext, name)(*arguments)
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    fake = getattr(torch.ops.vrga_ext, name)(*meta)
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.stride(), r.dtype) == (f.shape, f.stride(), f.dtype)


def test_compiles_without_a_graph_break():
    case = attention_case(keys=60, mask="bias")

    def step(query, key, value, key_flags, attn_mask):
        result = ops.decode_attention(query * 1.0, key, value, key_flags, attn_mask=attn_mask)
        rows = ops.row_statistics(query[:, :, 0], key, key_flags)
        soft = ops.reweighted_softmax(query @ key.repeat_interleave(4, 1).mT, key_flags)
        return result.output + 1, result.gate, rows.statistics.image_ratio, soft.probabilities

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    arguments = tuple(case.tensors.values())
    for actual, expected in zip(compiled(*arguments), step(*arguments), strict=True):
        torch.testing.assert_close(actual, expected)


def good():
    case = attention_case(keys=20, dim=8)
    return dict(case.tensors)


BAD = {
    "query: wanted [B, Hq, Sq, D], got [8, 1, 8]": {"query": lambda t: t[0]},
    "query: wanted [B, Hq, Sq, D], got []": {"query": lambda t: t[0, 0, 0, 0]},
    "query: wanted a floating dtype, got torch.int64": {"query": lambda t: t.long()},
    "key: wanted [1, 'Hkv', 'Skv', 8], got [1, 2, 20, 7]": {"key": lambda t: t[..., :7]},
    "key: wanted a number of heads that divides 8, got 3": {
        "key": lambda t: t[:, :1].expand(-1, 3, -1, -1),
        "value": lambda t: t[:, :1].expand(-1, 3, -1, -1),
    },
    "key: wanted torch.float32, got torch.float16": {"key": lambda t: t.half()},
    "value: wanted [1, 2, 20, 'Dv'], got [1, 2, 19, 8]": {"value": lambda t: t[:, :, 1:]},
    "value: wanted torch.float32, got torch.float64": {"value": lambda t: t.double()},
    "key_flags: wanted torch.uint8, got torch.bool": {"key_flags": lambda t: t.bool()},
    "key_flags: wanted [1, at most 20], got [1, 40]": {"key_flags": lambda t: t.repeat(1, 2)},
    "attn_mask: wanted one of bool, float32, bfloat16, float16, float64, got torch.int64": {
        "attn_mask": lambda _: torch.ones(20, dtype=torch.long)
    },
    "attn_mask: wanted one of bool, float32, bfloat16, float16, float64, got torch.float8_e4m3fn": {
        "attn_mask": lambda _: torch.ones(20).to(torch.float8_e4m3fn)
    },
    "attn_mask: wanted a shape that broadcasts to [1, 8, 1, 20] with a full last dimension, "
    "got [1, 1]": {"attn_mask": lambda _: torch.ones(1, 1)},
    "heads: wanted torch.bool, got torch.uint8": {
        "heads": lambda _: torch.ones(1, 8, dtype=torch.uint8)
    },
    "heads: wanted [1, 8], got [8]": {"heads": lambda _: torch.ones(8, dtype=torch.bool)},
    "gate: wanted 'static' or 'dynamic', got 'open'": {"gate": lambda _: "open"},
    "focus_weight: wanted >= 0 and finite as float32, got -1.0": {"focus_weight": lambda _: -1.0},
    "image_weight: wanted >= 0 and finite as float32, got 1e+39": {"image_weight": lambda _: 1e39},
    "softcap: wanted >= 0, got -2.0": {"softcap": lambda _: -2.0},
    "gate: wanted str, got int": {"gate": lambda _: 5},
    "softcap: wanted float, got str": {"softcap": lambda _: "a"},
    "heads: wanted Optional[Tensor], got list": {"heads": lambda _: [True]},
    "key: wanted a tensor, got None": {"key": lambda _: None},
    "key_flags: wanted a tensor, got None": {"key_flags": lambda _: None},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    arguments = good()
    for name, change in BAD[message].items():
        arguments[name] = change(arguments.get(name))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        ops.decode_attention(**arguments)
    assert str(error.value) == message


def test_bad_input_is_named_while_compiling():
    """The fakes check it, since no kernel runs to refuse it."""
    arguments = good()
    compiled = torch.compile(
        lambda **x: ops.decode_attention(**x).output, fullgraph=True, dynamic=False, backend="eager"
    )
    assert compiled(**arguments).isfinite().all()
    arguments["value"] = arguments["value"][:, :, 1:]
    with pytest.raises(Exception, match=r"value: wanted \[1, 2, 20, .*\], got \[1, 2, 19, 8\]"):
        compiled(**arguments)


def test_the_operation_checks_for_itself():
    """Called past the Python layer, the same input is refused by the C++ one."""
    q, k, v, flags, mask, heads, *rest = packed_arguments(torch.float32)["decode_attention"]
    call = torch.ops.vrga_ext.decode_attention
    with pytest.raises(RuntimeError, match=r"key: wanted \[2, .*, 16\], got \[2, 2, 50, 8\]"):
        call(q, k[..., :8], v, flags, mask, heads, *rest)
    with pytest.raises(RuntimeError, match=r"key_flags: wanted torch\.uint8, got torch\.bool"):
        call(q, k, v, flags.bool(), mask, heads, *rest)
    with pytest.raises(RuntimeError, match=r"query: wanted torch\.float32, .*, got torch\.float64"):
        call(q.double(), k, v, flags, mask, heads, *rest)
    with pytest.raises(RuntimeError, match="gate: wanted 'static' or 'dynamic', got 'open'"):
        call(q, k, v, flags, mask, heads, 0.25, 0.0, "open", *GATE[1:])


def test_gradients_are_refused_by_name():
    arguments = good()
    arguments["value"].requires_grad_()
    with pytest.raises(ValueError, match=r"value: wanted a tensor that does not require grad"):
        ops.decode_attention(**arguments)
    with torch.no_grad():
        assert ops.decode_attention(**arguments).output.isfinite().all()


def test_tangents_are_refused_by_name():
    """Forward-mode derivatives would be 0 otherwise."""
    arguments = good()
    with forward_ad.dual_level():
        arguments["key"] = forward_ad.make_dual(arguments["key"], torch.ones_like(arguments["key"]))
        with pytest.raises(ValueError, match=r"key: wanted a tensor without a tangent"):
            ops.decode_attention(**arguments)


def test_the_reference_compiles_without_a_graph_break(monkeypatch):
    """What runs there is said while the call is traced."""
    monkeypatch.setattr(ops, "_warned", set())
    arguments = good()
    for name in ("query", "key", "value"):
        arguments[name] = arguments[name].double()
    compiled = torch.compile(
        lambda **x: ops.decode_attention(**x).output, fullgraph=True, backend="eager"
    )
    with pytest.warns(UserWarning, match="no kernel for torch.float64"):
        output = compiled(**arguments)
    assert torch.equal(output, reference.decode_attention(**arguments).output)


def test_results_of_the_reference_have_the_layout_of_the_kernels():
    case = attention_case(batch=2, keys=20, dim=8)
    t, query = case.tensors, case.tensors["query"]
    calls = {
        "decode_attention": (query, t["key"], t["value"], t["key_flags"]),
        "row_statistics": (query[:, :, 0], t["key"], t["key_flags"]),
        "reweighted_softmax": (torch.zeros(2, 8, 1, 20), t["key_flags"]),
    }
    for name, arguments in calls.items():
        ours, theirs = getattr(ops, name)(*arguments), getattr(reference, name)(*arguments)
        assert type(ours) is type(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
        doubled = [x.double() if x.is_floating_point() else x for x in arguments]
        for tensor in getattr(reference, name)(*doubled):
            assert tensor.dtype == torch.float64


def test_float64_runs_on_the_reference_with_one_warning(monkeypatch):
    monkeypatch.setattr(ops, "_warned", set())
    arguments = attention_case(keys=20, dim=8).arguments(torch.float64)
    with pytest.warns(UserWarning, match=r"no kernel for torch.float64; using vrga_ext.reference"):
        result = ops.decode_attention(**arguments)
    assert torch.equal(result.output, reference.decode_attention(**arguments).output)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.decode_attention(**arguments)


def test_the_level_is_chosen_by_the_environment():
    def level_of(name):
        code = "from vrga_ext import ops; print(ops.simd_level())"
        return subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"VRGA_EXT_SIMD": name},
            capture_output=True,
            text=True,
            check=False,
        )

    assert level_of("generic").stdout.strip() == "generic"
    refused = level_of("mmx")
    assert refused.returncode != 0
    assert "VRGA_EXT_SIMD: wanted one of generic" in refused.stderr
    assert "got 'mmx'" in refused.stderr


def test_an_unknown_level_is_refused():
    before = ops.simd_level()
    with pytest.raises(ValueError, match=r"level: wanted one of generic.*, got 'sse9'"):
        ops.simd_level("sse9")
    assert ops.simd_level() == before


def test_build_info():
    from vrga_ext.build_facts import build_info

    info = build_info()
    assert info.version == vrga_ext.__version__ == version("vrga_ext")
    assert info.simd in info.simd_compiled
    assert info.torch_running == torch.__version__
    assert info.threads == torch.get_num_threads()
    assert bool(info.cuda_architectures) != bool(info.cuda_missing)
    assert info.compiler in str(info)
