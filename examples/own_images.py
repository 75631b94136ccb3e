"""Print the nearest neighbours of every photograph in a folder: python examples/own_images.py <folder> [<run or bundled model>]"""

import sys

import numpy as np

from twoviews import Embedder

folder, run = [*sys.argv[1:], "simclr-blood_cells-thin32"][:2]
result = Embedder(run, on_bad="skip").embed(folder)
h = result.features / np.linalg.norm(result.features, axis=1, keepdims=True)
for i, name in enumerate(result.names):
    similar = h @ h[i]
    similar[i] = -1  # an image is not its own neighbour
    print(f"{name}: {', '.join(result.names[j] for j in similar.argsort()[::-1][:3])}")
for line in result.skipped:
    print("skipped:", line)
