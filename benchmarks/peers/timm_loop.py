"""What timm's own inference script does, through timm's public functions.

``create_dataset`` over a folder, ``create_loader`` with its prefetcher and worker processes, one
``model(batch)`` after the other, here with ``num_classes=0`` so that it gives features.  The
network's weights are those that the others have; the transform is timm's, which for this network
resizes and crops as torchvision does.

    python benchmarks/peers/timm_loop.py --photos DIR [--network resnet50] [--weights FILE]
"""

from collections.abc import Callable

import numpy as np
import timm
import torch
from rounds import Vectors, Work, run
from timm.data import create_dataset, create_loader, resolve_data_config


def prepare(work: Work) -> Callable[[], Vectors]:
    """Load the network: that of torchvision's layout where timm has one."""
    torch.manual_seed(0)
    module = timm.create_model(f"{work.network}.tv_in1k", pretrained=False, num_classes=0)
    if work.weights is not None:
        state = torch.load(work.weights, weights_only=True)
        module.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    module.eval()
    config = resolve_data_config({}, model=module)
    dataset = create_dataset("", root=str(work.folder))
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=work.batch,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        num_workers=work.workers,
        device=torch.device("cpu"),
        use_prefetcher=True,
        persistent_workers=False,
    )

    @torch.no_grad()
    def once() -> Vectors:
        return np.concatenate([module(batch).numpy() for batch, _ in loader])

    return once


if __name__ == "__main__":
    run(__doc__, prepare)
