//! Which GPU: listing, choosing, and the facts about it that users are shown.

use super::recorder::MatrixUnits;
use crate::error::{Error, Result};

/// One adapter, as `infgen devices` lists it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct AdapterFacts {
    /// Position in the list, what `--device N` takes. Best first.
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// `vulkan`, `metal`, `dx12` or `browser-webgpu`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: String,
    /// Driver name and version.
    pub driver: String,
    /// Largest buffer in bytes.
    pub max_buffer: u64,
    /// Largest storage binding in bytes.
    pub max_binding: u64,
    /// Workgroup memory in bytes.
    pub workgroup_memory: u32,
    /// Native f16 arithmetic and storage (`shader-f16`).
    pub f16: bool,
    /// Smallest and largest subgroup size, `(0, 0)` where subgroups are not available.
    pub subgroups: (u32, u32),
    /// Square cooperative-matrix shapes, such as `16x16x16 f16->f32`.
    pub cooperative_matrices: Vec<String>,
    /// GPU timestamps.
    pub timestamps: bool,
}

impl AdapterFacts {
    /// Apple's GPUs have 128 registers of 32 bits an invocation: kernels with two tiles of channels spill there, those with one do not (`scripts/compilers apple-m1`).
    pub fn has_few_registers(&self) -> bool {
        self.name.contains("Apple")
    }
}

pub(crate) fn facts(index: usize, adapter: &wgpu::Adapter) -> AdapterFacts {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let features = adapter.features();
    let mut cooperative: Vec<String> = adapter
        .cooperative_matrix_properties()
        .iter()
        .filter(|p| p.m_size == p.n_size && p.n_size == p.k_size)
        .map(|p| format!("{0}x{0}x{0} {1:?}->{2:?}", p.m_size, p.ab_type, p.cr_type).to_lowercase())
        .collect();
    cooperative.sort();
    cooperative.dedup();
    AdapterFacts {
        index,
        name: info.name.clone(),
        backend: info.backend.to_string(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        }
        .into(),
        driver: [info.driver.as_str(), info.driver_info.as_str()].join(" ").trim().to_owned(),
        max_buffer: limits.max_buffer_size,
        max_binding: limits.max_storage_buffer_binding_size,
        workgroup_memory: limits.max_compute_workgroup_storage_size,
        f16: features.contains(wgpu::Features::SHADER_F16),
        subgroups: if features.contains(wgpu::Features::SUBGROUP) { (info.subgroup_min_size, info.subgroup_max_size) } else { (0, 0) },
        cooperative_matrices: cooperative,
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
    }
}

/// The matrix units that kernels can use: f16 products with f32 sums, through Vulkan (naga writes no matrices for DX12, and for Metal none
/// that load quads). wgpu cannot ask for a subgroup size: where a device has several, kernels are written for the largest. A smaller one that the driver chose
/// computes and stores the same as those beside it in what was meant to be one subgroup: the same result, and more work. (That two store equal values at one place
/// between two barriers is formally a race.)
pub(crate) fn matrix_units(adapter: &wgpu::Adapter) -> Option<MatrixUnits> {
    use wgpu::CooperativeScalarType as Scalar;
    let (info, features) = (adapter.get_info(), adapter.features());
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
    if info.backend != wgpu::Backend::Vulkan || !features.contains(needed) {
        return None;
    }
    let usable = |side: u32| {
        let square = |p: &wgpu::CooperativeMatrixProperties| p.m_size == side && p.n_size == side && p.k_size == side;
        let typed = |p: &wgpu::CooperativeMatrixProperties| p.ab_type == Scalar::F16 && p.cr_type == Scalar::F32;
        adapter.cooperative_matrix_properties().iter().any(|p| square(p) && typed(p))
    };
    let side = [16, 8].into_iter().find(|&side| usable(side))?;
    Some(MatrixUnits { side, subgroup: info.subgroup_max_size }).filter(|units| MatrixUnits::KNOWN.contains(units))
}

/// The backends that this crate runs on.
pub(crate) fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::PRIMARY;
    // Checks of indirect draws and dispatches, of which there are none here, for two pipelines that every device would begin with.
    descriptor.flags.remove(wgpu::InstanceFlags::VALIDATION_INDIRECT_CALL);
    wgpu::Instance::new(descriptor)
}

/// All adapters, best first: discrete, integrated, virtual, other, software; stable within a kind.
async fn enumerate(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    #[cfg(not(target_arch = "wasm32"))]
    let mut adapters = instance.enumerate_adapters(wgpu::Backends::PRIMARY).await;
    #[cfg(target_arch = "wasm32")]
    let mut adapters: Vec<wgpu::Adapter> = {
        let options = wgpu::RequestAdapterOptions { power_preference: wgpu::PowerPreference::HighPerformance, ..Default::default() };
        instance.request_adapter(&options).await.into_iter().collect()
    };
    adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    adapters
}

/// Facts about every adapter, in the order that `--device N` counts.
pub async fn adapters() -> Vec<AdapterFacts> {
    enumerate(&instance()).await.iter().enumerate().map(|(index, adapter)| facts(index, adapter)).collect()
}

