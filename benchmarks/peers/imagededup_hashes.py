"""imagededup's hashes, each with its default distance: ``encode_images`` and ``find_duplicates``.

It is no dependency of this project: ``README.md`` here says how to install it.

    PYTHON benchmarks/peers/imagededup_hashes.py --photos DIR --pairs OUT.json
"""

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path

try:
    from imagededup.methods import AHash, DHash, PHash, WHash
except ImportError as error:
    sys.exit(f"imagededup can't be imported ({error}); see {__file__.rpartition('/')[0]}/README.md")


def main() -> None:
    """Write, by the name of each hash, the pairs of files that it finds and its seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos alone")
    parser.add_argument("--pairs", type=Path, required=True, metavar="JSON")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    found = {}
    for method in (PHash, DHash, WHash, AHash):
        started = time.perf_counter()
        hasher = method(verbose=False)
        codes = hasher.encode_images(image_dir=options.photos, num_enc_workers=options.workers)
        told = hasher.find_duplicates(encoding_map=codes, num_dist_workers=options.workers)
        pairs = {tuple(sorted((name, other))) for name, others in told.items() for other in others}
        found[method.__name__] = {
            "pairs": sorted(pairs),
            "images": len(codes),
            "seconds": time.perf_counter() - started,
        }
    options.pairs.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
