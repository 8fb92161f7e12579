//! Linear combinations of what a sampler has at hand, with coefficients in f64.

use std::ops::{Add, Mul, Sub};

/// A tensor of the latent's shape that a sampler reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The latent.
    Sample,
    /// What the model gave, after guidance.
    Output,
    /// Fresh standard normal noise.
    Noise,
    /// The estimate of the clean latent, where a scheduler clips it.
    Predicted,
    /// A value kept from call to call.
    Kept(u8),
}

/// `sum of coefficient * state`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Combination(Vec<(State, f64)>);

impl Combination {
    /// One state, unscaled.
    pub fn of(state: State) -> Combination {
        Combination(vec![(state, 1.0)])
    }

    /// The terms, each state once, none with a coefficient of 0.
    pub fn terms(&self) -> &[(State, f64)] {
        &self.0
    }

    /// The coefficient of `state`.
    pub fn coefficient(&self, state: State) -> f64 {
        self.0.iter().find(|(s, _)| *s == state).map_or(0.0, |(_, c)| *c)
    }

    /// Whether every coefficient is a number.
    pub fn is_finite(&self) -> bool {
        self.0.iter().all(|(_, c)| c.is_finite())
    }
}

impl Add for &Combination {
    type Output = Combination;
    fn add(self, other: &Combination) -> Combination {
        let mut sum = self.0.clone();
        for &(state, c) in &other.0 {
            match sum.iter_mut().find(|(s, _)| *s == state) {
                Some((_, own)) => *own += c,
                None => sum.push((state, c)),
            }
        }
        sum.retain(|(_, c)| *c != 0.0);
        Combination(sum)
    }
}

impl Mul<&Combination> for f64 {
    type Output = Combination;
    fn mul(self, other: &Combination) -> Combination {
        let mut product = other.0.clone();
        product.iter_mut().for_each(|(_, c)| *c *= self);
        product.retain(|(_, c)| *c != 0.0);
        Combination(product)
    }
}

impl Sub for &Combination {
    type Output = Combination;
    fn sub(self, other: &Combination) -> Combination {
        self + &(-1.0 * other)
    }
}
