//! Devices that tests run on, opened once a process.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, OnceLock};

use infgen::gpu::{DeviceProfile, Elem, Gpu, GpuOptions, KernelFamily, KernelPlan, Observer, Outputs, Recorder, Recording};
use infgen::nn::Precision;
use infgen::{Dtype, Engine, EngineOptions};

/// One open device. A lock keeps concurrent tests from sharing its memory pool and its cuts.
pub struct Device {
    pub name: &'static str,
    gpu: Mutex<Gpu>,
    pub profile: DeviceProfile,
}

impl Device {
    pub fn lock(&self) -> MutexGuard<'_, Gpu> {
        self.gpu.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// All that the device offers.
pub const NATIVE: &str = "native";
/// The same with f16 packed in u32.
pub const PACKED: &str = "packed";
/// WebGPU's default limits and no optional feature.
pub const BROWSER: &str = "browser";

/// The device called `name`, or nothing if this machine has no adapter.
pub fn device(name: &'static str) -> Option<&'static Device> {
    static NATIVE_CELL: OnceLock<Option<Device>> = OnceLock::new();
    static PACKED_CELL: OnceLock<Option<Device>> = OnceLock::new();
    static BROWSER_CELL: OnceLock<Option<Device>> = OnceLock::new();
    let cell = match name {
        NATIVE => &NATIVE_CELL,
        PACKED => &PACKED_CELL,
        BROWSER => &BROWSER_CELL,
        _ => panic!("no device {name}"),
    };
    let open = || {
        let options = GpuOptions {
            packed_f16: name == PACKED,
            native_f16: name == NATIVE,
            default_limits: name == BROWSER,
            guard_memory: true,
            ..options()
        };
        open(&options).map(|gpu| Device { name, profile: *gpu.profile(), gpu: Mutex::new(gpu) })
    };
    cell.get_or_init(open).as_ref()
}

/// Options for the adapter that tests use: `INFGEN_DEVICE` (an index, a part of a name, or a backend), else the best one.
pub fn options() -> GpuOptions {
    GpuOptions { device: std::env::var("INFGEN_DEVICE").ok(), ..GpuOptions::default() }
}

/// Opens a device of the test's own.
pub fn open(options: &GpuOptions) -> Option<Gpu> {
    match pollster::block_on(Gpu::new(options)) {
        Ok(gpu) => Some(gpu),
        Err(infgen::error::Error::NoAdapter { detail }) => {
            assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|v| v != "1"), "REQUIRE_GPU=1, but: {detail}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// An engine on the device that the environment names, or none.
pub fn engine(dtype: Dtype) -> Option<Engine> {
    match Engine::new(EngineOptions { device: options().device, dtype, ..EngineOptions::default() }) {
        Ok(engine) => Some(engine),
        Err(infgen::Error::NoAdapter { detail }) => {
            assert!(std::env::var_os("REQUIRE_GPU").is_none(), "{detail}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Says that `test` does nothing on this machine; not captured by the test runner.
pub fn skipped(test: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no GPU adapter on this machine (REQUIRE_GPU=1 makes this a failure)");
}

/// Says that `test` leaves the kernels out whose lanes read for each other on this machine.
pub fn skipped_broadcast(test: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: this is no software device with subgroups of 8 lanes");
}

/// Says that `test` leaves the kernel out that needs more workgroup memory than this machine's device has.
pub fn skipped_winograd(test: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}, Winograd's tiles: this device has too little workgroup memory");
}

/// Says that `test` leaves the kernels for matrix units out on this machine.
pub fn skipped_matrix(test: &str) {
    assert!(std::env::var_os("REQUIRE_MATRIX").is_none_or(|v| v != "1"), "REQUIRE_MATRIX=1, but the device has no matrix units");
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED {test}, kernels for matrix units: this device has none (REQUIRE_MATRIX=1 makes this a failure)"
    );
}

/// Runs a recording to its end.
pub fn run(gpu: &Gpu, recording: Recording) -> infgen::error::Result<Outputs> {
    pollster::block_on(gpu.run(recording, &Observer::default()))
}

/// A device, a storage type, and for which kind of device kernels are chosen.
#[derive(Clone, Copy)]
pub struct Config {
    pub name: &'static str,
    pub device: &'static Device,
    /// Of activations.
    pub elem: Elem,
    /// Of weights.
    pub weights: Elem,
    pub profile: DeviceProfile,
}

impl Config {
    pub fn precision(&self) -> Precision {
        Precision { activations: self.elem, weights: self.weights }
    }

    /// The same with other kernels.
    pub fn with_kernels(self, family: KernelFamily) -> Config {
        Config { profile: DeviceProfile { kernels: KernelPlan::uniform(family), ..self.profile }, ..self }
    }

    pub fn recorder(&self) -> Recorder {
        Recorder::new(self.profile)
    }
}

/// Every way in which a kernel must work; nothing if this machine has no adapter.
pub fn configs() -> Vec<Config> {
    let (Some(native), Some(packed), Some(browser)) = (device(NATIVE), device(PACKED), device(BROWSER)) else {
        return vec![];
    };
    let config = |name, device: &'static Device, elem| Config { name, device, elem, weights: elem, profile: device.profile };
    // Kernels for a GPU on a software rasteriser, or the other way round.
    let other = |c: Config, name| Config { name, profile: DeviceProfile { software: !c.profile.software, ..c.profile }, ..c };
    vec![
        config("f32", native, Elem::F32),
        // Packed as well where the device has no shader-f16.
        config(if native.profile.native_f16 { "f16" } else { "f16 without shader-f16" }, native, Elem::Half),
        config("packed", packed, Elem::Half),
        config("browser f32", browser, Elem::F32),
        config("browser f16", browser, Elem::Half),
        other(config("", native, Elem::F32), "f32, lanes of the other kind"),
        other(config("", packed, Elem::Half), "packed, lanes of the other kind"),
    ]
}
