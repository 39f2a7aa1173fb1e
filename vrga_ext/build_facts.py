"""Facts about the compiled operations, and which of them run on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import vrga_ext
from vrga_ext import _sources, ops


@dataclass(frozen=True)
class BuildInfo:
    """Facts about the installed native build.

    Attributes
    ----------
    version : str
        Of vrga_ext.
    torch_built : str
        Version of torch whose headers the operations were compiled against.
    torch_running : str
        Version of torch that is imported.
    compiler : str
        Name and version of the C++ compiler.
    simd : str
        Instruction set that the CPU kernels use.
    simd_compiled : tuple of str
        Instruction sets that were compiled, in ascending order; one in brackets cannot run here.
    threads : int
        ``torch.get_num_threads()``.
    cuda_architectures : tuple of str
        Compute capabilities that the CUDA kernels were compiled for; empty without CUDA kernels.
    cuda_version : str, optional
        Version of the toolkit that compiled the CUDA kernels; None without them.
    cuda_missing : str, optional
        Why there are no CUDA kernels; None where there are.
    sources : str, optional
        Hash of ``csrc/`` when it was compiled; None for builds older than the hash.
    sources_differ : str, optional
        Says that ``csrc/`` of this clone has changed since, and what to do; None otherwise.

    Examples
    --------
    >>> str(build_info()).splitlines()[0].split()[0]
    'vrga_ext'
    """

    version: str
    torch_built: str
    torch_running: str
    compiler: str
    simd: str
    simd_compiled: tuple[str, ...]
    threads: int
    cuda_architectures: tuple[str, ...]
    cuda_version: str | None
    cuda_missing: str | None
    sources: str | None
    sources_differ: str | None

    def __str__(self) -> str:
        cuda = f"none ({self.cuda_missing})"
        if self.cuda_architectures:
            cuda = f"{' '.join(self.cuda_architectures)} (CUDA {self.cuda_version})"
        lines = {
            "vrga_ext": self.version,
            "torch": f"{self.torch_running} (built against {self.torch_built})",
            "compiler": self.compiler,
            "SIMD": f"{self.simd} (compiled: {' '.join(self.simd_compiled)})",
            "threads": str(self.threads),
            "CUDA": cuda,
            "sources": self.sources_differ or self.sources or "unknown",
        }
        return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


def build_info() -> BuildInfo:
    """Facts about the compiled operations.

    Returns
    -------
    BuildInfo
        Versions, compiler, instruction sets, CUDA architectures or why there are none, sources.

    Examples
    --------
    >>> build_info().simd_compiled[0]
    'generic'
    """
    from vrga_ext import _build_info as facts

    return BuildInfo(
        version=vrga_ext.__version__,
        torch_built=facts.torch_version,
        torch_running=torch.__version__,
        compiler=facts.compiler,
        simd=ops.simd_level(),
        simd_compiled=tuple(torch.ops.vrga_ext._simd_levels().split()),
        threads=torch.get_num_threads(),
        cuda_architectures=tuple(facts.cuda_architectures.replace(";", " ").split()),
        cuda_version=facts.cuda_version or None,
        cuda_missing=facts.cuda_missing or None,
        sources=_sources.compiled_hash(),
        sources_differ=_sources.difference(),
    )
