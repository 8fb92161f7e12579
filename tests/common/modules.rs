//! Kernels as naga has them.

use std::borrow::Cow;

use naga::back::PipelineConstants;
use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{Module, ShaderStage};

use crate::variants::uses_subgroups;

/// Packing f16 in u32 is core WGSL; native f16 is the feature shader-f16.
const CAPABILITIES: Capabilities =
    Capabilities::SHADER_FLOAT16.union(Capabilities::SHADER_FLOAT16_IN_FLOAT32).union(Capabilities::COOPERATIVE_MATRIX);

pub fn parse(source: &str, label: &str) -> (Module, ModuleInfo) {
    // Only kernels whose lanes read for each other may use subgroups.
    let (capabilities, stages, operations) = match uses_subgroups(source) {
        true => {
            (CAPABILITIES | Capabilities::SUBGROUP, ShaderStages::COMPUTE, SubgroupOperationSet::BALLOT | SubgroupOperationSet::SHUFFLE)
        }
        false => (CAPABILITIES, ShaderStages::empty(), SubgroupOperationSet::empty()),
    };
    let module = naga::front::wgsl::parse_str(source).unwrap_or_else(|e| panic!("{label}: {}", e.emit_to_string(source)));
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(stages)
        .subgroup_operations(operations)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{label}: {}", e.emit_to_string(source)));
    (module, info)
}

/// With all overrides constant.
pub fn resolved<'a>(
    (module, info): &'a (Module, ModuleInfo),
    consts: &[(&'static str, u32)],
    label: &str,
) -> (Cow<'a, Module>, Cow<'a, ModuleInfo>) {
    let constants: PipelineConstants = consts.iter().map(|&(name, value)| (name.to_owned(), value as f64)).collect();
    naga::back::pipeline_constants::process_overrides(module, info, Some((ShaderStage::Compute, "main")), &constants)
        .unwrap_or_else(|e| panic!("{label}: {e}"))
}
