"""Weights that reach their consumer through Transpose, Slice, Concat and the like, stored as used.

The dynamo exporter slices and joins LSTM weights gate by gate, and transposes those of linear
layers. Here each becomes one initializer, or one int8 initializer behind DequantizeLinear.
"""

from petra_deploy.worker.artifact.tidy.bench import SHAPE_OPERATORS, Bench


def rewrite(bench: Bench) -> int:
    changes = 0
    for node in bench.graph:
        if node.op_type in SHAPE_OPERATORS and not node.domain:
            continue  # folded with the consumer at its end
        for index, value in enumerate(node.inputs):
            if value is None or (producer := value.producer()) is None or producer.op_type not in SHAPE_OPERATORS:
                continue
            if (array := bench.constant(value)) is not None:
                node.replace_input_with(index, bench.initializer(array))
                changes += 1
            elif (packed := bench.packed(value)) is not None:
                fresh = bench.dequantized(node, packed)
                if fresh is not None:
                    node.replace_input_with(index, fresh)
                    changes += 1
    return changes
