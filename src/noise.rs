//! Standard normal noise that is the same on every device, and the same as PyTorch's on the CPU.

/// MT19937, Matsumoto & Nishimura 1998, seeded by `init_genrand`.
#[derive(Debug, Clone)]
struct MersenneTwister {
    state: [u32; 624],
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> MersenneTwister {
        let mut state = [seed; 624];
        for i in 1..624 {
            state[i] = 1812433253u32.wrapping_mul(state[i - 1] ^ (state[i - 1] >> 30)).wrapping_add(i as u32);
        }
        MersenneTwister { state, next: 624 }
    }

    fn u32(&mut self) -> u32 {
        if self.next == 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ if y & 1 == 1 { 0x9908_b0df } else { 0 };
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform on [0, 1) with 24 bits.
    fn uniform(&mut self) -> f32 {
        (self.u32() & 0xff_ffff) as f32 / (1 << 24) as f32
    }

    /// Uniform on [0, 1) with 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        let bits = (self.u32() as u64) << 32 | self.u32() as u64;
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }
}

/// `torch.Generator("cpu").manual_seed(seed)`, as far as `torch.randn` in f32 goes. Draws continue one stream.
///
/// Source: PyTorch `aten/src/ATen/native/cpu/DistributionTemplates.h` (`normal_fill`) and `ATen/core/DistributionsHelper.h`.
#[derive(Debug, Clone)]
pub struct TorchGenerator {
    engine: MersenneTwister,
    /// Second value of the last pair that a draw of less than 16 values has made.
    spare: Option<f64>,
}

impl TorchGenerator {
    /// A generator at the start of its stream. Like torch's, it uses the low 32 bits of the seed.
    pub fn new(seed: u64) -> TorchGenerator {
        TorchGenerator { engine: MersenneTwister::new(seed as u32), spare: None }
    }

    /// `torch.randn(count, generator=self)`: standard normal values.
    ///
    /// From 16 values on: uniforms for all values first, then Box-Muller on blocks of 16, the last block redrawn where `count` is no
    /// multiple of 16. Fewer come pair by pair in f64.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        if count < 16 {
            return (0..count).map(|_| self.single()).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.engine.uniform()).collect();
        let transform = |block: &mut [f32]| {
            for j in 0..8 {
                let radius = (-2.0 * (1.0 - block[j]).ln()).sqrt();
                let angle = 2.0 * std::f32::consts::PI * block[j + 8];
                (block[j], block[j + 8]) = (radius * angle.cos(), radius * angle.sin());
            }
        };
        values.chunks_exact_mut(16).for_each(transform);
        if !count.is_multiple_of(16) {
            let last = count - 16;
            values[last..].iter_mut().for_each(|v| *v = self.engine.uniform());
            transform(&mut values[last..]);
        }
        values
    }

    fn single(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare as f32;
        }
        let (u1, u2) = (self.engine.uniform_f64(), self.engine.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * u1;
        self.spare = Some(radius * angle.sin());
        (radius * angle.cos()) as f32
    }
}

/// `count` standard normal values: those of `torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed))`.
pub fn torch_cpu_randn(seed: u64, count: usize) -> Vec<f32> {
    TorchGenerator::new(seed).randn(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f32], want: &[f32]) -> bool {
        got.len() == want.len() && got.iter().zip(want).all(|(g, w)| (g - w).abs() < 2e-6)
    }

    /// From torch 2.15: `torch.randn(n, generator=torch.Generator("cpu").manual_seed(12345))`.
    #[test]
    fn noise_is_torchs() {
        let sixteen = torch_cpu_randn(12345, 16);
        assert!(close(&sixteen[..4], &[-1.479808, 0.487306, -3.012794, 0.443855]), "{sixteen:?}");
        assert!(close(&sixteen[12..], &[-0.210576, 0.626838, 0.931763, 0.186755]), "{sixteen:?}");
        let ragged = torch_cpu_randn(12345, 35);
        assert!(close(&ragged[31..], &[-1.529726, -0.343475, 0.613239, -1.411395]), "{ragged:?}");
    }

    /// From torch 2.15: one generator, seed 7; `randn(5)`, `randn(20)`, `randn(2)` after each other.
    #[test]
    fn short_draws_and_streams_are_torchs() {
        let mut generator = TorchGenerator::new(7);
        let five = generator.randn(5);
        assert!(close(&five, &FIVE), "{five:?}");
        let twenty = generator.randn(20);
        assert!(close(&twenty[17..], &TWENTY_END), "{twenty:?}");
        let two = generator.randn(2);
        assert!(close(&two, &TWO), "{two:?}");
    }

    const FIVE: [f32; 5] = [-0.146795, 0.786141, 0.946822, -1.114344, 1.69079];
    const TWENTY_END: [f32; 3] = [-0.250133, 0.501121, 0.260036];
    const TWO: [f32; 2] = [-0.894828, 1.279878];
}
