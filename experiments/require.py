"""Check that the images and weights of a study are there, before it computes for long.

    python experiments/require.py DATA --get HOW --weights resnet18 --without PART

Weights are downloaded where they are missing and the network can be reached.
"""

from __future__ import annotations

import argparse
import sys

from featkit.backbones.weights import find_weights
from featkit.errors import FeatkitError
from featkit.images import load_images

WEIGHTS_PAGE = "docs/howto/weights.md says where weights are looked for"


def main() -> None:
    """Leave with exit code 1 and one line if something is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="data set, as --data of featkit")
    parser.add_argument("--get", required=True, help="how to get the images")
    parser.add_argument("--weights", action="append", default=[], help="name of a network")
    parser.add_argument("--without", default="", help="what can run without the weights")
    options = parser.parse_args()
    try:
        load_images(options.data)
    except FeatkitError as error:
        sys.exit(f"error: {error}. To get the images: {options.get}")
    for network in options.weights:
        try:
            find_weights(network, "imagenet")
        except FeatkitError as error:
            sys.exit(f"error: {error} ({WEIGHTS_PAGE}). Without them: {options.without}")


if __name__ == "__main__":
    main()
