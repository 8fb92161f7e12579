//! Standard normal noise that is the same on every device, and the same as PyTorch's on the CPU.

/// MT19937, Matsumoto & Nishimura 1998, seeded by `init_genrand`.
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
}

/// `count` standard normal values: those of `torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed))`
/// for 16 values or more (torch draws shorter vectors in another way; here they begin a draw of 16).
///
/// Source: PyTorch `aten/src/ATen/native/cpu/DistributionTemplates.h`, `normal_fill`: uniforms for all values first, then
/// Box-Muller on blocks of 16, the last block redrawn where `count` is no multiple of 16.
pub fn torch_cpu_randn(seed: u64, count: usize) -> Vec<f32> {
    let mut generator = MersenneTwister::new(seed as u32);
    let mut values: Vec<f32> = (0..count.max(16)).map(|_| generator.uniform()).collect();
    let transform = |block: &mut [f32]| {
        for j in 0..8 {
            let radius = (-2.0 * (1.0 - block[j]).ln()).sqrt();
            let angle = 2.0 * std::f32::consts::PI * block[j + 8];
            (block[j], block[j + 8]) = (radius * angle.cos(), radius * angle.sin());
        }
    };
    values.chunks_exact_mut(16).for_each(transform);
    if !values.len().is_multiple_of(16) {
        let last = values.len() - 16;
        values[last..].iter_mut().for_each(|v| *v = generator.uniform());
        transform(&mut values[last..]);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From torch 2.15: `torch.randn(n, generator=torch.Generator("cpu").manual_seed(12345))`.
    #[test]
    fn noise_is_torchs() {
        let close = |got: &[f32], want: &[f32]| got.iter().zip(want).all(|(g, w)| (g - w).abs() < 2e-6);
        let sixteen = torch_cpu_randn(12345, 16);
        assert!(close(&sixteen[..4], &[-1.479808, 0.487306, -3.012794, 0.443855]), "{sixteen:?}");
        assert!(close(&sixteen[12..], &[-0.210576, 0.626838, 0.931763, 0.186755]), "{sixteen:?}");
        let ragged = torch_cpu_randn(12345, 35);
        assert!(close(&ragged[31..], &[-1.529726, -0.343475, 0.613239, -1.411395]), "{ragged:?}");
        assert_eq!(torch_cpu_randn(12345, 3).len(), 3);
    }
}
