"""Architectures of libraries at other depths, each held to a rule of names.

The libraries are no requirement of anything here; those that are not installed are left out. They
are best installed without their own requirements, some of which would bring another torch:

pip install --no-deps timm torchvision x-transformers torch-einops-utils diffusers torch_geometric
pip install --no-deps einops einx loguru frozendict xxhash

python -m zoo.libraries            # all of them
python -m zoo.libraries timm       # one library
python -m zoo.libraries hiera      # one architecture
"""
