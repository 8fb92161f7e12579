//! Flow models: the latent is `t data + (1 - t) noise`, the model gives the velocity `data - noise`, and the time it is told is t itself, from 0 to 1.
//!
//! Source: SiT (arXiv:2401.08740), willisma/SiT at 947f95b, `transport/`: its ODE sampler with a fixed grid. (Its default, dopri5, chooses its steps as it goes.)

use super::{Call, Combination, Mix, Schedule, State, Update, finish};

/// `data` of the time `t` from sample and output.
fn predicted(t: f64) -> Combination {
    &Combination::of(State::Sample) + &((1.0 - t) * &Combination::of(State::Output))
}

fn mix(t: f64) -> Mix {
    Mix { signal: t, noise: 1.0 - t }
}

/// Ends of step `i` of `steps`.
fn ends(i: usize, steps: usize) -> (f64, f64) {
    (i as f64 / steps as f64, (i + 1) as f64 / steps as f64)
}

fn call(t: f64, updates: Vec<Update>, after: f64) -> Call {
    Call { timestep: t, input_scale: 1.0, predicted: predicted(t), updates, known: mix(after) }
}

pub(super) fn euler(steps: usize, skip: usize) -> Schedule {
    let (x, velocity) = (Combination::of(State::Sample), Combination::of(State::Output));
    let step = |i: usize| {
        let (t, next) = ends(i, steps);
        call(t, vec![Update::new(State::Sample, &x + &((next - t) * &velocity))], next)
    };
    finish(1.0, mix(ends(skip, steps).0), (skip..steps).map(step).collect())
}

/// The mean of the velocities at both ends of each step: two calls.
pub(super) fn heun(steps: usize, skip: usize) -> Schedule {
    let (x, velocity, half) = (Combination::of(State::Sample), Combination::of(State::Output), State::Kept(0));
    let both = |i: usize| {
        let (t, next) = ends(i, steps);
        let share = (0.5 * (next - t)) * &velocity;
        let there = vec![Update::new(half, &x + &share), Update::new(State::Sample, &x + &((next - t) * &velocity))];
        [call(t, there, next), call(next, vec![Update::new(State::Sample, &Combination::of(half) + &share)], next)]
    };
    finish(1.0, mix(ends(skip, steps).0), (skip..steps).flat_map(both).collect())
}
