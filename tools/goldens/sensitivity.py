"""How much each synthetic tensor matters: the relative L2 change of the result when it alone is drawn anew.

    python tools/goldens/sensitivity.py CASE [...]      prints the weakest tensors of each case

A tensor that changes nothing would let an engine load it wrongly and pass. What stays near zero by structure: to_k
biases (softmax ignores a constant added to all keys' scores), biases in front of a norm with one channel a group.
"""

import argparse

import torch

from golden import relative_l2
from make import all_cases

THRESHOLD = 1e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="+")
    args = parser.parse_args()
    for name in args.case:
        case = all_cases()[name]()
        for label, (net, result) in case.probes.items():
            report(case, label, net, result)


@torch.no_grad()
def report(case, label, net, result) -> None:
    net.float()
    state = net.state_dict()
    before = result()
    changes = []
    for spec in case.tensors:
        kept = state[spec.name].clone()
        state[spec.name].copy_(torch.from_numpy(spec.values(case.seed + 1)))
        change = relative_l2(result(), before)
        state[spec.name].copy_(kept)
        if change > 0:  # the other half of an autoencoder
            changes.append((change, spec.name))
    changes.sort()
    weak = [c for c in changes if c[0] < THRESHOLD]
    print(f"{case.name} {label}: {len(changes)} tensors, {len(weak)} below {THRESHOLD}")
    for change, name in changes[: max(len(weak), 6)]:
        print(f"  {change:.1e}  {name}", flush=True)


if __name__ == "__main__":
    main()
