use infgen::weights::vae_keys;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;

/// One damage to a file.
#[derive(Debug, Clone)]
enum Damage {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, prop::sample::Index),
    Number(prop::sample::Index, u64),
}

impl Damage {
    /// Damages the first `reach` bytes.
    fn apply(&self, bytes: &mut Vec<u8>, reach: usize) {
        let within = bytes.len().min(reach);
        if within == 0 {
            return;
        }
        match *self {
            Self::Set(at, value) => {
                let at = at.index(within);
                bytes[at] = value;
            }
            Self::Cut(at) => bytes.truncate(at.index(within)),
            Self::Remove(at, count) => {
                let start = at.index(within);
                bytes.drain(start..(start + count).min(bytes.len()));
            }
            Self::Repeat(from, to) => {
                let (from, to) = (from.index(within), to.index(within));
                let piece = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.splice(to..to, piece);
            }
            // A run of digits becomes another number: sizes and offsets are text in most of these formats.
            Self::Number(at, value) => {
                let from = at.index(within);
                let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit).map(|n| from + n) else { return };
                let end = bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |n| start + n);
                bytes.splice(start..end, value.to_string().into_bytes());
            }
        }
    }
}

/// Bytes of a safetensors file in front of its data.
fn header_len(file: &[u8]) -> usize {
    8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let index = any::<prop::sample::Index>;
    let number = prop_oneof![0..5u64, Just(1 << 32), Just(1 << 62), Just(u64::MAX), any::<u64>()];
    let one = prop_oneof![
        4 => (index(), any::<u8>()).prop_map(|(at, value)| Damage::Set(at, value)),
        1 => index().prop_map(Damage::Cut),
        1 => (index(), 1..9usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        1 => (index(), index()).prop_map(|(from, to)| Damage::Repeat(from, to)),
        3 => (index(), number).prop_map(|(at, value)| Damage::Number(at, value)),
    ];
    prop::collection::vec(one, 1..4)
}

/// Runs `read` on `cases` copies of `whole` with damage in their first `reach` bytes, always the same ones, and returns
/// how many were still accepted.
fn fuzz(whole: &[u8], reach: usize, cases: u32, largest_allowed: usize, read: impl Fn(&[u8]) -> Result<(), Error>) -> u32 {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let accepted = Cell::new(0);
    let outcome = TestRunner::new_with_rng(config, rng).run(&damage(), |damage| {
        let mut bytes = whole.to_vec();
        damage.iter().for_each(|damage| damage.apply(&mut bytes, reach));
        let (result, largest) = watched(|| read(&bytes));
        prop_assert!(largest <= largest_allowed.max(8 * bytes.len()), "{} bytes at once", largest);
        match result {
            Ok(()) => accepted.set(accepted.get() + 1),
            Err(error) => prop_assert!(!error.to_string().contains('\n'), "{}", error),
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    accepted.get()
}

#[test]
fn damaged_weights_and_latents_never_panic() {
    let everything = |bytes: &[u8]| {
        let weights = Weights::from_bytes(bytes.to_vec(), "fuzz")?;
        let names: Vec<String> = weights.names().map(str::to_owned).collect();
        names.iter().for_each(|name| drop(weights.get_any(name)));
        if let Some(view) = vae_keys::view(&weights) {
            let _ = VaeConfig::infer(&view, None);
        }
        if let Err(error) = recognise(&weights).and_then(|recognised| check(&weights, &recognised)) {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
        Ok(())
    };
    let taesd = TaesdConfig { latent_channels: 4, channels: vec![2, 2], blocks: vec![1, 1] };
    let vae = VaeConfig { norm_num_groups: 32, block_out_channels: vec![32], layers_per_block: 1, ..VaeConfig::default() };
    for tensors in [taesd.tensors(Half::Encoder), taesd.tensors(Half::Decoder), vae.tensors(true, true)] {
        let file = zeros(&tensors, &[]);
        let accepted = fuzz(&file, header_len(&file), 150, MODEST, everything);
        assert!((1..150).contains(&accepted), "{accepted} of 150 accepted: the damage is too great or too small");
    }
    let config = small_infgen();
    let infgen = zeros(&config.tensors(), &[("infgen_config", &config.to_json())]);
    fuzz(&infgen, header_len(&infgen), 150, MODEST, everything);

    let folder = Folder::new();
    let latent = Latent::new([1, 2, 3, 4], (0..24).map(|i| i as f32).collect()).unwrap();
    for name in ["l.npy", "l.safetensors"] {
        latent.save(folder.path(name)).unwrap();
        let bytes = std::fs::read(folder.path(name)).unwrap();
        let accepted = fuzz(&bytes, bytes.len(), 400, MODEST, |bytes| Latent::from_bytes(bytes.to_vec(), "fuzz").map(drop));
        assert!((1..400).contains(&accepted), "{name}: {accepted} of 400 accepted");
    }
}

#[test]
fn damaged_configs_never_panic() {
    let infgen = small_infgen().to_json();
    let read = |bytes: &[u8]| {
        let config = InfgenConfig::from_json(&String::from_utf8_lossy(bytes), Path::new("c"))?;
        let (tensors, blocks) = (config.tensors().len(), config.up_blocks().len());
        assert!(tensors < 20_000 && blocks <= 8);
        Ok(())
    };
    let accepted = fuzz(infgen.as_bytes(), infgen.len(), 400, 8 * MODEST, read);
    assert!((1..400).contains(&accepted), "{accepted} of 400 accepted");
    let vae = r#"{"_class_name":"AutoencoderKL","act_fn":"silu","block_out_channels":[32,64],"down_block_types":["DownEncoderBlock2D"],
        "latent_channels":4,"layers_per_block":2,"norm_num_groups":32,"scaling_factor":0.13025,"force_upcast":true}"#;
    let read = |bytes: &[u8]| {
        let config = VaeConfig::from_json(&String::from_utf8_lossy(bytes), Path::new("c"))?;
        assert!(config.tensors(true, true).len() < 20_000);
        Ok(())
    };
    let accepted = fuzz(vae.as_bytes(), vae.len(), 400, MODEST, read);
    assert!((1..400).contains(&accepted), "{accepted} of 400 accepted");
}

#[test]
fn damaged_pictures_never_panic() {
    let folder = Folder::new();
    for name in ["o.png", "o.jpg", "o.webp"] {
        picture(24, 18).save(folder.path(name), &[("k", "v")]).unwrap();
        let bytes = std::fs::read(folder.path(name)).unwrap();
        // JPEG and WebP sides have 16 and 14 bits, so a damaged one may honestly ask for a large picture.
        fuzz(&bytes, bytes.len(), 200, 5 << 30, |bytes| Image::from_bytes(bytes, "fuzz").map(drop));
    }
}
