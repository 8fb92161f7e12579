//! Every kernel in every variant without a GPU: naga parses, validates and translates it, and its bindings, `Params` and
//! sizes are what the Rust side and WebGPU's default limits say.

#[path = "common/modules.rs"]
mod modules;
#[path = "common/variants.rs"]
mod variants;

use std::collections::HashMap;

use infgen::gpu::{Bind, HEADER_BYTES, Kernel, Storage, Variant};
use infgen::kernels;
use modules::{parse, resolved};
use naga::back::{hlsl, msl, spv, wgsl};
use naga::valid::ModuleInfo;
use naga::{AddressSpace, Module, Scalar, ScalarKind, StorageAccess, TypeInner};
use variants::{constants, limits, on_matrix_units, storages};

/// WebGPU's default limits.
const MAX_STORAGE_BUFFERS: usize = 8;

/// What the WGSL declares against what the Rust side says; a description of the first difference.
fn check_interface(kernel: &Kernel, variant: &Variant, module: &Module) -> Result<(), String> {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).map_err(|e| e.to_string())?;
    let mut found = 0;
    for (_, global) in module.global_variables.iter() {
        let Some(at) = &global.binding else { continue };
        let name = global.name.as_deref().unwrap_or("?");
        let inner = &module.types[global.ty].inner;
        if at.group != 0 {
            return Err(format!("{name} is in group {}", at.group));
        }
        if at.binding == 0 {
            if global.space != AddressSpace::Uniform {
                return Err(format!("binding 0 is {:?}", global.space));
            }
            check_params(kernel, module, inner)?;
            continue;
        }
        found += 1;
        let Some(kind) = kernel.bindings.get(at.binding as usize - 1) else {
            return Err(format!("binding {} `{name}` is not in Kernel::bindings", at.binding));
        };
        let AddressSpace::Storage { access } = global.space else { return Err(format!("{name} is {:?}", global.space)) };
        let writes = access.contains(StorageAccess::STORE);
        if writes != kind.writes() || !access.contains(StorageAccess::LOAD) {
            return Err(format!("{name} has access {access:?}, but is {kind:?}"));
        }
        let TypeInner::Array { base, .. } = *inner else { return Err(format!("{name} is no array")) };
        // Scalars of an F32 binding may be read one by one.
        let stride = layouter[base].size;
        let fits = |storage: Storage| stride == if storage == Storage::F32 { 16 } else { 8 };
        let right = match kind {
            Bind::X => fits(variant.x),
            Bind::W => fits(variant.w),
            Bind::X8 => stride == if variant.x == Storage::F32 { 32 } else { 16 },
            Bind::W8 => stride == if variant.w == Storage::F32 { 32 } else { 16 },
            Bind::Y | Bind::YRead => fits(variant.y),
            Bind::F32 | Bind::F32Write => {
                (stride == 16 || stride == 4) && module.types[base].inner.scalar_kind() == Some(ScalarKind::Float)
            }
            Bind::WordWrite => module.types[base].inner == TypeInner::Scalar(Scalar::U32),
            Bind::Counter => module.types[base].inner == TypeInner::Atomic(Scalar::U32),
        };
        if !right {
            return Err(format!("{name} holds {:?}, but is {kind:?}", module.types[base].inner));
        }
    }
    if found != kernel.bindings.len() {
        return Err(format!("{found} storage bindings, Kernel::bindings has {}", kernel.bindings.len()));
    }
    if found > MAX_STORAGE_BUFFERS {
        return Err(format!("{found} storage buffers"));
    }
    Ok(())
}

/// `wg`, `b0` and `b1`, then one scalar for each name of `Kernel::params`, without gaps.
fn check_params(kernel: &Kernel, module: &Module, params: &TypeInner) -> Result<(), String> {
    let TypeInner::Struct { members, span } = params else { return Err("Params is no struct".into()) };
    if *span as usize > 256 {
        return Err(format!("Params takes {span} bytes of a slot of 256"));
    }
    let header = ["wg", "b0", "b1"].map(|name| (name, 16));
    let own = kernel.params.iter().map(|&name| (name, 4));
    let expected: Vec<(&str, u32)> = header.into_iter().chain(own).collect();
    let mut offset = 0;
    for (i, (name, size)) in expected.iter().enumerate() {
        let Some(member) = members.get(i) else { return Err(format!("Params lacks `{name}`")) };
        let inner = &module.types[member.ty].inner;
        let vector = matches!(inner, TypeInner::Vector { size: naga::VectorSize::Quad, scalar } if *scalar == Scalar::U32);
        let scalar = matches!(inner, TypeInner::Scalar(s) if *s == Scalar::U32 || *s == Scalar::F32);
        if member.name.as_deref() != Some(name) || member.offset != offset || !(if *size == 16 { vector } else { scalar }) {
            return Err(format!(
                "member {i} of Params is {:?} at {} ({inner:?}), expected `{name}` at {offset}",
                member.name, member.offset
            ));
        }
        offset += size;
    }
    assert_eq!(header.len() * 16, HEADER_BYTES);
    if members.len() != expected.len() {
        return Err(format!("Params has {} members, Kernel::params and the header {}", members.len(), expected.len()));
    }
    Ok(())
}

