//! The operators at the shapes that the networks have when they decode (or denoise) 512x512.

use infgen::gpu::{Elem, Gpu, KernelFamily, Operator, Recorder, Tensor};
use infgen::kernels::Act;
use infgen::kernels::attention::attention_into;
use infgen::kernels::conv2d::{self, ConvWeights, Geometry, Packing};
use infgen::kernels::glu::glu;
use infgen::kernels::group_norm::{GroupNormWeights, Norm, group_norm, norm_apply};
use infgen::kernels::inpe::{GridRows, inpe_features};
use infgen::kernels::layer_norm::{LayerNormWeights, layer_norm};
use infgen::kernels::linear::{self, LinearWeights};
use infgen::kernels::output::{count_nonfinite, image_to_rgba8};
use infgen::kernels::resample::{Bicubic, resample_bicubic, resample_bilinear};
use infgen::nn::Precision;
use infgen::{Dtype, Result, noise};
use serde_json::{Value, json};

/// An operator at one shape. Planes are `h x w`, channels `cin -> cout`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// 3x3, stride 1.
    Conv {
        h: usize,
        w: usize,
        cin: usize,
        cout: usize,
    },
    /// Scale, shift and SiLU of a GroupNorm whose statistics are known, 3x3, residual: half a resnet.
    NormConv {
        h: usize,
        w: usize,
        cin: usize,
        cout: usize,
    },
    /// Nearest 2x of `h x w`, then 3x3.
    Upsample {
        h: usize,
        w: usize,
        cin: usize,
        cout: usize,
    },
    /// 3x3, stride 2, from `h x w`.
    Stride2 {
        h: usize,
        w: usize,
        cin: usize,
        cout: usize,
    },
    /// Statistics, then normalise and SiLU.
    GroupNorm {
        h: usize,
        w: usize,
        c: usize,
    },
    /// Also a 1x1 convolution of `rows` pixels.
    Linear {
        rows: usize,
        k: usize,
        n: usize,
    },
    /// `n` queries, `m` keys, heads of `d`. `part`: as of far more queries, so that keys are not split to fill a GPU.
    Attention {
        n: usize,
        m: usize,
        heads: usize,
        d: usize,
        part: bool,
    },
    LayerNorm {
        rows: usize,
        c: usize,
    },
    /// `c` channels in, half of them out.
    Geglu {
        rows: usize,
        c: usize,
    },
    /// Position features of a grid, `m` pairs.
    Inpe {
        side: usize,
        m: usize,
    },
    Bilinear {
        from: usize,
        to: usize,
        c: usize,
    },
    Bicubic {
        from: usize,
        to: usize,
    },
    Pixels {
        side: usize,
    },
    CountNonfinite {
        side: usize,
    },
}

/// An operator and the networks that have it.
pub struct Case {
    pub nets: &'static str,
    pub op: Op,
}

const fn case(nets: &'static str, op: Op) -> Case {
    Case { nets, op }
}

const fn conv(nets: &'static str, side: usize, cin: usize, cout: usize) -> Case {
    case(nets, Op::Conv { h: side, w: side, cin, cout })
}

const fn up(nets: &'static str, side: usize, channels: usize) -> Case {
    case(nets, Op::Upsample { h: side, w: side, cin: channels, cout: channels })
}

const fn down(nets: &'static str, side: usize, channels: usize) -> Case {
    case(nets, Op::Stride2 { h: side, w: side, cin: channels, cout: channels })
}

const fn gn(nets: &'static str, side: usize, c: usize) -> Case {
    case(nets, Op::GroupNorm { h: side, w: side, c })
}

const fn lin(nets: &'static str, rows: usize, k: usize, n: usize) -> Case {
    case(nets, Op::Linear { rows, k, n })
}

const fn attn(nets: &'static str, n: usize, m: usize, heads: usize, d: usize) -> Case {
    case(nets, Op::Attention { n, m, heads, d, part: false })
}

