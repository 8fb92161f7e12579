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
    Call { timestep: t, input_scale: 1.0, predicted: predicted(t), updates, known: mix(after), spread: None }
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

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Follows a schedule whose model gives `output` of the call and the sample, and checks the estimate of each call and what inpainting would hold
    /// on to. Returns where it ends.
    pub fn follow(schedule: &Schedule, data: f64, noise: f64, output: impl Fn(&Call, f64) -> f64) -> f64 {
        let of = |mix: Mix| mix.signal * data + mix.noise * noise;
        let name = |state: &State| format!("{state:?}");
        let mut values = BTreeMap::from([(name(&State::Sample), of(schedule.start))]);
        for call in &schedule.calls {
            values.insert(name(&State::Output), output(call, values[&name(&State::Sample)]));
            let sum = |value: &Combination| value.terms().iter().map(|(state, c)| c * values[&name(state)]).sum::<f64>();
            assert!((sum(&call.predicted) - data).abs() < 1e-12, "the estimate at {}", call.timestep);
            let new: Vec<(String, f64)> = call.updates.iter().map(|update| (name(&update.target), sum(&update.value))).collect();
            values.extend(new);
            assert!((values[&name(&State::Sample)] - of(call.known)).abs() < 1e-12, "inpainting at {}", call.timestep);
        }
        values[&name(&State::Sample)]
    }

    /// On the path itself the velocity is constant, so every sampler ends at the data, from wherever it starts.
    #[test]
    fn a_straight_path_is_followed_to_its_end() {
        let (data, noise) = (3.0, -0.5);
        for (name, two_calls, plan) in [("euler", false, euler as fn(usize, usize) -> Schedule), ("heun", true, heun)] {
            for (steps, skip) in [(1, 0), (4, 0), (5, 2), (50, 49)] {
                let schedule = plan(steps, skip);
                assert_eq!(schedule.calls.len(), (steps - skip) * (1 + two_calls as usize), "{name} {steps} {skip}");
                assert_eq!(schedule.init_noise_sigma, 1.0);
                let end = follow(&schedule, data, noise, |_, _| data - noise);
                assert!((end - data).abs() < 1e-12, "{name} {steps} {skip}");
            }
        }
    }
}
