"""What the user brought, after loading: a model, its signature, a metric and the splits.

The test split is not here, on purpose: it travels apart as `SealedSplit`, so that no code that
searches can open it.
"""

from dataclasses import dataclass, field
from typing import Literal

from petra_deploy.core.data import Data

Form = Literal["module", "state_dict", "torchscript", "exported", "onnx"]
BATCH = "batch"  # the name of the symbolic batch dimension, always dimension 0


@dataclass(frozen=True, kw_only=True)
class TensorSpec(Data):
    name: str
    dtype: str  # numpy's name: "float32", "int64", "bool"
    shape: tuple[int | str, ...]  # a string is a symbolic (dynamic) dimension


@dataclass(frozen=True, kw_only=True)
class Signature(Data):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def dynamic_batch(self) -> bool:
        """Whether every input takes any batch size (its first dimension is symbolic)."""
        return all(bool(spec.shape) and isinstance(spec.shape[0], str) for spec in self.inputs)

    @property
    def fixed_batch(self) -> int | None:
        """The one batch size that the model takes; None where no input fixes it."""
        return next((s.shape[0] for s in self.inputs if s.shape and isinstance(s.shape[0], int)), None)


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Data):
    """Which figure judges a candidate. `point` is one metric point in the metric's own unit."""

    name: str  # a name of core/metrics.py, or "file.py:function"
    higher_is_better: bool = True
    needs_labels: bool = True
    bounded: bool = True  # by 1: a point is 0.01; otherwise 1% of the baseline's value
    digest: str = ""  # sha256 of the user's file: changed code is another metric to the cache


@dataclass(frozen=True, kw_only=True)
class Split(Data):
    key: str  # the store entry: a `core.samples.Samples` folder
    rows: int
    labelled: bool
    origin: Literal["data", "random"] = "data"  # random: no data was given


@dataclass(frozen=True, kw_only=True)
class SealedSplit(Data):
    """The test split. Only `confirm` and `apply` are handed it."""

    split: Split


@dataclass(frozen=True, kw_only=True)
class Workload(Data):
    model: str  # the store entry with the model, read by worker/workload
    form: Form
    sha256: str  # of the model file as the user gave it
    name: str
    signature: Signature
    metric: MetricSpec
    train: Split | None  # None: no data to train on
    calibration: Split
    selection: Split
    readable: tuple[str, ...] = ()  # folders that later jobs may read (the user's own code)
    notes: tuple[str, ...] = field(default_factory=tuple)  # what is missing and why; always shown
    lifted: bool = False  # a graph that worker/model/lift makes a module of
    unlifted: str = ""  # why it does not

    @property
    def is_graph(self) -> bool:
        """Whether it came as a graph (TorchScript, .pt2, ONNX): the baseline is that ONNX file, as it is."""
        return self.form in ("torchscript", "exported", "onnx")

    @property
    def has_layers(self) -> bool:
        """Whether there is a module for steps that act on one: the user's, or the lifted graph."""
        return self.lifted or not self.is_graph


@dataclass(frozen=True, kw_only=True)
class Loaded(Data):
    workload: Workload
    sealed: SealedSplit


@dataclass(frozen=True, kw_only=True)
class ModelSource(Data):
    """Where the model is. `path` may be None when `factory` alone makes a trained model."""

    path: str | None
    factory: str | None = None  # "file.py:function" or "package.module:function"
    trust: bool = False  # the user vouches for code inside `path`
    cloudpickled: bool = False  # an object handed to the Python API by this very user


@dataclass(frozen=True, kw_only=True)
class DataSource(Data):
    """Where the data is: one path to split, or the splits apart. All None: no data."""

    path: str | None = None  # .npz, a folder of .npz shards, or workload.py
    train: str | None = None
    selection: str | None = None
    test: str | None = None
    cloudpickled: bool = False  # `path` is an object handed to the Python API


@dataclass(frozen=True, kw_only=True)
class LoadOptions(Data):
    inputs: tuple[str, ...] = ()  # "name:float32[1,3,224,224]", as given
    metric: str | None = None  # None: chosen from the labels, and said in notes
    seed: int = 0
