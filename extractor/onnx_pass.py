"""The forward pass by ONNX Runtime: the network is exported once, and runs as a graph."""

import importlib.util
import os
import tempfile
from typing import Final

import numpy as np
import torch
from torch import nn

from extractor.errors import EngineError
from extractor.passes import Whole
from extractor.preprocess import Preprocess
from extractor.quiet import quieten_translators

NEEDS: Final = ("onnxruntime", "onnxscript")


def check() -> None:
    """Raise ``EngineError`` where the packages are not installed.  Imports none of them."""
    if not all(map(importlib.util.find_spec, NEEDS)):
        raise EngineError("the engine onnx needs more packages: pip install 'lookalike[onnx]'")


class OnnxPass:
    """Runs a network in ONNX Runtime, on the CPU; for any number of pictures.

    Parameters
    ----------
    module
        The network, on the CPU.
    preprocess
        How its input is made; mean and standard deviation become part of the graph.
    threads
        How many threads a pass takes.

    Attributes
    ----------
    least
        How many pictures the graph computes, however few there are.

    Raises
    ------
    Exception
        Whatever the exporter or ONNX Runtime has against the network.
    """

    least = 1

    def __init__(self, module: nn.Module, preprocess: Preprocess, threads: int) -> None:
        import onnxruntime

        quieten_translators()
        self.name = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # Threads that wait for work in a loop would take the cores from those that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with tempfile.TemporaryDirectory(prefix="lookalike-") as folder:
            # By way of a file, since one message holds no more than 2 GB.
            path = os.path.join(folder, "network.onnx")
            _export(Whole(module, preprocess).eval(), preprocess.crop_size, path)
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features; see `extractor.passes.Pass`."""
        try:
            (features,) = self._session.run(["features"], {"pixels": pixels.numpy()})
        except Exception as error:
            if "allocat" in str(error):  # its class says no more than that something failed
                raise MemoryError(str(error)) from None
            raise
        return torch.from_numpy(np.asarray(features, np.float32))

    whatever = __call__


def _export(network: nn.Module, side: tuple[int, int], path: str) -> None:
    example = torch.zeros(2, 3, *side, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(
            network,
            (example,),
            path,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["pixels"],
            output_names=["features"],
            external_data=True,
            optimize=False,  # ONNX Runtime does the same, and faster
            verbose=False,
        )