const fn attn_part(nets: &'static str, n: usize, m: usize, heads: usize, d: usize) -> Case {
    case(nets, Op::Attention { n, m, heads, d, part: true })
}

impl Case {
    /// Storage types in a program run with `--dtype`: denoisers keep f32 between layers.
    pub fn precision(&self, dtype: Dtype) -> Precision {
        match dtype {
            Dtype::F32 => Precision::F32,
            Dtype::F16 if matches!(self.nets, "unet" | "dit") => Precision::F16_WEIGHTS,
            Dtype::F16 => Precision::F16,
        }
    }
}

/// `tiny` ships with the package; `table1` and `sd4` are InfGen's presets; `vae` and `unet` are those of SD 1.5, `dit` is DiT-XL/2
/// with guidance, for 256x256 (512 rows) and 512x512.
pub const CASES: &[Case] = &[
    conv("tiny", 64, 4, 40),
    conv("tiny", 64, 40, 128),
    conv("tiny", 64, 128, 128),
    conv("tiny", 128, 96, 88),
    conv("tiny", 256, 48, 48),
    conv("tiny", 256, 88, 48),
    conv("tiny", 512, 48, 3),
    conv("tiny", 512, 64, 64),
    conv("table1 sd4 vae", 64, 512, 512),
    conv("sd4 vae", 128, 512, 512),
    conv("sd4 vae", 256, 512, 256),
    conv("table1 sd4 vae", 256, 256, 256),
    conv("table1 sd4 vae", 512, 128, 128),
    conv("sd4 vae", 512, 256, 128),
    conv("table1 sd4 vae", 512, 128, 3),
    conv("unet", 64, 4, 320),
    conv("unet", 64, 320, 320),
    conv("unet", 64, 960, 320),
    conv("unet", 32, 640, 640),
    conv("unet", 16, 1280, 1280),
    conv("unet", 8, 2560, 1280),
    case("tiny", Op::NormConv { h: 256, w: 256, cin: 48, cout: 48 }),
    case("table1 sd4 vae", Op::NormConv { h: 512, w: 512, cin: 128, cout: 128 }),
    case("unet", Op::NormConv { h: 64, w: 64, cin: 320, cout: 320 }),
    up("tiny", 64, 96),
    up("tiny", 256, 48),
    up("tiny", 256, 64),
    up("table1 sd4 vae", 64, 512),
    up("table1 sd4 vae", 256, 256),
    up("table1", 256, 128),
    up("unet", 32, 640),
    down("vae", 512, 128),
    down("vae", 128, 512),
    down("unet", 64, 320),
    gn("tiny", 256, 48),
    gn("table1 sd4 vae", 64, 512),
    gn("table1 sd4 vae", 512, 128),
    gn("unet", 64, 320),
    lin("tiny", 4096, 128, 128),
    lin("tiny", 4096, 128, 256),
    lin("table1 sd4 vae", 4096, 512, 512),
    lin("table1 sd4", 4096, 512, 2048),
    lin("table1 sd4", 4096, 2048, 512),
    lin("unet", 4096, 320, 320),
    lin("unet", 4096, 320, 2560),
    lin("unet", 1024, 640, 5120),
    lin("unet", 256, 1280, 1280),
    lin("unet", 77, 768, 1280),
    lin("dit", 512, 1152, 1152),
    lin("dit", 512, 1152, 4608),
    lin("dit", 2048, 4608, 1152),
    lin("dit", 2, 1152, 6912),
    attn("tiny", 4096, 4096, 4, 32),
    attn("tiny", 256, 4096, 4, 32),
    attn_part("tiny", 256, 4096, 4, 32),
    attn("table1 sd4", 4096, 4096, 8, 64),
    attn("table1 sd4 vae", 4096, 4096, 1, 512),
    attn_part("table1 sd4 vae", 4096, 4096, 1, 512),
    attn("unet", 4096, 4096, 8, 40),
    attn("unet", 4096, 77, 8, 40),
    attn("unet", 1024, 1024, 8, 80),
    attn("unet", 256, 256, 8, 160),
    attn("unet", 64, 77, 8, 160),
    attn("dit", 256, 256, 16, 72),
    attn("dit", 1024, 1024, 16, 72),
    case("tiny", Op::LayerNorm { rows: 4096, c: 128 }),
    case("table1 sd4", Op::LayerNorm { rows: 4096, c: 512 }),
    case("unet", Op::LayerNorm { rows: 4096, c: 320 }),
    case("dit", Op::LayerNorm { rows: 1024, c: 1152 }),
    case("unet", Op::Geglu { rows: 4096, c: 2560 }),
    case("tiny", Op::Inpe { side: 64, m: 64 }),
    case("table1 sd4", Op::Inpe { side: 64, m: 256 }),
    case("tiny", Op::Bilinear { from: 64, to: 128, c: 128 }),
    case("tiny", Op::Bicubic { from: 512, to: 1024 }),
    case("tiny table1 sd4 vae", Op::Pixels { side: 512 }),
    case("tiny table1 sd4 vae", Op::CountNonfinite { side: 512 }),
];

