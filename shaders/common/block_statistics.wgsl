// block_statistics: behind a convolution whose workgroup stores a block of 8 x 16 pixels, mean and M2 of each channel of that block, as
// group_norm_stats gives them: the plane is not read again from memory
// Layout   blocks [block rows][block columns][c4][mean, M2]; binding 7, its base in b1.z
// Memory   reads what the workgroup has just stored, twice; 256 quads of the array `stage`, which nothing else needs any more
// Numerics the order of group_norm_stats: runs of 8 pixels, then the 16 runs. A value that is not finite or saturated makes M2 3e38
@group(0) @binding(7) var<storage, read_write> blocks: array<vec4<f32>>;

fn block_run(run: u32, quad: u32, corner: vec2<u32>, mean: vec4<f32>, squares: bool) -> vec4<f32> {
    let i = corner.x + run / 2u;
    let j = corner.y + run % 2u * 8u;
    var sum = vec4<f32>();
    if i < p.oh && quad < p.cout4 {
        for (var n = j; n < min(j + 8u, p.ow); n += 1u) {
            let v = y_get(y[(i * p.ow + n) * p.cout4 + quad - p.b1.y]);
            if squares {
                let d = v - mean;
                let size = bitcast<vec4<u32>>(v) & vec4(0x7fffffffu);
                sum = select(fma(d, d, sum), sum + 3e38, size >= vec4(bitcast<u32>(p.limit)));
            } else {
                sum += v;
            }
        }
    }
    return sum;
}

// Called by all invocations of the workgroup alike, after they have stored `quads` quads, a power of two, from quad `first` on.
fn stored(lane: u32, lanes: u32, block: vec2<u32>, first: u32, quads: u32) {
    storageBarrier();
    workgroupBarrier();
    let corner = block * vec2(8u, 16u);
    let pixels = f32(min(8u, p.oh - min(corner.x, p.oh)) * min(16u, p.ow - min(corner.y, p.ow)));
    let columns = (p.ow + 15u) / 16u;
    let wide = min(quads, 16u);
    let rounds = (16u * wide + lanes - 1u) / lanes;
    for (var part = 0u; part < quads; part += 16u) {
        for (var n = 0u; n < rounds; n += 1u) {
            let i = n * lanes + lane;
            if i < 16u * wide { stage[i] = block_run(i / wide, first + part + i % wide, corner, vec4<f32>(), false); }
        }
        workgroupBarrier();
        var mean = vec4<f32>();
        if lane < wide {
            for (var run = 0u; run < 16u; run += 1u) { mean += stage[run * wide + lane]; }
            mean = mean / pixels;
        }
        workgroupBarrier();
        if lane < wide { stage[lane] = mean; }
        workgroupBarrier();
        // Of all runs of an invocation the quad is the same: lanes is a multiple of wide.
        let center = stage[lane % wide];
        workgroupBarrier();
        for (var n = 0u; n < rounds; n += 1u) {
            let i = n * lanes + lane;
            if i < 16u * wide { stage[i] = block_run(i / wide, first + part + i % wide, corner, center, true); }
        }
        workgroupBarrier();
        let quad = first + part + lane;
        if lane < wide && quad < p.cout4 && corner.x < p.oh && corner.y < p.ow {
            var m2 = vec4<f32>();
            for (var run = 0u; run < 16u; run += 1u) { m2 += stage[run * wide + lane]; }
            let size = bitcast<vec4<u32>>(m2) & vec4(0x7fffffffu);
            let at = ((block.x * columns + block.y) * p.cout4 + quad) * 2u - p.b1.z;
            blocks[at] = mean;
            blocks[at + 1u] = select(m2, vec4(3e38), size >= vec4(bitcast<u32>(2.9e38)));
        }
        workgroupBarrier();
    }
}
