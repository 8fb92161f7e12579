//! Every variant of a kernel that must compile: with naga (tests/shaders.rs) and in a browser (tests/web.rs).

use infgen::gpu::{Bind, Kernel, MatrixUnits, Storage};

/// Values of the `override` constants in use: lanes of a CPU and of a GPU, heads of the networks' widths.
pub fn constants(kernel: &Kernel) -> Vec<Vec<(&'static str, u32)>> {
    let lanes = || [(1, 8), (2, 4), (4, 2), (8, 1), (1, 64), (2, 32), (4, 16), (8, 8)];
    // Packed for, pairs of quads side by side, and rows or pixels.
    let pairs = || [(2, 1, 8), (4, 2, 4), (8, 4, 2), (8, 8, 1), (2, 1, 64), (4, 2, 32), (8, 4, 16), (8, 8, 8)];
    let tiles = || [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2)];
    match kernel.name.split('+').next().unwrap_or_default() {
        "linear_lanes" => {
            pairs().into_iter().flat_map(|(lc, cl, rl)| [0, 1].map(|r| vec![("LC", lc), ("CL", cl), ("RL", rl), ("RESIDUAL", r)])).collect()
        }
        "conv2d_3x3_lanes" if kernel.name.ends_with("+broadcast") => [0, 1].map(|r| vec![("LC", 1), ("LP", 8), ("RESIDUAL", r)]).into(),
        "conv2d_3x3_lanes" => {
            lanes().into_iter().flat_map(|(lc, lp)| [0, 1].map(|r| vec![("LC", lc), ("LP", lp), ("RESIDUAL", r)])).collect()
        }
        "conv2d_3x3_pairs" => {
            pairs().into_iter().flat_map(|(lc, cl, pl)| [0, 1].map(|r| vec![("LC", lc), ("CL", cl), ("PL", pl), ("RESIDUAL", r)])).collect()
        }
        "linear_broadcast" | "conv2d_3x3_broadcast" | "conv2d_winograd" => [0, 1].map(|r| vec![("RESIDUAL", r)]).into(),
        "conv2d_phase_winograd" => vec![vec![("RESIDUAL", 0)]],
        "conv2d_phase_pairs" => pairs().map(|(lc, cl, pl)| vec![("LC", lc), ("CL", cl), ("PL", pl)]).into(),
        "conv2d_3x3_tile" => tiles()
            .into_iter()
            .flat_map(|(lc, lt)| (0..6).map(move |n| vec![("LC", lc), ("LT", lt), ("NORM", n / 2), ("RESIDUAL", n % 2)]))
            .collect(),
        "conv2d_phase_winograd_tile" => vec![vec![("NORM", 0), ("RESIDUAL", 0)]],
        "conv2d_winograd_tile" => (0..6).map(|n| vec![("NORM", n / 2), ("RESIDUAL", n % 2)]).collect(),
        "conv2d_phase_tile" => tiles().map(|(lc, lt)| vec![("LC", lc), ("LT", lt)]).into(),
        "linear_tile" => tiles().into_iter().flat_map(|(lc, lt)| [0, 1].map(|r| vec![("LC", lc), ("LT", lt), ("RESIDUAL", r)])).collect(),
        "conv2d_phase_lanes" => lanes().map(|(lc, lp)| vec![("LC", lc), ("LP", lp)]).into(),
        "conv2d_direct" => lanes().into_iter().flat_map(|(lc, lp)| [1, 3].map(|k| vec![("LC", lc), ("LP", lp), ("K", k)])).collect(),
        // Sides and subgroups of NVIDIA, AMD, Intel, Apple and llvmpipe.
        "conv2d_3x3_matrix" => units()
            .into_iter()
            .flat_map(|unit| (0..6).map(move |n| [unit.clone(), vec![("NORM", n / 2), ("RESIDUAL", n % 2)]].concat()))
            .collect(),
        "conv2d_phase_matrix" => units(),
        "linear_matrix" => units().into_iter().flat_map(|unit| [0, 1].map(|r| [unit.clone(), vec![("RESIDUAL", r)]].concat())).collect(),
        // Heads of 40, 64, 160 and 512.
        "attention_matrix" => [
            [10, 16, 32, 128, 4, 1, 64, 4, 3, 64, 2304, 12],
            [40, 16, 32, 128, 4, 1, 64, 4, 10, 32, 2304, 16],
            [10, 16, 32, 128, 4, 1, 32, 2, 3, 32, 1728, 12],
            [16, 16, 32, 128, 4, 1, 32, 2, 4, 32, 1728, 16],
            [16, 16, 64, 256, 4, 1, 32, 2, 4, 32, 1728, 16],
            [40, 16, 32, 128, 4, 1, 32, 2, 10, 32, 1728, 16],
            [128, 16, 32, 256, 2, 4, 64, 1, 8, 16, 2080, 16],
            [16, 8, 32, 128, 4, 1, 32, 4, 8, 32, 1152, 16],
            [40, 8, 8, 64, 2, 4, 64, 2, 5, 32, 1440, 16],
            [128, 8, 32, 256, 2, 4, 64, 2, 16, 16, 2080, 16],
        ]
        .into_iter()
        .flat_map(|set| {
            let names = ["D4", "SIDE", "SG", "WG", "RS", "CS", "KEYS", "SN", "ON", "VK", "STAGE", "CHUNK"];
            let whole: Vec<_> = names.into_iter().zip(set).chain([("SPLIT", 0)]).collect();
            // Operands in f32 are staged twice, where that takes no more than 48 KiB.
            let split = (set[6] == 32 && set[3] <= 128)
                .then(|| names.into_iter().zip(set).map(|(name, n)| (name, if name == "STAGE" { 2 * n } else { n })));
            std::iter::once(whole).chain(split.map(|split| split.chain([("SPLIT", 1)]).collect()))
        })
        .collect(),
        "attention_tile" => {
            [[1, 8, 128, 32, 1, 32], [10, 8, 128, 32, 2, 32], [16, 8, 128, 32, 2, 16], [40, 8, 128, 32, 5, 8], [128, 16, 256, 64, 8, 4]]
                .map(|set| ["D4", "T", "WG", "KEYS", "QN", "VK"].into_iter().zip(set).collect())
                .into()
        }
        // Lanes that read for each other take octets.
        "attention_lanes" if kernel.bindings[1] == Bind::X8 => {
            [(2, 8), (8, 8), (10, 8), (16, 4)].map(|(d4, run)| vec![("D4", d4), ("WG", 8), ("RUN", run)]).to_vec()
        }
        "attention_lanes" => [1, 5, 8].map(|d4| vec![("D4", d4), ("WG", 8), ("RUN", 8)]).to_vec(),
        "attention" | "attention_biased" | "attention_range" => [
            (1, 1, 8, 1),
            (5, 1, 64, 5),
            (10, 2, 64, 5),
            (16, 1, 8, 16),
            (40, 8, 64, 5),
            (128, 8, 8, 16),
            (128, 16, 64, 8),
            (1024, 128, 128, 8),
        ]
        .map(|(d4, s, wg, qn)| {
            let plane = if kernel.name == "attention_biased" { &[("ROWS", 16), ("COLUMNS", 16)][..] } else { &[] };
            [&[("D4", d4), ("S", s), ("WG", wg), ("QN", qn)], plane].concat()
        })
        .into(),
        "glu" => [2, 3].map(|act| vec![("ACT", act)]).into(),
        "norm_apply" => {
            [(0, 1, 256), (1, 1, 256), (0, 8, 32), (1, 8, 32)].map(|(silu, run, wg)| vec![("SILU", silu), ("RUN", run), ("WG", wg)]).into()
        }
        _ => vec![vec![]],
    }
}

