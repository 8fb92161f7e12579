// block_statistics: behind a convolution whose workgroup stores a block of 8 x 16 pixels, mean and M2 of each channel of that block, as
// group_norm_stats gives them: the plane is not read again from memory
// Layout   blocks [block rows][block columns][c4][mean, M2]; binding 7, its base in b1.z
// Reads    common/moments.wgsl
// Memory   reads what the workgroup has just stored; 256 quads of the array `stage`, which nothing else needs any more
// Numerics the order of group_norm_stats: runs of 8 pixels, then the 16 runs. A value that is not finite or saturated makes M2 3e38
@group(0) @binding(7) var<storage, read_write> blocks: array<vec4<f32>>;

// Pixels of a run of the block at `corner`.
fn run_length(run: u32, corner: vec2<u32>) -> u32 {
    let j = corner.y + run % 2u * 8u;
    return select(0u, min(p.ow - min(j, p.ow), 8u), corner.x + run / 2u < p.oh);
}

fn block_run(run: u32, quad: u32, corner: vec2<u32>) -> Moments {
    let count = run_length(run, corner);
    if count == 0u || quad >= p.cout4 { return Moments(0.0, vec4<f32>(), vec4<f32>()); }
    let at = ((corner.x + run / 2u) * p.ow + corner.y + run % 2u * 8u) * p.cout4 + quad - p.b1.y;
    let v0 = value(at, 0u, count); let v1 = value(at, 1u, count); let v2 = value(at, 2u, count); let v3 = value(at, 3u, count);
    let v4 = value(at, 4u, count); let v5 = value(at, 5u, count); let v6 = value(at, 6u, count); let v7 = value(at, 7u, count);
    var moments = run_moments(count, v0, v1, v2, v3, v4, v5, v6, v7);
    moments.m2 = select(moments.m2, vec4(3e38), largest_bits(v0, v1, v2, v3, v4, v5, v6, v7) >= vec4(bitcast<u32>(p.limit)));
    return moments;
}

fn value(at: u32, n: u32, count: u32) -> vec4<f32> { return y_get(y[at + min(n, count - 1u) * p.cout4]); }

// Called by all invocations of the workgroup alike, after they have stored `quads` quads from quad `first` on.
fn stored(lane: u32, lanes: u32, block: vec2<u32>, first: u32, quads: u32) {
    storageBarrier();
    workgroupBarrier();
    let corner = block * vec2(8u, 16u);
    let columns = (p.ow + 15u) / 16u;
    let wide = min(quads, 8u);
    let rounds = (16u * wide + lanes - 1u) / lanes;
    for (var part = 0u; part < quads; part += 8u) {
        for (var n = 0u; n < rounds; n += 1u) {
            let i = n * lanes + lane;
            if i < 16u * wide {
                let run = block_run(i / wide, first + part + i % wide, corner);
                stage[i] = run.mean;
                stage[128u + i] = run.m2;
            }
        }
        workgroupBarrier();
        let quad = first + part + lane;
        if lane < wide && quad < p.cout4 && corner.x < p.oh && corner.y < p.ow {
            var sum = Moments(0.0, vec4<f32>(), vec4<f32>());
            for (var run = 0u; run < 16u; run += 1u) {
                let count = run_length(run, corner);
                if count > 0u { sum = merged(sum, Moments(f32(count), stage[run * wide + lane], stage[128u + run * wide + lane])); }
            }
            let at = ((block.x * columns + block.y) * p.cout4 + quad) * 2u - p.b1.z;
            blocks[at] = sum.mean;
            blocks[at + 1u] = select(sum.m2, vec4(3e38), size_bits(sum.m2) >= vec4(bitcast<u32>(2.9e38)));
        }
        workgroupBarrier();
    }
}