impl Op {
    /// Operations, phases counted as saved; 0 where the kernel moves bytes.
    pub fn flops(self) -> u64 {
        let flops = match self {
            Op::Conv { h, w, cin, cout } | Op::NormConv { h, w, cin, cout } => 18 * h * w * cin * cout,
            Op::Upsample { h, w, cin, cout } => 32 * h * w * cin * cout,
            Op::Stride2 { h, w, cin, cout } => 18 * h.div_ceil(2) * w.div_ceil(2) * cin * cout,
            Op::Linear { rows, k, n } => 2 * rows * k * n,
            Op::Attention { n, m, heads, d, .. } => 4 * n * m * heads * d,
            _ => 0,
        };
        flops as u64
    }

    /// With fewer rows or queries, so that it takes at most about `flops` operations: never below 8 rows, 64 tokens.
    pub fn within(mut self, flops: u64) -> Op {
        while self.flops() > flops {
            let rows = match &mut self {
                Op::Conv { h, .. } | Op::NormConv { h, .. } | Op::Upsample { h, .. } | Op::Stride2 { h, .. } if *h >= 16 => h,
                Op::Linear { rows, .. } if *rows >= 128 => rows,
                Op::Attention { n, .. } if *n >= 128 => n,
                _ => break,
            };
            *rows /= 2;
        }
        self
    }

    pub fn name(self) -> String {
        match self {
            Op::Conv { h, w, cin, cout } => format!("conv2d 3x3 {h}x{w} {cin}->{cout}"),
            Op::NormConv { h, w, cin, cout } => format!("norm + silu + conv2d 3x3 + residual {h}x{w} {cin}->{cout}"),
            Op::Upsample { h, w, cin, cout } => format!("conv2d upsample 2x {h}x{w} {cin}->{cout}"),
            Op::Stride2 { h, w, cin, cout } => format!("conv2d stride 2 {h}x{w} {cin}->{cout}"),
            Op::GroupNorm { h, w, c } => format!("group_norm + silu {h}x{w}x{c}"),
            Op::Linear { rows, k, n } => format!("linear {rows}x{k}->{n}"),
            Op::Attention { n, m, heads, d, part } => {
                format!("attention {n}{} queries {m} keys {heads}x{d}", if part { " of many" } else { "" })
            }
            Op::LayerNorm { rows, c } => format!("layer_norm {rows}x{c}"),
            Op::Geglu { rows, c } => format!("geglu {rows}x{c}"),
            Op::Inpe { side, m } => format!("inpe_features {side}x{side}, {m} pairs"),
            Op::Bilinear { from, to, c } => format!("resample_bilinear {from}x{from} to {to}x{to}x{c}"),
            Op::Bicubic { from, to } => format!("resample_bicubic {from}x{from} to {to}x{to}"),
            Op::Pixels { side } => format!("image_to_rgba8 {side}x{side}"),
            Op::CountNonfinite { side } => format!("count_nonfinite {side}x{side}x4"),
        }
    }