fn translate_spirv(module: &Module, info: &ModuleInfo, label: &str) {
    let pipeline = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: module.entry_points[0].name.clone() };
    let options = spv::Options { lang_version: (1, 3), ..Default::default() };
    let words = spv::write_vec(module, info, &options, Some(&pipeline)).unwrap_or_else(|e| panic!("{label}: SPIR-V: {e}"));
    assert!(words.len() > 50, "{label}: SPIR-V");
}

/// To the languages of Metal and DX12.
fn translate(module: &Module, info: &ModuleInfo, label: &str) {
    let fail = |language: &str, error: String| -> ! { panic!("{label}: {language}: {error}") };
    let entry = &module.entry_points[0];
    let stage = naga::ShaderStage::Compute;
    let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let pipeline = msl::PipelineOptions { entry_point: Some((stage, entry.name.clone())), ..Default::default() };
    let (text, translated) = msl::write_string(module, info, &options, &pipeline).unwrap_or_else(|e| fail("MSL", e.to_string()));
    assert!(text.contains("kernel void"), "{label}: MSL");
    translated.entry_point_names.iter().for_each(|name| assert!(name.is_ok(), "{label}: MSL: {name:?}"));

    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_2, fake_missing_bindings: true, ..Default::default() };
    let pipeline = hlsl::PipelineOptions { entry_point: Some((stage, entry.name.clone())) };
    let mut text = String::new();
    let translated =
        hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None).unwrap_or_else(|e| fail("HLSL", e.to_string()));
    assert!(text.contains("numthreads"), "{label}: HLSL");
    translated.entry_point_names.iter().for_each(|name| assert!(name.is_ok(), "{label}: HLSL: {name:?}"));
}

/// WGSL from WGSL. naga's writer knows no array whose length was an `override`, so these become constants first.
fn translate_wgsl(mut source: String, variant: &Variant, label: &str) {
    for (name, value) in &variant.consts {
        let start = source.find(&format!("override {name}:")).unwrap_or_else(|| panic!("{label}: no override {name}"));
        let end = start + source[start..].find(';').unwrap();
        source.replace_range(start..end, &format!("const {name}: u32 = {value}u"));
    }
    let (module, info) = parse(&source, label);
    let text = wgsl::write_string(&module, &info, wgsl::WriterFlags::empty()).unwrap_or_else(|e| panic!("{label}: WGSL: {e}"));
    parse(&text, label);
}

#[test]
fn every_variant_is_valid_and_translates_to_every_backend() {
    let mut variants = 0;
    for kernel in kernels::ALL {
        for [x, w, y] in storages(kernel) {
            let mut parsed: HashMap<String, (Module, ModuleInfo)> = HashMap::new();
            for (n, consts) in constants(kernel).into_iter().enumerate() {
                let variant = Variant { x, w, y, consts };
                let label = format!("{} {x:?} {w:?} {y:?} {:?}", kernel.name, variant.consts);
                let source = kernel.source(&variant);
                let parsed = parsed.entry(source.clone()).or_insert_with(|| parse(&source, &label));
                if n == 0 {
                    check_interface(kernel, &variant, &parsed.0).unwrap_or_else(|e| panic!("{label}: {e}"));
                }
                check_overrides(&parsed.0, &variant, &label);
                let (module, info) = resolved(parsed, &variant.consts, &label);
                check_sizes(&module, limits(kernel, &variant.consts), &label);
                translate_spirv(&module, &info, &label);
                if !on_matrix_units(kernel) {
                    translate(&module, &info, &label);
                    translate_wgsl(source.clone(), &variant, &label);
                }
                variants += 1;
            }
        }
    }
    println!("{variants} variants of {} kernels", kernels::ALL.len());
    assert!(variants > 280);
}

/// Each `override` of the source is given a value, and each value has an `override`.
fn check_overrides(module: &Module, variant: &Variant, label: &str) {
    let mut declared: Vec<&str> = module.overrides.iter().filter_map(|(_, o)| o.name.as_deref()).collect();
    let mut given: Vec<&str> = variant.consts.iter().map(|&(name, _)| name).collect();
    declared.sort();
    given.sort();
    assert_eq!(declared, given, "{label}: overrides");
}

fn check_sizes(module: &Module, (max_invocations, max_bytes): (u32, u32), label: &str) {
    let entry = &module.entry_points[0];
    let invocations: u32 = entry.workgroup_size.iter().product();
    assert!(invocations > 0 && invocations <= max_invocations, "{label}: {invocations} invocations");
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    let shared = module.global_variables.iter().filter(|(_, g)| g.space == AddressSpace::WorkGroup);
    let bytes: u32 = shared.map(|(_, g)| layouter[g.ty].size).sum();
    assert!(bytes <= max_bytes, "{label}: {bytes} bytes of workgroup memory");
}

