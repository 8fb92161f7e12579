//! Memory of a recording, decided before anything runs.
//!
//! Every virtual tensor lives from its first to its last use. Tensors are given to slots (one buffer each),
//! largest first, each into the first slot whose tensors it never overlaps in time; the sizes of the slots are then
//! exactly what the pool will hold. A dispatch never reads and writes one buffer, since lifetimes include both ends.

use std::collections::BTreeMap;

use super::kernel::PARAMS_STRIDE;
use super::recorder::Recording;
use super::tensor::{Source, Tensor};

/// Largest staging buffer for reading results back; larger results come in pieces.
pub(crate) const STAGING_BYTES: u64 = 16 << 20;

/// Most dispatches in one submission.
pub(crate) const UNIFORM_SLOTS: usize = 512;

/// Where each tensor of a recording goes, and what that costs.
#[derive(Debug)]
pub struct Plan {
    /// Bytes of each slot.
    pub slots: Vec<u64>,
    /// Slot of each virtual tensor; `None` for one that is never used or placed in a resident one.
    pub(crate) slot_of: Vec<Option<usize>>,
    /// Bytes of the buffer through which results are read back.
    pub staging: u64,
    /// Bytes of the buffer that holds the parameters of one submission.
    pub uniforms: u64,
}

impl Plan {
    /// Plans `recording`, with `guard` bytes before and behind each tensor (0 outside tests).
    pub fn new(recording: &Recording, guard: u64) -> Plan {
        let count = recording.tensors.len();
        // Uploads exist before dispatch 0; outputs live to the end.
        let mut life: Vec<Option<(usize, usize)>> = vec![None; count];
        let mut touch = |tensor: &Tensor, at: usize| {
            if let Source::Virtual(id) = tensor.source {
                let span = life[id as usize].get_or_insert((at, at));
                span.0 = span.0.min(at);
                span.1 = span.1.max(at);
            }
        };
        for (tensor, _) in &recording.uploads {
            touch(tensor, 0);
        }
        for (at, node) in recording.nodes.iter().enumerate() {
            for binding in &node.dispatch.bindings {
                touch(&binding.tensor, at);
            }
        }
        let end = recording.nodes.len();
        if let Some((tensor, _)) = &recording.picture {
            touch(tensor, end);
        }
        for (_, tensor) in recording.outputs.iter().chain(&recording.raw_outputs) {
            touch(tensor, end);
        }
        if let Some(health) = &recording.health {
            touch(health, end);
        }

        let mut order: Vec<usize> = (0..count).filter(|&id| life[id].is_some() && recording.tensors[id].placed.is_none()).collect();
        order.sort_by_key(|&id| (std::cmp::Reverse(recording.tensors[id].bytes), id));
        let mut slots: Vec<u64> = Vec::new();
        // Spans of each slot by their starts. They never overlap, so the last one that starts early enough to matter is the only one that can.
        let mut busy: Vec<BTreeMap<usize, usize>> = Vec::new();
        let mut slot_of = vec![None; count];
        for id in order {
            let (start, stop) = life[id].expect("filtered above");
            let free = busy.iter().position(|spans| spans.range(..=stop).next_back().is_none_or(|(_, &end)| end < start));
            let slot = free.unwrap_or_else(|| {
                slots.push(align(recording.tensors[id].bytes) + 2 * guard);
                busy.push(BTreeMap::new());
                slots.len() - 1
            });
            busy[slot].insert(start, stop);
            slot_of[id] = Some(slot);
        }
        let read = recording.outputs.iter().chain(&recording.raw_outputs).map(|(_, t)| t);
        let largest = read.chain(&recording.health).map(Tensor::bytes).max();
        let staging = largest.map_or(0, |bytes| align(bytes.min(STAGING_BYTES))).max(guard);
        let uniforms = if recording.nodes.is_empty() { 0 } else { (UNIFORM_SLOTS * PARAMS_STRIDE) as u64 };
        Plan { slots, slot_of, staging, uniforms }
    }

    /// Bytes that the recording needs besides the weights and other resident buffers.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().sum::<u64>() + self.staging + self.uniforms
    }
}

/// Buffer sizes are multiples of 256, and never 0.
pub fn align(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(256)
}
