// A picture onto a canvas, one pixel to one, from `origin` on.
@group(0) @binding(0) var picture: texture_2d<f32>;
@group(0) @binding(1) var<uniform> origin: vec4<u32>;

// One triangle that covers everything.
@vertex
fn cover(@builtin(vertex_index) i: u32) -> @builtin(position) vec4<f32> {
    return vec4(f32(i & 1u) * 4.0 - 1.0, f32(i >> 1u) * 4.0 - 1.0, 0.0, 1.0);
}

@fragment
fn show(@builtin(position) at: vec4<f32>) -> @location(0) vec4<f32> {
    return textureLoad(picture, vec2<u32>(at.xy) - origin.xy, 0);
}
