"""What a GPU's compiler made of each kernel: registers, occupancy, spills, and the instructions of its loops by kind.

  python loops.py FOLDER LOG [NAME ...]

LOG is what a program printed under pipeline_statistics.c (`statistics:` lines, each followed by the engine's line with the pipeline's name), FOLDER its assembly. Loops
are listed innermost first, each without those inside it; NAMEs select pipelines. Mesa's RADV (AMD) and NVK (NVIDIA) are read, of other drivers the numbers alone.
"""
import argparse
import collections
import re
from pathlib import Path

RADV = (("wmma", r"v_(swmmac|wmma)"), ("fma", r"v_(dual_)?(pk_)?(fma|fmac|mad_f|dot)"), ("lds", r"ds_"), ("memory", r"buffer|global|s_load|s_buffer"),
        ("wait", r"s_(wait|delay|nop|clause)"), ("scalar", r"s_"), ("float", r"v_\w*f(16|32)"), ("integer", r"v_"))
NVK = (("hmma", r"hmma"), ("fma", r"[fh]fma"), ("lds", r"ldsm|(ld|st)s|(ld|st)\.shared|movm"), ("memory", r"ld|st"),
       ("flow", r"bra|bssy|bsync|bclear|nop|warpsync|bar|membar|plop3"), ("move", r"mov$"), ("float", r"f|mufu|h"), ("integer", r""))


def radv_blocks(text):
    """{block: [opcode]} and {block: successors}."""
    blocks, succ, now = {}, {}, None
    for line in text.splitlines():
        if m := re.match(r"BB(\d+):", line):
            new = int(m[1])
            if now is not None and not (blocks[now] and blocks[now][-1] in ("s_branch", "s_endpgm")):
                succ[now].append(new)
            now, blocks[new], succ[new] = new, [], []
        elif m := re.match(r"\t(\w+)\s*([^;]*?)\s*;", line):
            blocks[now].append(m[1])
            if m[1].startswith(("s_branch", "s_cbranch")):
                succ[now].append(int(m[2].removeprefix("BB")))
    return blocks, {b: [s for s in t if s in blocks] for b, t in succ.items()}


def nvk_blocks(text):
    blocks, succ, now = {}, {}, None
    for line in text.splitlines():
        if m := re.match(r"block(?:\.u)? (\d+) L\d+ .*-> {", line):
            now = int(m[1])
            blocks[now], succ[now] = [], []
        elif m := re.match(r"} -> \[([\d, ]*)\]", line):
            succ[now] = [int(s) for s in m[1].split(",") if s.strip()]
        elif m := re.match(r"(?:@\S+)?\s+(?:[\w{}\[\], .]*?\s*=\s*)?([a-z][\w.]*)", line):
            blocks[now].append(m[1])
    return blocks, succ


def natural_loops(succ):
    """The blocks of each loop: those that reach a jump back to a block on every way to them."""
    pred = collections.defaultdict(list)
    for b, to in succ.items():
        for s in to:
            pred[s].append(b)
    nodes, start = list(succ), next(iter(succ))
    above = {n: set(nodes) for n in nodes} | {start: {start}}
    changed = True
    while changed:
        changed = False
        for n in nodes[1:]:
            new = {n} | (set.intersection(*(above[p] for p in pred[n])) if pred[n] else set())
            changed, above[n] = changed or new != above[n], new
    loops = {}
    for b, to in succ.items():
        for head in to:
            if head in above[b]:
                body, todo = {head}, [b]
                while todo:
                    n = todo.pop()
                    if n not in body:
                        body.add(n)
                        todo += pred[n]
                loops[head] = loops.get(head, set()) | body
    return [frozenset(body) for body in loops.values()]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", type=Path)
    ap.add_argument("log", type=Path)
    ap.add_argument("names", nargs="*")
    a = ap.parse_args()
    number, stats, seen = -1, {}, set()
    for line in a.log.read_text(errors="replace").splitlines():
        if line.startswith("statistics: "):
            number, stats = number + 1, dict(s.split(" = ") for s in line[12:].split("; "))
        m = re.search(r"pipelines\] pipeline (\S+) \[(.*)\]: ", line)
        if not m:
            continue
        name = m[1] + " " + re.sub(r'\("(\w+)", (\d+)\),?', r"\1=\2", m[2])
        get = lambda *keys: next((stats[k] for k in keys if k in stats), "-")
        told = (get("VGPRs", "Number of GPRs", "GPRs", "Registers used"), get("Subgroups per SIMD", "Max warps/SM", "Threads", "Max Waves Per Core"),
                get("Spilled VGPRs", "Spills to memory", "Spills", "STP Count"), get("Instructions", "Instruction count", "Instruction Count"))
        if a.names and not any(n in name for n in a.names) or (name, told) in seen:
            continue
        seen.add((name, told))
        print("{}: registers {}, occupancy {}, spills {}, instructions {}".format(name, *told))
        for f in a.folder.glob(f"{number:03d}-*ssembly.txt"):
            kinds, parse = (NVK, nvk_blocks) if "NAK" in f.name else (RADV, radv_blocks)
            blocks, succ = parse(f.read_text(errors="replace"))
            bodies = natural_loops(succ) if succ else []  # other drivers' assembly is not read
            for body in sorted(bodies, key=len):
                own = body.difference(*(b for b in bodies if b < body))
                ops = [o for b in own for o in blocks[b]]
                count = collections.Counter(next(kind for kind, rx in kinds if re.match(rx, o)) for o in ops)
                if len(ops) >= 8:
                    depth = sum(body < b for b in bodies)
                    print("  " * (depth + 1) + f"loop of {len(ops)}: " + ", ".join(f"{n} {k}" for k, n in count.most_common()))


if __name__ == "__main__":
    main()
