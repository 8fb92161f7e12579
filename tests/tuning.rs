//! Choosing kernels by measuring: what is chosen is remembered, what is remembered is used, and every form of a decode uses it.

use infgen::gpu::{Families, KernelFamily, KernelPlan};
use infgen::{Engine, EngineOptions, Error, Latent, Observer, Rect, Tuning, Weights};
use pollster::block_on;
use sha2::{Digest, Sha256};

fn options(folder: &std::path::Path, tuning: Tuning) -> EngineOptions {
    let device = std::env::var("INFGEN_DEVICE").ok();
    EngineOptions { device, tuning, cache_folder: Some(folder.to_owned()), ..EngineOptions::default() }
}

fn open(options: EngineOptions) -> Option<Engine> {
    match Engine::new(options) {
        Ok(engine) => Some(engine),
        Err(Error::NoAdapter { detail }) => {
            assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|v| v != "1"), "REQUIRE_GPU=1, but: {detail}");
            eprintln!("SKIPPED: no GPU adapter on this machine (REQUIRE_GPU=1 makes this a failure)");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_choice_is_measured_once_remembered_and_used_by_every_form_of_a_decode() {
    let folder = tempfile::tempdir().unwrap();
    let files = || std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect::<Vec<_>>();

    // Without tuning: the fixed choice, and nothing is written.
    let Some(engine) = open(options(folder.path(), Tuning::Off)) else { return };
    let software = engine.gpu().profile().software;
    assert_eq!(
        engine.gpu().profile().kernels,
        KernelPlan::fixed(software, engine.gpu().profile().broadcast, engine.device().has_few_registers())
    );
    assert_eq!(files().len(), 0);
    if software {
        let engine = open(options(folder.path(), Tuning::Gpus)).unwrap();
        assert_eq!((engine.gpu().profile().kernels, files().len()), (KernelPlan::fixed(true, engine.gpu().profile().broadcast, false), 0));
    }

    // Cancelled on the way: nothing is remembered.
    let handle = std::sync::Arc::new(std::sync::OnceLock::<Observer>::new());
    let inner = handle.clone();
    let observer = Observer::new(move |at| {
        if at.layer.contains("linear") {
            inner.get().unwrap().cancel();
        }
    });
    handle.set(observer.clone()).unwrap();
    let cancelled = block_on(Engine::new_async(options(folder.path(), Tuning::Always), &observer));
    assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
    assert_eq!(files().len(), 0);

    // Measured: a file for each storage type of activations, which says what is used.
    let engine = open(options(folder.path(), Tuning::Always)).unwrap();
    let mut kept: Vec<_> = files().iter().map(|file| String::from_utf8(std::fs::read(file).unwrap()[32..].to_vec()).unwrap()).collect();
    let KernelPlan { f16, f32 } = engine.gpu().profile().kernels;
    let mut used = vec![f16.to_string(), f32.to_string()];
    kept.sort();
    used.sort();
    assert_eq!(kept, used);
    assert!(engine.gpu().compiled().0 > 3, "kernels were tried");

    // Remembered: another choice in the file is the one that counts, without trying anything.
    let families = Families {
        conv: KernelFamily::Tile,
        upsample: KernelFamily::Lanes,
        linear: KernelFamily::NarrowTile,
        attention: KernelFamily::Tile,
    };
    let plan = KernelPlan { f16: families, f32: families };
    assert!(![f16, f32].contains(&families), "this device was measured to like this: choose others for this test");
    let text = families.to_string();
    for file in files() {
        std::fs::write(file, [&Sha256::digest(&text)[..], text.as_bytes()].concat()).unwrap();
    }
    let engine = open(options(folder.path(), Tuning::Always)).unwrap();
    assert_eq!((engine.gpu().profile().kernels, engine.gpu().compiled().0), (plan, 0));

    // Whole, under a ceiling, and a rectangle: one plan, one set of bits.
    let latent = Latent::new([1, 4, 6, 5], infgen::noise::torch_cpu_randn(3, 4 * 6 * 5)).unwrap();
    let decoder = engine.load_decoder(Weights::Builtin).unwrap();
    let (width, height) = (61, 75);
    let whole = decoder.decode(&latent, width, height).unwrap();
    let (rect, decoding) = (Rect { x: 13, y: 22, w: 31, h: 40 }, decoder.prepare(&latent, width, height).unwrap());
    let part = decoding.region(rect).unwrap();
    for (row, line) in part.data().chunks_exact(3 * rect.w).enumerate() {
        let at = 3 * ((rect.y + row) * width + rect.x);
        assert_eq!(line, &whole.data()[at..at + 3 * rect.w], "row {row}");
    }
}