/// The adapter for `wanted`: nothing (the best), an index, a backend (a GPU may be there through two), or a part of a name (case does not matter). With a `surface`,
/// the best one is the best that can present on it.
///
/// # Errors
/// [`Error::NoAdapter`] with what there is instead.
pub(crate) async fn choose(
    instance: &wgpu::Instance,
    wanted: Option<&str>,
    surface: Option<&wgpu::Surface<'_>>,
) -> Result<(AdapterFacts, wgpu::Adapter)> {
    let adapters = enumerate(instance).await;
    let all: Vec<AdapterFacts> = adapters.iter().enumerate().map(|(i, a)| facts(i, a)).collect();
    let presents = |index: usize| surface.is_none_or(|surface| adapters[index].is_surface_supported(surface));
    let index = match (pick(&all, wanted)?, wanted) {
        (index, _) if presents(index) => index,
        (index, Some(_)) => {
            let detail = format!("{} cannot draw into a window on this display", all[index].name);
            return Err(Error::NoAdapter { detail });
        }
        (_, None) => (0..all.len())
            .find(|&index| presents(index))
            .ok_or_else(|| Error::NoAdapter { detail: "no adapter can draw into a window on this display".into() })?,
    };
    let adapter = adapters.into_iter().nth(index).expect("pick returns an index into the list");
    Ok((all[index].clone(), adapter))
}

/// What a machine without an adapter lacks, and where that is to be had.
pub const NO_DRIVER: &str = if cfg!(target_arch = "wasm32") {
    "this browser gives the page no WebGPU device; current versions of Chrome, Edge, Safari and Firefox do, on pages \
     opened over https or from localhost, with a graphics driver that they accept"
} else if cfg!(target_os = "linux") {
    "no Vulkan driver was found; on Debian or Ubuntu `apt-get install mesa-vulkan-drivers` installs drivers for AMD, Intel and a \
     software fallback, NVIDIA's driver brings its own"
} else {
    "no Vulkan, Metal or DX12 driver was found; the maker of the graphics card has one"
};

fn pick(all: &[AdapterFacts], wanted: Option<&str>) -> Result<usize> {
    if all.is_empty() {
        return Err(Error::NoAdapter { detail: NO_DRIVER.into() });
    }
    let Some(wanted) = wanted else { return Ok(0) };
    let found = match wanted.parse::<usize>() {
        Ok(index) => (index < all.len()).then_some(index),
        Err(_) => {
            let wanted = wanted.to_lowercase();
            all.iter().position(|facts| facts.backend == wanted || facts.name.to_lowercase().contains(&wanted))
        }
    };
    found.ok_or_else(|| Error::NoAdapter { detail: format!("`{wanted}` is none of: {}", listed(all.iter())) })
}

fn listed<'a>(all: impl Iterator<Item = &'a AdapterFacts>) -> String {
    let list: Vec<String> = all.map(|facts| format!("{} {} ({})", facts.index, facts.name, facts.backend)).collect();
    list.join(", ")
}

/// That the driver of adapter `index` of `all` would not open it, and which others there are.
pub(crate) fn refusal(all: &[AdapterFacts], index: usize, reason: &str) -> Error {
    let name = all.get(index).map_or("the adapter", |facts| &facts.name);
    let detail = match listed(all.iter().filter(|facts| facts.index != index)) {
        others if others.is_empty() => format!("{name} refused to open: {reason}"),
        others => format!("{name} refused to open: {reason}; others, to be named as the device: {others}"),
    };
    Error::NoAdapter { detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(index: usize, name: &str) -> AdapterFacts {
        AdapterFacts {
            index,
            name: name.into(),
            backend: "vulkan".into(),
            kind: "discrete".into(),
            driver: String::new(),
            max_buffer: 0,
            max_binding: 0,
            workgroup_memory: 0,
            f16: false,
            subgroups: (0, 0),
            cooperative_matrices: vec![],
            timestamps: false,
        }
    }

    #[test]
    fn devices_are_picked_by_index_by_part_of_a_name_and_by_backend() {
        let all = [named(0, "Radeon RX"), named(1, "llvmpipe (LLVM 15)"), AdapterFacts { backend: "dx12".into(), ..named(2, "Radeon RX") }];
        assert_eq!(pick(&all, None).unwrap(), 0);
        assert_eq!(pick(&all, Some("1")).unwrap(), 1);
        assert_eq!(pick(&all, Some("LLVMpipe")).unwrap(), 1);
        assert_eq!(pick(&all, Some("radeon")).unwrap(), 0);
        assert_eq!(pick(&all, Some("DX12")).unwrap(), 2);
        let message = pick(&all, Some("3")).unwrap_err().to_string();
        assert!(message.contains("Radeon RX") && message.contains("llvmpipe"), "{message}");
        assert!(matches!(pick(&all, Some("geforce")), Err(Error::NoAdapter { .. })));
        let message = refusal(&all, 0, "too few limits").to_string();
        assert!(
            message.contains("Radeon RX refused to open: too few limits")
                && message.contains("1 llvmpipe")
                && !message.contains("0 Radeon"),
            "{message}"
        );
        assert!(!refusal(&all[..1], 0, "too few limits").to_string().contains("others"));
        assert!(pick(&[], None).unwrap_err().to_string().contains("driver was found"));
    }
}
