// Activations of an epilogue, chosen by a uniform: 0 none, 1 ReLU, 2 SiLU, 3 GELU (erf), 4 GELU (tanh), 5 quick GELU.
// exp arguments are clamped: WGSL lets compilers assume that no infinity occurs.
fn silu(v: vec4<f32>) -> vec4<f32> { return v / (1.0 + exp(min(-v, vec4(80.0)))); }

// Abramowitz & Stegun 7.1.26; absolute error of the GELU <= 3.3e-7 in f32.
fn gelu_erf(v: vec4<f32>) -> vec4<f32> {
    let z = abs(v) * 0.70710678;
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let h = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))) * exp(max(-z * z, vec4(-80.0)));
    return max(v, vec4(0.0)) - 0.5 * abs(v) * h;
}

fn gelu_tanh(v: vec4<f32>) -> vec4<f32> {
    let u = 0.7978845608 * (v + 0.044715 * v * v * v);
    return v / (1.0 + exp(min(-2.0 * u, vec4(80.0))));
}

fn activate(v: vec4<f32>, kind: u32) -> vec4<f32> {
    switch kind {
        case 1u: { return max(v, vec4(0.0)); }
        case 2u: { return silu(v); }
        case 3u: { return gelu_erf(v); }
        case 4u: { return gelu_tanh(v); }
        case 5u: { return v / (1.0 + exp(min(-1.702 * v, vec4(80.0)))); }
        default: { return v; }
    }
}