/// As `kernels::matrix` has it: 128 rows by 64 channels in products of 4 x 2 a subgroup.
fn units() -> Vec<Vec<(&'static str, u32)>> {
    let shapes = MatrixUnits::KNOWN.into_iter().flat_map(|units| [(units, 1, 0), (units, 1, 1), (units, 2, 0), (units, 2, 1)]);
    let consts = |(MatrixUnits { side, subgroup }, wide, split)| {
        let invocations = 128 / (4 * side) * (64 / (2 * side)) * subgroup;
        vec![("SIDE", side), ("SG", subgroup), ("WG", invocations), ("WIDE", wide), ("SPLIT", split)]
    };
    shapes.map(consts).collect()
}

/// Invocations and bytes of workgroup memory that the variant may take: WebGPU's defaults, but for those that run only where a device has more.
pub fn limits(kernel: &Kernel, consts: &[(&'static str, u32)]) -> (u32, u32) {
    let wide_heads = kernel.name.starts_with("attention_tile") && consts.contains(&("T", 16));
    let winograd = kernel.name.starts_with("conv2d_winograd_tile");
    match on_matrix_units(kernel) {
        true => (512, 48 << 10),
        false if wide_heads => (256, 28 << 10),
        false if winograd => (256, 19 << 10),
        false => (256, 16 << 10),
    }
}

/// Whether the kernel runs on matrix units, which no backend but Vulkan's has.
pub fn on_matrix_units(kernel: &Kernel) -> bool {
    constants(kernel)[0].iter().any(|&(name, _)| name == "SIDE")
}

/// Whether the lanes of a kernel read for each other, which needs the feature subgroups.
pub fn uses_subgroups(source: &str) -> bool {
    ["subgroupBroadcast(", "subgroupShuffle("].iter().any(|name| source.contains(name))
}

/// Storage kinds of X, W and Y that occur together: a device has one kind of f16, and any of the three may be f32.
pub fn storages(kernel: &Kernel) -> Vec<[Storage; 3]> {
    if on_matrix_units(kernel) {
        return vec![[Storage::F16; 3], [Storage::F16, Storage::F16, Storage::F32], [Storage::F32, Storage::F16, Storage::F32]];
    }
    let uses = |kinds: &[Bind]| kernel.bindings.iter().any(|b| kinds.contains(b));
    let used = [uses(&[Bind::X, Bind::X8]), uses(&[Bind::W, Bind::W8]), uses(&[Bind::Y, Bind::YRead])];
    let mut all = vec![];
    for half in [Storage::F16, Storage::Packed] {
        for bits in 0..8 {
            let storage = std::array::from_fn(|i| if used[i] && bits >> i & 1 == 1 { half } else { Storage::F32 });
            if !all.contains(&storage) {
                all.push(storage);
            }
        }
    }
    all
}
