"""imagededup's CNN encoder, as its documentation calls it: ``CNN().encode_images(image_dir=...)``.

Its documented ``CustomModel`` gives it the network that the others have, since the weights of its
own (MobileNet v3) would be downloaded.  It does not ask for ``--batch``: it always takes 64.  It is
no dependency of this project: ``README.md`` here says how to install it.

    PYTHON benchmarks/peers/imagededup_cnn.py --photos DIR [--network resnet50] [--weights FILE]
"""

import logging
import sys
from collections.abc import Callable

import numpy as np
from rounds import Vectors, Work, headless, preset, run

try:
    from imagededup.methods import CNN
    from imagededup.utils import CustomModel
except ImportError as error:
    sys.exit(f"imagededup can't be imported ({error}); see {__file__.rpartition('/')[0]}/README.md")


def prepare(work: Work) -> Callable[[], Vectors]:
    """Load the network."""
    logging.disable(logging.INFO)
    module = headless(work.network, work.weights)
    custom = CustomModel(name=work.network, model=module, transform=preset())
    encoder = CNN(verbose=False, model_config=custom)

    def once() -> Vectors:
        found = encoder.encode_images(image_dir=work.folder, num_enc_workers=work.workers)
        return np.stack([found[path.name] for path in work.photos])

    return once


if __name__ == "__main__":
    run(__doc__, prepare)