/// Every file of `shaders/` belongs to a kernel of the list, under its name (before a `+`).
#[test]
fn every_shader_is_in_the_list() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "wgsl"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    files.sort();
    let mut names: Vec<&str> = kernels::ALL.iter().map(|k| k.name.split('+').next().unwrap()).collect();
    names.sort();
    names.dedup();
    assert_eq!(files, names);
}

/// Loops are not guarded at run time, so each must end by itself: it counts up by a constant to a bound, both written in
/// its header, and nothing in its body touches the counter or the bound.
#[test]
fn every_loop_counts_up_to_a_fixed_bound() {
    let mut loops = 0;
    for kernel in kernels::ALL {
        let code: String = kernel.wgsl.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
        for word in ["loop", "while"] {
            let found = code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word);
            assert!(!found, "{}: a `{word}` has no bound in its header", kernel.name);
        }
        for (at, _) in code.match_indices("for (") {
            loops += 1;
            let header = &code[at + 5..at + code[at..].find('{').unwrap()].trim_end().trim_end_matches(')');
            let parts: Vec<&str> = header.split(';').map(str::trim).collect();
            let [start, condition, step] = parts[..] else { panic!("{}: {header}", kernel.name) };
            let counter =
                start.strip_prefix("var ").and_then(|s| s.split(" = ").next()).unwrap_or_else(|| panic!("{}: {header}", kernel.name));
            let bound = condition.strip_prefix(&format!("{counter} < ")).unwrap_or_else(|| panic!("{}: {header}", kernel.name));
            let step = step.strip_prefix(&format!("{counter} += ")).unwrap_or_else(|| panic!("{}: {header}", kernel.name));
            let values = constants(kernel);
            let given = |name: &str| values.iter().all(|consts| consts.iter().any(|&(n, value)| n == name && value > 0));
            let literal = step.strip_suffix('u').is_some_and(|s| s.parse::<u32>().is_ok_and(|n| n > 0));
            assert!(literal || given(step), "{}: step {step}", kernel.name);
            let body = body(&code[at + code[at..].find('{').unwrap()..]);
            let words = |text: &str| {
                text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).map(str::to_owned).collect::<Vec<_>>()
            };
            for name in words(bound).into_iter().chain([counter.to_owned()]).filter(|w| !w.starts_with(|c: char| c.is_ascii_digit())) {
                for operator in [" = ", " += ", " -= ", " *= "] {
                    let assigned = format!("{name}{operator}");
                    let hit = body.match_indices(&assigned).any(|(i, _)| {
                        !body[..i].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.' || c == ' ')
                            || body[..i].ends_with("    ")
                    });
                    assert!(!hit, "{}: the loop over {counter} assigns {name}", kernel.name);
                }
            }
        }
    }
    println!("{loops} loops");
    assert!(loops > 20);
}

/// The text between the brace that `code` starts with and its partner.
fn body(code: &str) -> &str {
    let mut depth = 0;
    for (i, c) in code.char_indices() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return &code[1..i];
        }
    }
    panic!("unbalanced braces")
}

/// The checks see what they are for.
#[test]
fn planted_faults_are_seen() {
    let kernel = &kernels::linear::LINEAR_LANES;
    let variant = Variant { x: Storage::F32, w: Storage::Packed, y: Storage::Packed, consts: vec![] };
    let source = kernel.source(&variant);
    let verdict = |from: &str, to: &str, variant: &Variant| {
        assert!(source.contains(from), "{from}");
        let planted = source.replacen(from, to, 1);
        check_interface(kernel, variant, &parse(&planted, to).0)
    };
    assert_eq!(verdict("rows: u32", "rows: u32", &variant), Ok(()));
    let faults: HashMap<&str, &str> = HashMap::from([
        ("rows: u32, k4: u32", "k4: u32, rows: u32"),
        ("b0: vec4<u32>, b1: vec4<u32>", "b1: vec4<u32>, b0: vec4<u32>"),
        ("n4: u32, act: u32", "n4: u32, act: u32, more: u32"),
        ("wg: vec4<u32>, b0", "wg: vec4<u32>, hole: f32, b0"),
        ("@binding(4) var<storage, read> ", "@binding(4) var<storage, read_write> "),
        (
            "@binding(2) var<storage, read> wt: array<W8>",
            "@binding(2) var<storage, read> wt: array<vec4<u32>>, @group(0) @binding(6) var<storage, read> more: array<u32>",
        ),
    ]);
    for (from, to) in faults {
        let to = to.replace(", @group", "; @group");
        assert!(verdict(from, &to, &variant).is_err(), "not seen: {to}");
    }
    // The element type is that of the variant.
    let other = Variant { w: Storage::F32, ..variant.clone() };
    assert!(verdict("rows: u32", "rows: u32", &other).is_err());
}
