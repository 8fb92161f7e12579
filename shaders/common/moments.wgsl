// moments: mean and M2 = sum (v - mean)^2 of a run of up to 8 values, and of runs one after the other
// Source   Chan, Golub & LeVeque 1979, as in group_norm_rows
// Numerics f32 in one fixed order, with explicit fma, so that two kernels that give the same runs get the same bits
struct Moments { n: f32, mean: vec4<f32>, m2: vec4<f32> }

// Bits that grow with the size of a value; those of what is not finite are the largest.
fn size_bits(v: vec4<f32>) -> vec4<u32> { return bitcast<vec4<u32>>(v) & vec4(0x7fffffffu); }

fn largest_bits(
    v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>, v4: vec4<f32>, v5: vec4<f32>, v6: vec4<f32>, v7: vec4<f32>,
) -> vec4<u32> {
    return max(max(max(size_bits(v0), size_bits(v1)), max(size_bits(v2), size_bits(v3))),
               max(max(size_bits(v4), size_bits(v5)), max(size_bits(v6), size_bits(v7))));
}

fn only(n: u32, count: u32, v: vec4<f32>) -> vec4<f32> { return select(vec4<f32>(), v, n < count); }

// Of the first `count` values, 1 to 8.
fn run_moments(
    count: u32, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>, v4: vec4<f32>, v5: vec4<f32>, v6: vec4<f32>, v7: vec4<f32>,
) -> Moments {
    let sum = v0 + only(1u, count, v1) + only(2u, count, v2) + only(3u, count, v3)
        + only(4u, count, v4) + only(5u, count, v5) + only(6u, count, v6) + only(7u, count, v7);
    let mean = sum / f32(count);
    let d0 = v0 - mean;
    let d1 = only(1u, count, v1 - mean); let d2 = only(2u, count, v2 - mean); let d3 = only(3u, count, v3 - mean);
    let d4 = only(4u, count, v4 - mean); let d5 = only(5u, count, v5 - mean); let d6 = only(6u, count, v6 - mean); let d7 = only(7u, count, v7 - mean);
    return Moments(f32(count), mean, fma(d7, d7, fma(d6, d6, fma(d5, d5, fma(d4, d4, fma(d3, d3, fma(d2, d2, fma(d1, d1, d0 * d0))))))));
}

// Of both, b behind a. b may not be empty.
fn merged(a: Moments, b: Moments) -> Moments {
    let n = a.n + b.n;
    let d = b.mean - a.mean;
    return Moments(n, fma(d, vec4(b.n / n), a.mean), fma(d * d, vec4(a.n * (b.n / n)), a.m2 + b.m2));
}
