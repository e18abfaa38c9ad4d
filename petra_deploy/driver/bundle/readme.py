"""The README.md of a bundle: what it is, its figures with their origin, and how to run it."""

from petra_deploy.driver.bundle.manifest import Manifest, Side


def text(manifest: Manifest, triton_name: str) -> str:
    m, speedup, metric = manifest, manifest.speedup, manifest.metric
    of = f"{metric.name} on {metric.n} rows of the {metric.split} split"
    if not metric.labelled:
        of += ", compared with the original model's own outputs"
    if metric.data == "random":
        of += " (random inputs: no data was given)"
    holds = f"- {_line(m.holds[0].upper() + m.holds[1:])}.\n" if m.holds else ""
    notes = "".join(f"- {_line(note)}\n" for note in m.notes)
    return f"""# {_line(m.model.name)} for {_line(m.target.name)}

{_kind(m)} made by petra-deploy {m.versions.get("petra-deploy", "")} from a model of
{m.model.parameters:,} parameters: {" + ".join(m.techniques) or "as it came"}.

| | baseline | this bundle |
|---|---|---|
| latency p50, batch {speedup.batch} | {_ms(m.baseline)} | {_ms(m.candidate)} |
| most rows per second | {_number(m.baseline.throughput_per_s)} | {_number(m.candidate.throughput_per_s)} |
| file | {m.baseline.bytes:,} bytes | {m.candidate.bytes:,} bytes |
| {metric.name} | {metric.baseline:.4g} | {metric.candidate:.4g} |

- **Speedup {speedup.value:.2f}x** {_bounds(speedup.low, speedup.high)}, {speedup.origin}: {_how(m)}
- **Drop {metric.drop_points:.2f} points** {_bounds(metric.low, metric.high)}, {metric.origin}: {of};
  {metric.max_drop:g} allowed.
- Intervals are at 95%. `manifest.json` has every figure, the machine, the versions and the seed.
{holds}{notes}
## Run it

    pip install {m.runtime.name} numpy
    python example.py

In Python, with its settings and its checksums verified:

    import petra_deploy
    with petra_deploy.load_bundle("path/of/this/folder") as bundle:
        outputs = bundle.run({{{", ".join(f'"{_line(spec.name)}": ...' for spec in m.inputs)}}})

In Triton Inference Server (the model is called `{triton_name}`):

    docker run --rm -p8000:8000 -v "$PWD/triton:/models" nvcr.io/nvidia/tritonserver:VERSION-py3 \\
        tritonserver --model-repository=/models

## Make it again

    petra-deploy apply strategy.json model.pt --data data.npz

re-runs the recipe on this model, or on a retrained one of the same architecture, and checks the
budget and the speedup again.
"""


def _kind(m: Manifest) -> str:
    if m.target.device == "cpu":
        return "An OpenVINO engine (an ONNX file)," if m.runtime.name == "openvino" else "An ONNX Runtime engine"
    return f"An ONNX model for {m.target.runtime} (precision lives in the graph: Q/DQ pairs and casts),"


def _how(m: Manifest) -> str:
    """What the speedup means and where it is from; on a GPU the one over FP16 beside it."""
    half = m.speedup_over_fp16
    beside = f" Over the baseline in FP16: {half.value:.2f}x {_bounds(half.low, half.high)}." if half else ""
    if m.speedup.origin != "predicted":
        rounds = f"{m.speedup.n} rounds of fresh sessions"
        return f"baseline latency / this\n  latency over {rounds}, interleaved on one machine.{beside}"
    model = "a\n  latency model from what the target's file says"
    return f"baseline in FP32 / this, by {model}.{beside} No {m.target.name} has run it yet."


def _ms(side: Side) -> str:
    origin = "" if side.latency_ms.origin == "measured" else f" {side.latency_ms.origin}"
    return f"{_number(side.latency_ms.p50)} ms{origin}"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.4g}"


def _bounds(low: float | None, high: float | None) -> str:
    return f"[{_number(low)}, {_number(high)}]"


def _line(name: str) -> str:
    """A user's name inside Markdown: printable, on one line, no markup."""
    return "".join(c if c.isprintable() and c not in "`|<>[]*" else "_" for c in name)
