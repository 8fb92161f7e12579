//! Activations, each from its definition.

use super::{Bounded, TINY, ULP};

/// A function applied to each value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `x / (1 + e^-x)` (Elfwing et al. 2018, arXiv:1702.03118)
    Silu,
    /// `x Phi(x)` (Hendrycks & Gimpel 2016, arXiv:1606.08415)
    GeluErf,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, the approximation in the same paper
    GeluTanh,
    /// `x / (1 + e^(-1.702 x))`, the same paper's second approximation
    GeluQuick,
    /// `3 tanh(x / 3)`, what TAESD does to latents
    TaesdClamp,
}

impl Activation {
    /// The function's value.
    pub fn of(self, x: f64) -> f64 {
        match self {
            Activation::Identity => x,
            Activation::Relu => x.max(0.0),
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluErf => x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()),
            Activation::GeluQuick => x / (1.0 + (-1.702 * x).exp()),
            Activation::TaesdClamp => (x / 3.0).tanh() * 3.0,
        }
    }

    /// The function's value and bound for an argument that is itself inexact.
    pub fn apply(self, x: Bounded) -> Bounded {
        let value = self.of(x.value);
        // Slopes of all of these stay below 1.2. WGSL: exp 3 + 2|x| ulp, division 2.5 ulp.
        let exp = |argument: f64| value.abs() * (8.0 + 2.0 * argument.abs().min(90.0)) * ULP;
        let own = match self {
            Activation::Identity | Activation::Relu => return Bounded { value, bound: x.bound },
            Activation::Silu => exp(x.value),
            Activation::GeluQuick => exp(1.702 * x.value) + value.abs() * 2.0 * x.value.abs() * ULP,
            // The argument's own relative error of a few ulp weighs as much as its size.
            Activation::GeluTanh => {
                let argument = 1.6 * (x.value + 0.044715 * x.value.powi(3));
                // 1 + tanh cancels in f64 too.
                exp(argument) + value.abs() * 8.0 * argument.abs().min(90.0) * ULP + x.value.abs() * 1e-15
            }
            // Abramowitz & Stegun 7.1.26 holds erf to 1.5e-7, weighted with |x| / 2.
            Activation::GeluErf => 6e-7 + x.value.abs() * 2.0 * ULP,
            Activation::TaesdClamp => 3e-6 + value.abs() * 8.0 * ULP,
        };
        Bounded { value, bound: 1.2 * x.bound + own + TINY }
    }
}

/// The error function, to about 1e-16: `2/sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!`, whose terms are all of one sign.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let mut term = x;
    let mut sum = x;
    let mut n = 0.0;
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// `a * act(b)` for tokens `[a | b]` of `2 * half` channels (Shazeer 2020, arXiv:2002.05202; diffusers: value first).
pub fn glu(x: &[f64], half: usize, act: Activation) -> Vec<Bounded> {
    let token = |t: &[f64]| -> Vec<Bounded> {
        (0..half)
            .map(|c| {
                let gate = act.apply(Bounded::exact(t[half + c]));
                let value = t[c] * gate.value;
                Bounded { value, bound: t[c].abs() * gate.bound + value.abs() * 2.0 * ULP + TINY }
            })
            .collect()
    };
    x.chunks_exact(2 * half).flat_map(token).collect()
}
