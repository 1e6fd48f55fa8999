"""A zoo of tiny architectures with random weights, each taken through all that the library does.

python -m zoo                 # everything
python -m zoo gpt2 vision     # an architecture, a family
"""
