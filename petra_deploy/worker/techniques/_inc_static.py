"""Static INT8 for ONNX Runtime, registered at Intel Neural Compressor's own seams.

INC's `prepare` and `convert` look up an algorithm by the name of the configuration they are given.
`OrtStaticConfig` is INC's INT8StaticQuantConfig under a new name; the algorithm is INC's PT2E
quantizer with two methods replaced: which nodes are annotated (`_ort_annotations.py`), and
folding of the weights into int8, which INC leaves off.
"""

import dataclasses
from typing import Any

import torch
from neural_compressor.common.base_config import register_config
from neural_compressor.torch.algorithms.pt2e_quant.core import W8A8PT2EQuantizer
from neural_compressor.torch.algorithms.pt2e_quant.pt2e_compat import convert_pt2e
from neural_compressor.torch.algorithms.pt2e_quant.utility import create_quant_spec_from_config
from neural_compressor.torch.quantization import INT8StaticQuantConfig
from neural_compressor.torch.utils import register_algo
from torch.fx import GraphModule
from torchao.quantization.pt2e import MinMaxObserver

from petra_deploy.worker.techniques._ort_annotations import OrtQuantizer

NAME = "ort_static_quant"


class OrtStaticConfig(INT8StaticQuantConfig):  # type: ignore[misc]
    """INC's arguments, and: `reduce_range` (7-bit weights), `lstm`, `skip_head`, `keep_float` (see Options)."""

    name = NAME

    def __init__(
        self, *, reduce_range: bool = False, lstm: bool = True, skip_head: bool = False,
        keep_float: tuple[str, ...] = (), **arguments: Any,
    ) -> None:  # fmt: skip
        super().__init__(**arguments)
        self.reduce_range = reduce_range
        self.lstm = lstm
        self.skip_head = skip_head
        self.keep_float = keep_float


class OrtStaticQuantizer(W8A8PT2EQuantizer):  # type: ignore[misc]
    @staticmethod
    def update_quantizer_based_on_quant_config(config: Any = None) -> OrtQuantizer:
        config = config or OrtStaticConfig()
        activation = create_quant_spec_from_config(
            config.act_dtype, config.act_sym, config.act_granularity, config.act_algo
        )
        if config.act_algo == "minmax":  # INC's moving average hardly looks beyond the first batch
            activation = dataclasses.replace(activation, observer_or_fake_quant_ctr=MinMaxObserver)
        weight = create_quant_spec_from_config(config.w_dtype, config.w_sym, config.w_granularity, config.w_algo)
        low, high = (-64, 63) if config.reduce_range else (-127, 127)
        weight = dataclasses.replace(weight, quant_min=low, quant_max=high)
        return OrtQuantizer(
            activation, weight, lstm=config.lstm, skip_head=config.skip_head, keep_float=config.keep_float
        )

    def convert(self, model: GraphModule, *_: Any, **__: Any) -> GraphModule:
        converted: GraphModule = convert_pt2e(model, fold_quantize=True)
        return converted


def _entry(model: GraphModule, configs_mapping: dict[Any, Any], mode: Any, *_: Any, **arguments: Any) -> GraphModule:
    """What INC calls for PREPARE and for CONVERT."""
    config = next(c for c in configs_mapping.values() if c.name == NAME)
    with torch.no_grad():
        done: GraphModule = OrtStaticQuantizer(quant_config=config).execute(model, mode=mode, **arguments)
    return done


register_config(framework_name="torch", algo_name=NAME)(OrtStaticConfig)
register_algo(name=NAME)(_entry)