    /// For other programs that run the same shape.
    pub fn json(self) -> Value {
        match self {
            Op::Conv { h, w, cin, cout } => json!({ "op": "conv2d_3x3", "h": h, "w": w, "cin": cin, "cout": cout }),
            Op::NormConv { h, w, cin, cout } => json!({ "op": "norm_conv2d_3x3", "h": h, "w": w, "cin": cin, "cout": cout }),
            Op::Upsample { h, w, cin, cout } => json!({ "op": "upsample_conv2d_3x3", "h": h, "w": w, "cin": cin, "cout": cout }),
            Op::Stride2 { h, w, cin, cout } => json!({ "op": "conv2d_3x3_stride2", "h": h, "w": w, "cin": cin, "cout": cout }),
            Op::GroupNorm { h, w, c } => json!({ "op": "group_norm_silu", "h": h, "w": w, "c": c }),
            Op::Linear { rows, k, n } => json!({ "op": "linear", "rows": rows, "k": k, "n": n }),
            Op::Attention { n, m, heads, d, .. } => json!({ "op": "attention", "n": n, "m": m, "heads": heads, "d": d }),
            Op::LayerNorm { rows, c } => json!({ "op": "layer_norm", "rows": rows, "c": c }),
            _ => json!({ "op": "other" }),
        }
    }

    /// What it is where kernels of several families compute it.
    fn operator(self) -> Option<Operator> {
        match self {
            Op::Conv { .. } | Op::NormConv { .. } => Some(Operator::Conv),
            Op::Upsample { .. } => Some(Operator::Upsample),
            Op::Linear { .. } => Some(Operator::Linear),
            Op::Attention { .. } => Some(Operator::Attention),
            _ => None,
        }
    }

    /// The kernel families that compute it each in its own way, where there is a choice.
    pub fn families(self) -> Vec<KernelFamily> {
        let Some(operator) = self.operator() else { return Vec::new() };
        KernelFamily::ALL.iter().copied().filter(|family| family.runs_as(operator) == *family).collect()
    }
}

/// Host values of an operator's operands, as they are stored.
pub struct Operands {
    pub op: Op,
    pub precision: Precision,
    /// Activations; queries, then keys (which are the values too), for attention.
    pub x: Vec<f32>,
    /// torch's order.
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    /// Scale, then shift of [`Op::NormConv`].
    pub affine: Vec<f32>,
    pub residual: Vec<f32>,
}

/// Groups of every [`Op::GroupNorm`].
pub const GROUPS: usize = 32;
pub const EPS: f32 = 1e-6;

/// Reproducible values around zero that `elem` holds exactly.
fn values(seed: u64, count: usize, amp: f32, elem: Elem) -> Vec<f32> {
    let mut values = noise::torch_cpu_randn(seed, count);
    values.iter_mut().for_each(|v| {
        *v *= amp;
        if elem == Elem::Half {
            *v = half::f16::from_f32(*v).to_f32();
        }
    });
    values
}

