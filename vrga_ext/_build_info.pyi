torch_version: str
compiler: str
cuda_architectures: str
cuda_version: str
cuda_missing: str
source_hash: str
