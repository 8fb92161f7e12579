//! Frequencies of rotary positions, on planes of any size.

use std::f64::consts::TAU;

/// How the angles of rotary positions follow planes larger than those of training. Each axis by itself; an axis no longer than those of training has the
/// angles of training.
///
/// Source: whlzy/FiT at b22b7b0, `fit/model/rope.py` (`--interpolation ... --decouple`); Lu et al. 2024 (arXiv:2402.12376, arXiv:2410.13925).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RotaryScaling {
    /// As they are.
    None,
    /// Positions interpolated.
    Linear,
    /// A larger base (NTK-aware): low frequencies interpolated, high ones kept. What FiT's high-resolution models were trained with.
    #[default]
    Ntk,
    /// [`RotaryScaling::Ntk`], queries and keys longer by the longer axis.
    NtkPro1,
    /// [`RotaryScaling::Ntk`], queries and keys longer by the number of tokens.
    NtkPro2,
    /// Interpolated, NTK-aware or kept, by how often a frequency turns in training (NTK-by-parts).
    NtkByParts,
    /// Interpolated or kept in the same way, queries and keys longer by the longer axis (Peng et al. 2023, arXiv:2309.00071).
    Yarn,
}

/// Base of the frequencies.
const THETA: f64 = 10_000.0;

/// 0 below the index of the frequency that turns `fast` times over `trained` positions, 1 above that of `slow` times.
fn ramp(fast: f64, slow: f64, axis: usize, trained: f64) -> impl Fn(usize) -> f64 {
    let index = |turns: f64| axis as f64 * (trained / (turns * TAU)).ln() / (2.0 * THETA.ln());
    let (low, high) = (index(fast).floor().max(0.0), index(slow).ceil().min(axis as f64 - 1.0));
    let high = if low == high { high + 0.001 } else { high };
    move |k| ((k as f64 - low) / (high - low)).clamp(0.0, 1.0)
}

impl RotaryScaling {
    /// All of them.
    pub const ALL: [RotaryScaling; 7] = [
        RotaryScaling::None,
        RotaryScaling::Linear,
        RotaryScaling::Ntk,
        RotaryScaling::NtkPro1,
        RotaryScaling::NtkPro2,
        RotaryScaling::NtkByParts,
        RotaryScaling::Yarn,
    ];

    /// FiT's name for it, and the program's.
    pub fn name(self) -> &'static str {
        match self {
            RotaryScaling::None => "no",
            RotaryScaling::Linear => "linear",
            RotaryScaling::Ntk => "dynntk",
            RotaryScaling::NtkPro1 => "ntkpro1",
            RotaryScaling::NtkPro2 => "ntkpro2",
            RotaryScaling::NtkByParts => "partntk",
            RotaryScaling::Yarn => "yarn",
        }
    }

    /// The scaling of that name.
    pub fn from_name(name: &str) -> Option<RotaryScaling> {
        RotaryScaling::ALL.into_iter().find(|scaling| scaling.name() == name)
    }

    /// Angles a position of one axis of `length` tokens, for the `axis / 2` pairs of channels that it turns.
    fn frequencies(self, axis: usize, length: usize, trained: usize) -> Vec<f64> {
        let (scale, d, trained) = ((length as f64 / trained as f64).max(1.0), axis as f64, trained as f64);
        let of = |base: f64, k: usize| base.powf(-2.0 * k as f64 / d);
        let (kept, linear) = (|k: usize| of(THETA, k), |k: usize| of(THETA, k) / scale);
        let ntk = |k: usize| of(THETA * scale.powf(d / (d - 2.0)), k);
        let between = |ramp: f64, low: f64, high: f64| low * (1.0 - ramp) + high * ramp;
        let pairs = 0..axis / 2;
        match self {
            RotaryScaling::None => pairs.map(kept).collect(),
            RotaryScaling::Linear => pairs.map(linear).collect(),
            RotaryScaling::Ntk | RotaryScaling::NtkPro1 | RotaryScaling::NtkPro2 => pairs.map(ntk).collect(),
            RotaryScaling::NtkByParts => {
                let (first, second) = (ramp(1.25, 0.75, axis, trained), ramp(16.0, 2.0, axis, trained));
                pairs.map(|k| between(second(k), kept(k), between(first(k), ntk(k), linear(k)))).collect()
            }
            RotaryScaling::Yarn => {
                let ramp = ramp(32.0, 1.0, axis, trained);
                pairs.map(|k| between(ramp(k), kept(k), linear(k))).collect()
            }
        }
    }

    /// What queries and keys grow by.
    fn magnitude(self, rows: usize, columns: usize, trained: usize) -> f64 {
        let longest = rows.max(columns);
        let grown = |now: usize, before: usize| match 2 * now > before {
            true => ((2 * now) as f64).ln() / (before as f64).ln(),
            false => 1.0,
        };
        match self {
            RotaryScaling::NtkPro1 => grown(longest, trained).sqrt(),
            RotaryScaling::NtkPro2 => grown(rows * columns, trained * trained).sqrt(),
            RotaryScaling::Yarn => 1.0 + 0.1 * (longest as f64 / trained as f64).max(1.0).ln(),
            _ => 1.0,
        }
    }

    /// The table that [`crate::kernels::rotary::Rotary`] takes, for heads of `head_dim` channels (a multiple of 8) on planes of `rows` x `columns` tokens,
    /// of a network that was trained on `trained` x `trained`, at least 2.
    pub fn table(self, head_dim: usize, rows: usize, columns: usize, trained: usize) -> Vec<f32> {
        let magnitude = self.magnitude(rows, columns, trained);
        let mut table = Vec::with_capacity((rows + columns) * head_dim / 2);
        for length in [rows, columns] {
            let frequencies = self.frequencies(head_dim / 2, length, trained);
            for position in 0..length {
                table.extend(frequencies.iter().flat_map(|f| {
                    let (sin, cos) = (position as f64 * f).sin_cos();
                    [(magnitude * cos) as f32, (magnitude * sin) as f32]
                }));
            }
        }
        table
    }
}