impl Operands {
    pub fn new(op: Op, precision: Precision) -> Operands {
        let elem = precision.activations;
        let make = |x: usize, weights: usize, bias: usize, fan_in: usize| Operands {
            op,
            precision,
            x: values(1, x, 1.0, elem),
            weight: values(2, weights, (1.0 / fan_in as f32).sqrt(), precision.weights),
            bias: values(3, bias, 0.5, Elem::F32),
            affine: Vec::new(),
            residual: Vec::new(),
        };
        match op {
            Op::Conv { h, w, cin, cout } | Op::Upsample { h, w, cin, cout } | Op::Stride2 { h, w, cin, cout } => {
                make(h * w * cin, cin * cout * 9, cout, 9 * cin)
            }
            Op::NormConv { h, w, cin, cout } => Operands {
                affine: values(4, 2 * cin, 0.5, Elem::F32).iter().map(|v| 0.8 + v).collect(),
                residual: values(5, h * w * cout, 1.0, elem),
                ..make(h * w * cin, cin * cout * 9, cout, 9 * cin)
            },
            Op::GroupNorm { h, w, c } => make(h * w * c, c, c, 1),
            Op::Linear { rows, k, n } => make(rows * k, k * n, n, k),
            Op::Attention { n, m, heads, d, .. } => make((n + m) * heads * d, 0, 0, 1),
            Op::LayerNorm { rows, c } => make(rows * c, 2 * c, 0, 1),
            Op::Geglu { rows, c } => make(rows * c, 0, 0, 1),
            Op::Inpe { m, .. } => make(m * 3, 0, 0, 1),
            Op::Bilinear { from, c, .. } => make(from * from * c, 0, 0, 1),
            Op::Bicubic { from, .. } => make(from * from * 3, 0, 0, 1),
            Op::Pixels { side } => make(side * side * 3, 0, 0, 1),
            Op::CountNonfinite { side } => make(side * side * 4, 0, 0, 1),
        }
    }

