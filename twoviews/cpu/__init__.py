"""The optional C++ fast path for CPUs: it replaces parts of built objects and computes the same values.

`views.maker` replaces the views' function, `resnet.use_fast_path` the blocks of a ResNet. Only `build.py` imports this
package; without it, or without a C++ compiler, everything runs in plain PyTorch.
"""
