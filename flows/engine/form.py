"""The fields of Prefect's forms: the type, the limits and the description of each parameter.

What a person types there is held against these before the run starts.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from flows.errors import FlowError
from flows.job.dates import moment_ns
from flows.settings import Scale


def about(text: str, **limits: Any) -> Any:
    """Return a field with its description.

    Prefect overwrites pydantic's own description by what the flow's docstring says of a parameter
    under "Args:", which our docstrings do not have; what is given here it keeps.
    """
    return Field(json_schema_extra={"description": text}, **limits)


def _moment(text: str) -> str:
    try:
        moment_ns(text)
    except FlowError as error:
        raise ValueError(str(error)) from None
    return text


Text = Annotated[str, Field(min_length=1)]
Moment = Annotated[str, Field(min_length=1), AfterValidator(_moment)]

Roots = Annotated[
    list[Text] | None,
    about("Directories or manifests on the worker's machine; empty: all roots that are known."),
]
KnownRoots = Annotated[
    list[Text] | None,
    about("Known roots, or folders and pictures in one; empty: all roots."),
]
Space = Annotated[
    Text | None,
    about("Space to maintain, or a new one's name; `all`: each. Empty: that of the model."),
]
Model = Annotated[
    Text | None, about("Network, as `lookalike models` lists them. Empty: that of the settings.")
]
Layer = Annotated[
    Text | None, about("fc7, avgpool, logits or any node's name. Empty: the model's own.")
]
Weights = Annotated[
    Text | None, about("DEFAULT, a published name, a file on the worker's machine, random[:SEED].")
]
InputSize = Annotated[
    int | None, about("Side of the network's input, pixels. Empty: the network's own.", ge=1)
]
Pool = Annotated[
    Literal["avg", "max", "gem"] | None,
    about("How feature maps become a vector; without a layer, the last maps. Empty: as it is."),
]
Scales = Annotated[
    list[Scale] | None,
    about("Sizes at which maps are looked at and averaged: 1, 0.7071, 0.5. Empty: one alone."),
]
Relu = Annotated[
    bool | None, about("False: the layer's values before its ReLU. Empty: as the settings say.")
]
Dtype = Annotated[
    Literal["float32", "float16"] | None, about("How a new space stores its vectors.")
]
Device = Annotated[
    Text | None,
    about("auto (all GPUs that are there), cpu, cuda, cuda:N, or several with commas."),
]
Engine = Annotated[
    Literal["auto", "torch", "compile", "onnx"] | None,
    about("What runs forward passes on a CPU. Empty: auto, what pays for itself."),
]
BatchSize = Annotated[
    int | None, about("Images in one forward pass. Empty: by the device's memory.", ge=1)
]
Workers = Annotated[
    int | None, about("Threads that read and decode. Empty: usable cores, at least 2.", ge=1)
]
ChunkSize = Annotated[
    int | None, about("Most images of one commit. Empty: about 30 s of work.", ge=1, le=8192)
]
Globs = Annotated[
    list[Text] | None,
    about("Only files whose path in their root matches one of these: 2019/**, *.png."),
]
Excludes = Annotated[
    list[Text] | None, about("Globs of what is left out of the roots named above, from now on.")
]
Failed = Annotated[bool, about("Only images that failed; they are tried again.")]
Since = Annotated[
    Moment | None,
    about("Only files modified then or later: 2026-11-22, 2026-11-22T14:30, 7d for days ago."),
]
Until = Annotated[Moment | None, about("Only files modified before: as for `since`.")]
IndexSpec = Annotated[
    Text | None, about("FAISS index_factory string; an index is published even if none is due.")
]
MaxFailures = Annotated[
    float | None,
    about("Share of the images that may fail, 0 to 1; more make the run fail.", ge=0, le=1),
]
ConfirmMissing = Annotated[bool, about("Believe that most files of a root are really gone.")]
Runner = Annotated[
    Literal["thread", "dask"] | None,
    about("Where chunks are worked on: this machine, or the workers of a Dask cluster."),
]
Cluster = Annotated[
    Text | None,
    about("With dask: a scheduler's address, a number of local workers, or a YAML file."),
]
HomeDir = Annotated[
    Text | None, about("Directory of the store on the worker's machine. Empty: LOOKALIKE_HOME.")
]