    /// Uploads everything; the closure appends the operator to a recording and returns its result.
    pub async fn upload(&self, gpu: &Gpu) -> Result<Box<dyn Fn(&mut Recorder) -> Tensor>> {
        let (op, Precision { activations: elem, weights: stored }) = (self.op, self.precision);
        let put = async |values: &[f32], h: usize, w: usize, c: usize, elem: Elem| {
            gpu.resident("bench", &infgen::gpu::to_units(values, c, elem), h, w, c, elem).await
        };
        let row = async |values: &[f32], elem: Elem| put(values, 1, 1, values.len(), elem).await;
        Ok(match op {
            Op::Conv { h, w, cin, cout }
            | Op::NormConv { h, w, cin, cout }
            | Op::Upsample { h, w, cin, cout }
            | Op::Stride2 { h, w, cin, cout } => {
                let bias = row(&self.bias, Elem::F32).await?;
                let put_weights = async |packing: Packing| -> Result<ConvWeights> {
                    let packed = match op {
                        Op::Upsample { .. } => conv2d::pack_upsample(&self.weight, cout, cin, packing),
                        _ => conv2d::pack_3x3(&self.weight, cout, cin, packing),
                    };
                    Ok(ConvWeights { weight: row(&packed.values, stored).await?, bias: bias.clone(), cin, cout, packing })
                };
                let weights = put_weights(Packing::Taps).await?;
                // Families read weights of either packing; of another stride only one.
                let operator = op.operator();
                let winograd = match operator {
                    Some(operator) if conv2d::winograd_exists(gpu.profile(), operator) => put_weights(Packing::Winograd).await?,
                    _ => weights.clone(),
                };
                let taps = weights.clone();
                let packed_for = move |rec: &Recorder| match operator
                    .map(|operator| conv2d::packing(rec.profile(), operator, elem, stored, cin, cout))
                {
                    Some(Packing::Winograd) => winograd.clone(),
                    Some(Packing::Taps) | None => taps.clone(),
                };
                let x = put(&self.x, h, w, cin, elem).await?;
                match op {
                    Op::NormConv { .. } => {
                        let affine = put(&self.affine, 2, 1, cin, Elem::F32).await?;
                        let residual = put(&self.residual, h, w, cout, elem).await?;
                        Box::new(move |rec| {
                            let norm = Norm { affine: &affine, silu: true };
                            conv2d::conv2d_3x3(rec, &x, Some(norm), &packed_for(rec), Some(&residual), Act::None, elem)
                        })
                    }
                    Op::Upsample { .. } => Box::new(move |rec| conv2d::upsample2x_conv2d_3x3(rec, &x, &packed_for(rec), Act::None, elem)),
                    Op::Stride2 { .. } => {
                        let geometry = Geometry { kernel: 3, stride: 2, pad_before: 1, pad_after: 1 };
                        Box::new(move |rec| conv2d::conv2d_strided(rec, &x, &weights, geometry, Act::None, elem))
                    }
                    _ => Box::new(move |rec| conv2d::conv2d_3x3(rec, &x, None, &packed_for(rec), None, Act::None, elem)),
                }
            }
            Op::GroupNorm { h, w, c } => {
                let x = put(&self.x, h, w, c, elem).await?;
                let (weight, bias) = (row(&self.weight, Elem::F32).await?, row(&self.bias, Elem::F32).await?);
                let norm = GroupNormWeights { weight, bias, groups: GROUPS, eps: EPS };
                Box::new(move |rec| {
                    let affine = group_norm(rec, &x, &norm);
                    norm_apply(rec, &x, &affine, true, elem)
                })
            }
            Op::Linear { rows, k, n } => {
                let x = put(&self.x, rows, 1, k, elem).await?;
                let weight = row(&linear::pack_linear(&self.weight, n, k).values, stored).await?;
                let layer = LinearWeights { weight, bias: row(&self.bias, Elem::F32).await?, inputs: k, outputs: n };
                Box::new(move |rec| linear::linear(rec, &x, &layer, None, Act::None, elem))
            }
            Op::Attention { n, m, heads, d, part } => {
                let q = put(&self.x[..n * heads * d], n, 1, heads * d, elem).await?;
                let kv = put(&self.x[n * heads * d..], m, 1, heads * d, elem).await?;
                let whole = if part { usize::MAX / heads } else { n };
                Box::new(move |rec| {
                    let y = rec.tensor(n, 1, heads * d, elem);
                    attention_into(rec, [&q, &kv, &kv], heads, 1.0 / (d as f32).sqrt(), false, &y, whole);
                    y
                })
            }
            Op::LayerNorm { rows, c } => {
                let x = put(&self.x, rows, 1, c, elem).await?;
                let layer = LayerNormWeights { affine: put(&self.weight, 2, 1, c, Elem::F32).await?, eps: EPS };
                Box::new(move |rec| layer_norm(rec, &x, &layer, elem))
            }
            Op::Geglu { rows, c } => {
                let x = put(&self.x, rows, 1, c, elem).await?;
                Box::new(move |rec| glu(rec, &x, Act::GeluErf, elem))
            }
            Op::Inpe { side, m } => {
                let b = row(&self.x, Elem::F32).await?;
                let grid = GridRows { grid: (side, side), row0: 0, rows: side };
                Box::new(move |rec| inpe_features(rec, &b, m, grid, 1.5, 1.5))
            }
            Op::Bilinear { from, to, c } => {
                let x = put(&self.x, from, from, c, elem).await?;
                let grid = GridRows { grid: (to, to), row0: 0, rows: to };
                Box::new(move |rec| resample_bilinear(rec, &x, grid, elem))
            }
            Op::Bicubic { from, to } => {
                let x = put(&self.x, from, from, 3, elem).await?;
                let sizes = Bicubic { from: (from, from), to: (to, to) };
                Box::new(move |rec| resample_bicubic(rec, (&x, (0, 0)), sizes, &(0..to), &(0..to), elem))
            }
            Op::Pixels { side } => {
                let x = put(&self.x, side, side, 3, elem).await?;
                Box::new(move |rec| image_to_rgba8(rec, &x, side, side, (0, 0)))
            }
            Op::CountNonfinite { side } => {
                let x = put(&self.x, side, side, 4, elem).await?;
                Box::new(move |rec| {
                    count_nonfinite(rec, &x);
                    x.clone()
                })
            }
        })
    }
}
