"""What every golden case shares: running a model in f64 and f32, sampling its outputs, writing and comparing files."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from synthetic import Spec

# A stored tensor holds at most about this many values; larger outputs are sampled.
TAP_VALUES = 1500
IMAGE_VALUES = 20000
STRIDES = tuple(range(1, 40, 2))  # odd: coprime to 8, so every lane of a vec4 or tile is met
F32_TOLERANCE = 1e-4  # relative L2 of torch's own f32 run from its f64 run; above it the case is ill-conditioned
QUIET = (1 / 400, 0.0)  # for `adjust` of specs_of: a norm's input gets a variance near eps; only then does a wrong eps show
CHECK_TOLERANCE = 1e-6  # f64 sums differ a little between BLAS builds
CHECK_TOLERANCE_F32 = 1e-4  # tensors whose name ends in _f32 are torch's own f32 runs: sin and cos of large arguments


def relative_l2(got, want) -> float:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def channels_last(x: torch.Tensor) -> np.ndarray:
    """[1, C, H, W] -> [H, W, C]; [1, tokens, C] -> [tokens, C]."""
    x = x.detach()[0]
    return (x.permute(1, 2, 0) if x.dim() == 3 else x).numpy()


def strides(shape: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """One stride for all axes but the last and one for the channels, so that at most `limit` values remain."""

    def count(pixel, channel):
        return int(np.prod([-(-n // pixel) for n in shape[:-1]])) * -(-shape[-1] // channel)

    rgb = shape[-1] <= 8
    fits = [
        (p, c)
        for p in STRIDES
        for c in (STRIDES if not rgb else (1,))
        if count(p, c) <= limit
    ]
    pixel, channel = min(fits, key=lambda s: (s[0] + 1) * (s[1] + 1) / 4 + abs(s[0] - s[1]))
    return (pixel,) * (len(shape) - 1) + (channel,)


def sample(x: np.ndarray, limit: int, from_end: bool) -> tuple[np.ndarray, dict]:
    """Every stride-th value; `from_end` puts the last row and column among them instead of the first."""
    stride = strides(x.shape, limit)
    offset = tuple((n - 1) % s if from_end else 0 for n, s in zip(x.shape[:-1], stride)) + (0,)
    taken = x[tuple(slice(o, None, s) for o, s in zip(offset, stride))]
    return np.ascontiguousarray(taken, dtype=np.float32), {
        "shape": list(x.shape),
        "offset": list(offset),
        "stride": list(stride),
    }


class Case:
    """A folder `<name>/` with case.json (what to build and run) and expected.safetensors (what must come out)."""

    def __init__(self, name, model, config, source, seed=0, tensors=(), inputs=(), limits=(TAP_VALUES, IMAGE_VALUES),
                 **extra):
        self.name, self.seed, self.limits = name, seed, limits
        self.tensors, self.inputs = list(tensors), list(inputs)
        self.head = {"model": model, "source": source, "seed": seed, "config": config, **extra}
        self.runs, self.expected, self.files = [], {}, {}
        self.probes = {}  # for sensitivity.py: label -> (module, its forward pass on some small input)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {t.name: torch.from_numpy(t.values(self.seed)) for t in self.tensors}

    def input(self, name: str) -> torch.Tensor:
        """[1, C, H, W] f32"""
        spec = next(i for i in self.inputs if i.name == name)
        return torch.from_numpy(spec.values(self.seed))[None]

    def add(self, name: str, facts: dict, outputs: dict[str, np.ndarray], f32: dict[str, np.ndarray] | None = None,
            final: tuple[str, ...] = ("image", "moments", "latent")) -> None:
        """One run: `outputs` are its taps in the order they are computed, channels-last, the last one the result."""
        entries = []
        for tap, value in outputs.items():
            assert np.isfinite(value).all(), (self.name, name, tap)
            is_final = tap in final
            taken, how = sample(value, self.limits[is_final], from_end=is_final)
            self.expected[f"{name}/{tap}"] = taken
            entries.append({"tensor": f"{name}/{tap}", "tap": tap, **how})
        self.runs.append({"name": name, **facts, "expected": entries})
        last = list(outputs)[-1]
        line = f"  {self.name} {name}: {last} {list(outputs[last].shape)} std {outputs[last].std():.3f}"
        if f32 is not None:
            error = relative_l2(f32[last], outputs[last])
            line += f", torch f32 against f64 {error:.1e}"
            assert error < F32_TOLERANCE, line
        print(line, flush=True)

    def case_json(self) -> str:
        """JSON with one line per tensor, input and expected entry, so that it stays readable and diffs stay small."""
        def dumps(v):
            return json.dumps(v, separators=(", ", ": "))

        def rows(specs):
            return ",\n".join(
                "    " + dumps({"name": s.name, "shape": list(s.shape), "amp": s.amp, "offset": s.offset}) for s in specs
            )

        parts = [f'  "{k}": {dumps(v)}' if k != "aliases" else f'  "{k}": {alias_rows(v)}' for k, v in self.head.items()]
        if self.tensors:
            parts.append('  "tensors": [\n' + rows(self.tensors) + "\n  ]")
        parts.append('  "inputs": [\n' + rows(self.inputs) + "\n  ]" if self.inputs else '  "inputs": []')
        runs = []
        for run in self.runs:
            facts = {k: v for k, v in run.items() if k != "expected"}
            entries = ",\n".join("      " + dumps(e) for e in run["expected"])
            runs.append("    " + dumps(facts)[:-1] + ', "expected": [\n' + entries + "\n    ]}")
        parts.append('  "runs": [\n' + ",\n".join(runs) + "\n  ]")
        text = "{\n" + ",\n".join(parts) + "\n}\n"
        json.loads(text)
        return text

    def write(self, root: Path) -> None:
        folder = root / self.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "case.json").write_text(self.case_json())
        save_file(self.expected, folder / "expected.safetensors")
        for name, data in self.files.items():
            (folder / name).write_bytes(data)


def alias_rows(aliases: dict[str, dict[str, object]]) -> str:
    forms = []
    for form, names in aliases.items():
        rows = ",\n".join(f"      {json.dumps(k)}: {json.dumps(v)}" for k, v in names.items())
        forms.append(f"    {json.dumps(form)}: {{\n{rows}\n    }}")
    return "{\n" + ",\n".join(forms) + "\n  }"


def compare(name: str, want: Path, got: Path) -> list[str]:
    """What differs between two folders of one case; tensors to CHECK_TOLERANCE, everything else to the byte."""
    faults = []
    files = {p.name for p in want.iterdir()} if want.is_dir() else set()
    made = {p.name for p in got.iterdir()}
    if files != made:
        faults.append(f"{name}: files {sorted(files)} instead of {sorted(made)}")
    for file in sorted(files & made):
        if file.endswith(".safetensors"):
            a, b = load_file(want / file), load_file(got / file)
            if list(sorted(a)) != list(sorted(b)):
                faults.append(f"{name}/{file}: tensor names differ: {sorted(set(a) ^ set(b))[:4]}")
            for key in sorted(set(a) & set(b)):
                if a[key].shape != b[key].shape:
                    faults.append(f"{name}/{file} {key}: {a[key].shape} instead of {b[key].shape}")
                elif not (e := relative_l2(a[key], b[key])) <= (
                        CHECK_TOLERANCE_F32 if key.endswith("_f32") else CHECK_TOLERANCE):
                    faults.append(f"{name}/{file} {key}: relative L2 {e:.1e}")
        elif (want / file).read_bytes() != (got / file).read_bytes():
            faults.append(f"{name}/{file} differs")
    return faults


def write_run(out: Path, case: dict, expected: dict) -> None:
    """case.json, a line a field, and expected.safetensors of a script with a `make(folder)` of its own (`write_or_check`)."""
    assert all(np.isfinite(v).all() for v in expected.values()), "a value is not finite"
    out.mkdir(parents=True, exist_ok=True)
    (out / "case.json").write_text("{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in case.items()) + "\n}\n")
    save_file(expected, out / "expected.safetensors")
    for name, value in expected.items():
        print(f"{name}: {value.shape} std {value.std():.3f}")


def write_or_check(make, out: Path) -> int:
    """`make(out)`, or with --check the same elsewhere, compared: f32 runs, to 1e-4."""
    if "--check" not in sys.argv:
        make(out)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch))
        ours, theirs = load_file(out / "expected.safetensors"), load_file(Path(scratch) / "expected.safetensors")
        same = ours.keys() == theirs.keys() and all(
            np.linalg.norm(ours[k] - theirs[k]) <= 1e-4 * max(np.linalg.norm(ours[k]), 1e-6) for k in ours)
        print("all as committed" if same else "differs")
        return int(not same)


class Taps:
    """Forward hooks that keep the outputs of named submodules, channels-last, in the order they are computed."""

    def __init__(self, model: torch.nn.Module, names):
        self.seen: dict[str, np.ndarray] = {}
        modules = dict(model.named_modules())
        self.handles = [modules[n].register_forward_hook(self._keep(n)) for n in names]

    def _keep(self, name):
        def hook(_module, _inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            self.seen[name] = channels_last(output).copy()

        return hook

    def __enter__(self):
        return self.seen

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def specs_of(model: torch.nn.Module, kind, adjust=None) -> list[Spec]:
    """The manifest of a module: `kind(name, shape)` gives (amp, offset) of each of its tensors.

    `adjust`: part of a name -> (factor of amp, added offset), for cases that make one detail visible.
    """
    specs = []
    for name, p in model.state_dict().items():
        amp, offset = kind(name, tuple(p.shape))
        for part, (factor, shift) in (adjust or {}).items():
            if part in name:
                amp, offset = amp * factor, offset + shift
        specs.append(Spec(name, p.shape, amp, offset))
    return specs


def fan_in_amp(gain: float, shape: tuple[int, ...]) -> float:
    """Uniform amplitude that multiplies the root mean square of the input by `gain`."""
    return gain * (3.0 / np.prod(shape[1:])) ** 0.5
