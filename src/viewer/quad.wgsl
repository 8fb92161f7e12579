// quad: a rectangle of the screen filled from a picture, by one of four filters. Values are sRGB-encoded bytes over 255 and
// go to the screen as they are: at one texel a pixel the screen shows the exact 8-bit values of the decode.
// Source   Duchon 1979 (Lanczos, a = 3); Keys 1981 (cubic convolution, a = -1/2); taps beyond the border are left out and the
//          rest normalised, kernels are widened when the picture shrinks: as src/image's resize
struct Quad {
    rect: vec4<f32>,      // x, y, w, h on the screen, whole pixels
    start: vec2<f32>,     // texel coordinates at the rectangle's corner
    step: vec2<f32>,      // texels a pixel
    screen: vec2<f32>,    // size of the target
    kind: u32,            // 0 nearest, 1 smooth, 2 Lanczos, 3 bicubic
    pad: u32,
}
@group(0) @binding(0) var<uniform> q: Quad;
@group(1) @binding(0) var picture: texture_2d<f32>;
@group(1) @binding(1) var linear_clamp: sampler;

@vertex
fn vertex(@builtin(vertex_index) index: u32) -> @builtin(position) vec4<f32> {
    let corner = vec2<f32>(f32(index & 1u), f32(index >> 1u));
    let at = (q.rect.xy + corner * q.rect.zw) / q.screen;
    return vec4<f32>(at.x * 2.0 - 1.0, 1.0 - at.y * 2.0, 0.0, 1.0);
}

fn texel(at: vec2<i32>) -> vec3<f32> {
    let last = vec2<i32>(textureDimensions(picture)) - 1;
    return textureLoad(picture, clamp(at, vec2<i32>(0), last), 0).rgb;
}

// Bilinear; where the picture shrinks, the mean of such samples over the pixel's area, each the mean of two texels a side.
fn smooth_area(at: vec2<f32>) -> vec3<f32> {
    let size = vec2<f32>(textureDimensions(picture));
    let count = vec2<i32>(clamp(ceil(q.step * 0.5), vec2<f32>(1.0), vec2<f32>(8.0)));
    var sum = vec3<f32>(0.0);
    for (var j = 0; j < count.y; j++) {
        for (var i = 0; i < count.x; i++) {
            let offset = (vec2<f32>(f32(i), f32(j)) + 0.5) / vec2<f32>(count) - 0.5;
            sum += textureSampleLevel(picture, linear_clamp, (at + offset * q.step) / size, 0.0).rgb;
        }
    }
    return sum / f32(count.x * count.y);
}

fn sinc(x: f32) -> f32 {
    let a = x * 3.14159265358979;
    return select(sin(a) / a, 1.0, abs(x) < 1e-4);
}

fn weight(x: f32) -> f32 {
    let a = abs(x);
    if q.kind == 2u {
        return select(sinc(a) * sinc(a / 3.0), 0.0, a >= 3.0);
    }
    if a < 1.0 { return (1.5 * a - 2.5) * a * a + 1.0; }
    if a < 2.0 { return ((-0.5 * a + 2.5) * a - 4.0) * a + 2.0; }
    return 0.0;
}

fn convolved(at: vec2<f32>) -> vec3<f32> {
    let size = vec2<f32>(textureDimensions(picture));
    let wide = max(q.step, vec2<f32>(1.0));
    let reach = min(select(2.0, 3.0, q.kind == 2u) * wide, vec2<f32>(48.0));
    let first = vec2<i32>(clamp(floor(at - reach), vec2<f32>(0.0), size - 1.0));
    let last = vec2<i32>(clamp(ceil(at + reach), vec2<f32>(1.0), size));
    var sum = vec3<f32>(0.0);
    var total = vec2<f32>(0.0);
    for (var x = first.x; x < last.x; x++) {
        total.x += weight((f32(x) + 0.5 - at.x) / wide.x);
    }
    for (var y = first.y; y < last.y; y++) {
        let down = weight((f32(y) + 0.5 - at.y) / wide.y);
        total.y += down;
        if down == 0.0 { continue; }
        var row = vec3<f32>(0.0);
        for (var x = first.x; x < last.x; x++) {
            row += weight((f32(x) + 0.5 - at.x) / wide.x) * textureLoad(picture, vec2<i32>(x, y), 0).rgb;
        }
        sum += down * row;
    }
    return sum / (total.x * total.y);
}

@fragment
fn fragment(@builtin(position) position: vec4<f32>) -> @location(0) vec4<f32> {
    let at = q.start + (position.xy - q.rect.xy) * q.step;
    var colour: vec3<f32>;
    switch q.kind {
        case 0u: { colour = texel(vec2<i32>(floor(at))); }
        case 1u: { colour = smooth_area(at); }
        default: { colour = convolved(at); }
    }
    return vec4<f32>(clamp(colour, vec3<f32>(0.0), vec3<f32>(1.0)), 1.0);
}
