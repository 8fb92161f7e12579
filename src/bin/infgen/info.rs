//! `infgen devices` and `infgen inspect`

use infgen::Result;
use infgen::error::human_bytes;
use infgen::gpu::adapters;
use infgen::weights::recognise;
use serde_json::json;

use crate::args::InspectArgs;
use crate::run::Run;

pub fn devices(run: &Run) -> Result<()> {
    let all = pollster::block_on(adapters());
    if run.common.json {
        println!("{}", json!({ "command": "devices", "devices": all }));
        return Ok(());
    }
    if all.is_empty() {
        println!("no adapter found; on Debian or Ubuntu `apt-get install mesa-vulkan-drivers` brings drivers and a software fallback");
    }
    for device in all {
        println!("{}  {}  ({}, {}, {})", device.index, device.name, device.kind, device.backend, device.driver);
        println!(
            "   buffer {}, binding {}, workgroup memory {}",
            human_bytes(device.max_buffer),
            human_bytes(device.max_binding),
            human_bytes(device.workgroup_memory.into())
        );
        let yes = |there: bool| if there { "yes" } else { "no" };
        let subgroups = match device.subgroups {
            (0, _) => "no".into(),
            (low, high) if low == high => low.to_string(),
            (low, high) => format!("{low}-{high}"),
        };
        let matrices = match &device.cooperative_matrices[..] {
            [] => "no".into(),
            shapes => shapes.join(", "),
        };
        println!(
            "   f16 {}, timestamps {}, subgroups {subgroups}, cooperative matrices {matrices}",
            yes(device.f16),
            yes(device.timestamps)
        );
    }
    Ok(())
}

pub fn inspect(run: &Run, args: &InspectArgs) -> Result<()> {
    let inspection = recognise::inspect(&args.file)?;
    if run.common.json {
        println!("{}", serde_json::to_string(&inspection).expect("an inspection is plain data"));
    } else {
        let types: Vec<String> = inspection.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
        println!("{}", inspection.recognised);
        println!(
            "{} tensors ({}), {} values, {}",
            inspection.tensors,
            types.join(", "),
            inspection.parameters,
            human_bytes(inspection.bytes)
        );
        for (key, value) in &inspection.metadata {
            println!("{key}: {value}");
        }
        if let Some(problem) = &inspection.problem {
            println!("problem: {problem}");
        }
    }
    Ok(())
}
