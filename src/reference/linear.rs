//! torch.nn.Linear.

use super::{Bounded, TINY, gamma};

/// `y[t, o] = bias[o] + sum_k weight[o, k] x[t, k]`: `x` is `[tokens, inputs]`, `weight` `[outputs, inputs]`, `bias` `[outputs]` or empty.
pub fn linear(x: &[f64], inputs: usize, weight: &[f64], bias: &[f64], outputs: usize) -> Vec<Bounded> {
    assert!(x.len().is_multiple_of(inputs) && weight.len() == inputs * outputs);
    assert!(bias.is_empty() || bias.len() == outputs);
    let roundings = gamma(inputs + 2);
    let mut y = Vec::with_capacity(x.len() / inputs * outputs);
    for token in x.chunks_exact(inputs) {
        for o in 0..outputs {
            let mut sum = bias.get(o).copied().unwrap_or(0.0);
            let mut size = sum.abs();
            for (w, v) in weight[o * inputs..(o + 1) * inputs].iter().zip(token) {
                sum += w * v;
                size += (w * v).abs();
            }
            y.push(Bounded { value: sum, bound: roundings * size + TINY });
        }
    }
    y
}
