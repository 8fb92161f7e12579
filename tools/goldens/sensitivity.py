"""How much each synthetic tensor matters: the relative L2 change of the result when it alone is drawn anew.

    python tools/goldens/sensitivity.py [--linear] CASE [...]      prints the weakest tensors of each case

A tensor that changes nothing would let an engine load it wrongly and pass. What stays near zero by structure: to_k
biases (softmax ignores a constant added to all keys' scores), biases in front of a norm with one channel a group.

--linear estimates all changes at once, to first order, from a few backward passes: for v ~ N(0, 1) and a change d of
a tensor with Jacobian J, the mean of (v . J d)^2 is |J d|^2. Within a third for small changes; for the large models.
"""

import argparse

import torch

from golden import relative_l2
from make import all_cases

THRESHOLD = 1e-2
PROJECTIONS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--linear", action="store_true")
    parser.add_argument("case", nargs="+")
    args = parser.parse_args()
    for name in args.case:
        case = all_cases()[name]()
        for label, (net, forward) in case.probes.items():
            net.float()
            changes = (linear if args.linear else exact)(case, net, forward)
            report(f"{name} {label}", changes)


@torch.no_grad()
def exact(case, net, forward) -> dict[str, float]:
    state, before, changes = net.state_dict(), forward(), {}
    for spec in case.tensors:
        kept = state[spec.name].clone()
        state[spec.name].copy_(torch.from_numpy(spec.values(case.seed + 1)))
        changes[spec.name] = relative_l2(forward(), before)
        state[spec.name].copy_(kept)
    return changes


def linear(case, net, forward) -> dict[str, float]:
    torch.manual_seed(0)
    state = net.state_dict(keep_vars=True)
    tensors = [state[spec.name].requires_grad_() for spec in case.tensors]
    steps = [torch.from_numpy(s.values(case.seed + 1)) - t.detach() for s, t in zip(case.tensors, tensors)]
    out = forward()
    squares = torch.zeros(len(tensors), dtype=torch.float64)
    for i in range(PROJECTIONS):
        grads = torch.autograd.grad(out, tensors, torch.randn_like(out), retain_graph=i + 1 < PROJECTIONS, allow_unused=True)
        squares += torch.tensor([0.0 if g is None else float((g * d).sum()) ** 2 for g, d in zip(grads, steps)])
    norms = (squares / PROJECTIONS).sqrt() / float(out.detach().norm())
    return {spec.name: float(n) for spec, n in zip(case.tensors, norms)}


def report(title: str, changes: dict[str, float]) -> None:
    changes = sorted((c, n) for n, c in changes.items() if c > 0)  # zero: the other half of an autoencoder
    weak = sum(c < THRESHOLD for c, _ in changes)
    print(f"{title}: {len(changes)} tensors, {weak} below {THRESHOLD}")
    for change, name in changes[: max(weak, 6)]:
        print(f"  {change:.1e}  {name}", flush=True)


if __name__ == "__main__":
    main()
