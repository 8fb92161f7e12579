//! Synthetic tensors, the protocol of `tools/goldens/synthetic.py`: the same bits in any language.

/// 64-bit FNV-1a.
pub fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3))
}

/// `len` values of the tensor `name`: uniform on `[offset - amp, offset + amp)`.
pub fn fill(name: &str, len: usize, amp: f32, offset: f32, seed: u64) -> Vec<f32> {
    let key = fnv1a64(name.as_bytes()) ^ seed;
    (1..=len as u64)
        .map(|i| {
            let mut z = key.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            let t = (z >> 40) as f32 * (1.0 / (1u32 << 23) as f32) - 1.0;
            t * amp + offset
        })
        .collect()
}
