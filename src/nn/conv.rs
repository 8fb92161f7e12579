//! Convolutions and linear layers.

use super::Loader;
use crate::error::Result;
use crate::gpu::{Elem, Operator, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::conv2d::{self, Conv3x3Call, ConvWeights, Geometry, Packing, Residual, Window};
use crate::kernels::group_norm::Norm;
use crate::kernels::linear::{self, LinearWeights};

/// `{path}.bias`, or zeros for a layer without.
async fn bias(loader: &Loader<'_>, path: &str, cout: usize, present: bool) -> Result<Tensor> {
    let name = format!("{path}.bias");
    let values = if present { loader.read(&name, &[cout]).await? } else { vec![0.0; cout] };
    loader.upload_vector(&name, &values).await
}

/// The columns of `[rows, sum of sources, inner]` that belong to each source, as `[rows, source, inner]`.
fn columns(values: &[f32], rows: usize, inner: usize, sources: &[usize]) -> Vec<Vec<f32>> {
    let a_row = values.len() / rows;
    let mut start = 0;
    let mut part = |source: &usize| {
        let range = start..start + source * inner;
        start = range.end;
        values.chunks_exact(a_row).flat_map(|row| row[range.clone()].iter().copied()).collect()
    };
    sources.iter().map(&mut part).collect()
}

/// Packs `[cout, cin, 3, 3]` for this device and uploads it.
async fn upload_3x3(loader: &Loader<'_>, name: &str, values: &[f32], cin: usize, cout: usize) -> Result<(Packing, Tensor)> {
    let packing = loader.packing(Operator::Conv, cin, cout);
    Ok((packing, loader.upload_weight(name, &conv2d::pack_3x3(values, cout, cin, packing).values).await?))
}

/// 3x3 convolution, stride 1, zero padding 1 (`torch.nn.Conv2d(cin, cout, 3, padding=1)`).
#[derive(Debug)]
pub struct Conv3x3(ConvWeights);

impl Conv3x3 {
    /// Loads `{path}.weight` `[cout, cin, 3, 3]` and `{path}.bias` `[cout]`.
    pub async fn load(loader: &Loader<'_>, path: &str, cin: usize, cout: usize) -> Result<Conv3x3> {
        Conv3x3::load_affine(loader, path, cin, cout, 1.0, 0.0).await
    }

    /// [`Conv3x3::load`] of the layer `gain * conv(x) + offset`.
    pub async fn load_affine(loader: &Loader<'_>, path: &str, cin: usize, cout: usize, gain: f32, offset: f32) -> Result<Conv3x3> {
        let (weight_name, bias_name) = (format!("{path}.weight"), format!("{path}.bias"));
        let mut values = loader.read(&weight_name, &[cout, cin, 3, 3]).await?;
        values.iter_mut().for_each(|v| *v *= gain);
        let mut bias = loader.read(&bias_name, &[cout]).await?;
        bias.iter_mut().for_each(|v| *v = *v * gain + offset);
        let (packing, weight) = upload_3x3(loader, &weight_name, &values, cin, cout).await?;
        Ok(Conv3x3(ConvWeights { weight, bias: loader.upload_vector(&bias_name, &bias).await?, cin, cout, packing }))
    }

    /// Output channels.
    pub fn outputs(&self) -> usize {
        self.0.cout
    }

    /// `act(conv(norm(x)) + residual)` of a part of a plane.
    pub fn window(
        &self,
        rec: &mut Recorder,
        (x, norm): (&Tensor, Option<Norm<'_>>),
        residual: Option<Residual<'_>>,
        act: Act,
        elem: Elem,
        window: Window,
    ) -> Tensor {
        conv2d::conv2d_3x3_window(rec, &Conv3x3Call { x, norm, weights: &self.0, residual, act, elem, window })
    }

    /// [`Conv3x3::load`] for an input that is spread over several tensors, of `sources` channels each: one convolution for
    /// each, whose results add up. The first has the bias.
    pub async fn load_parts(loader: &Loader<'_>, path: &str, sources: &[usize], cout: usize) -> Result<Vec<Conv3x3>> {
        let name = format!("{path}.weight");
        let values = loader.read(&name, &[cout, sources.iter().sum(), 3, 3]).await?;
        let mut parts = Vec::new();
        for (n, columns) in columns(&values, cout, 9, sources).into_iter().enumerate() {
            let (packing, weight) = upload_3x3(loader, &name, &columns, sources[n], cout).await?;
            parts.push(Conv3x3(ConvWeights { weight, bias: bias(loader, path, cout, n == 0).await?, cin: sources[n], cout, packing }));
        }
        Ok(parts)
    }

    /// The same convolution with another bias, `[cout]` in f32.
    pub fn with_bias(&self, bias: &Tensor) -> Conv3x3 {
        assert_eq!(bias.channels, self.0.cout, "bias");
        Conv3x3(ConvWeights { bias: bias.clone(), ..self.0.clone() })
    }

    /// `act(conv(x) + residual)`: `[h, w, cin]` to `[h, w, cout]`.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor, residual: Option<&Tensor>, act: Act, elem: Elem) -> Tensor {
        conv2d::conv2d_3x3(rec, x, None, &self.0, residual, act, elem)
    }

    /// `conv(silu(x * scale + shift)) + residual`, scale and shift from [`super::GroupNorm::affine`].
    pub fn forward_norm_silu(&self, rec: &mut Recorder, x: &Tensor, affine: &Tensor, residual: Option<&Tensor>, elem: Elem) -> Tensor {
        conv2d::conv2d_3x3(rec, x, Some(Norm { affine, silu: true }), &self.0, residual, Act::None, elem)
    }
}

/// Nearest-2x upsampling, then a 3x3 convolution with padding 1; computed from the small image.
#[derive(Debug)]
pub struct UpsampleConv(ConvWeights);

impl UpsampleConv {
    /// Loads `{path}.weight` `[cout, cin, 3, 3]` and, if `with_bias`, `{path}.bias`.
    pub async fn load(loader: &Loader<'_>, path: &str, (cin, cout): (usize, usize), with_bias: bool) -> Result<UpsampleConv> {
        let name = format!("{path}.weight");
        let values = loader.read(&name, &[cout, cin, 3, 3]).await?;
        let packing = loader.packing(Operator::Upsample, cin, cout);
        let weight = loader.upload_weight(&name, &conv2d::pack_upsample(&values, cout, cin, packing).values).await?;
        Ok(UpsampleConv(ConvWeights { weight, bias: bias(loader, path, cout, with_bias).await?, cin, cout, packing }))
    }

    /// Output channels.
    pub fn outputs(&self) -> usize {
        self.0.cout
    }

    /// A part of the result, `window` in pixels of the small image.
    pub fn window(&self, rec: &mut Recorder, x: &Tensor, elem: Elem, window: Window) -> Tensor {
        conv2d::upsample2x_conv2d_3x3_window(rec, x, &self.0, Act::None, elem, window)
    }

    /// `[h, w, cin]` to `[2h, 2w, cout]`.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor, elem: Elem) -> Tensor {
        conv2d::upsample2x_conv2d_3x3(rec, x, &self.0, Act::None, elem)
    }
}

/// 3x3 convolution of stride 2.
#[derive(Debug)]
pub struct StridedConv {
    weights: ConvWeights,
    geometry: Geometry,
}

impl StridedConv {
    /// The downsampling of SD's VAE: one zero column on the right, one zero row below, none before.
    pub const PAD_AFTER: Geometry = Geometry { kernel: 3, stride: 2, pad_before: 0, pad_after: 1 };
    /// Padding 1 all round, as in TAESD and the UNet.
    pub const PAD_BOTH: Geometry = Geometry { kernel: 3, stride: 2, pad_before: 1, pad_after: 1 };

    /// Loads `{path}.weight` `[cout, cin, 3, 3]` and, if `with_bias`, `{path}.bias`.
    pub async fn load(
        loader: &Loader<'_>,
        path: &str,
        (cin, cout): (usize, usize),
        with_bias: bool,
        geometry: Geometry,
    ) -> Result<StridedConv> {
        let name = format!("{path}.weight");
        let values = loader.read(&name, &[cout, cin, 3, 3]).await?;
        let weight = loader.upload_weight(&name, &conv2d::pack_square(&values, cout, cin, 3).values).await?;
        let bias = bias(loader, path, cout, with_bias).await?;
        Ok(StridedConv { weights: ConvWeights { weight, bias, cin, cout, packing: Packing::Taps }, geometry })
    }

    /// Output channels.
    pub fn outputs(&self) -> usize {
        self.weights.cout
    }

    /// Stride and padding.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A part of the result.
    pub fn window(&self, rec: &mut Recorder, x: &Tensor, elem: Elem, window: Window) -> Tensor {
        conv2d::conv2d_strided_window(rec, x, &self.weights, self.geometry, Act::None, elem, window)
    }

    /// `[h, w, cin]` to half the size and `cout` channels, see [`Geometry::output`].
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor, elem: Elem) -> Tensor {
        conv2d::conv2d_strided(rec, x, &self.weights, self.geometry, Act::None, elem)
    }
}

/// Linear layer on the channels of every token or pixel; also a 1x1 convolution.
#[derive(Debug)]
pub struct Linear(LinearWeights);

impl Linear {
    /// Loads `{path}.weight` `[outputs, inputs]` and `{path}.bias` `[outputs]`.
    pub async fn load(loader: &Loader<'_>, path: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let weight = loader.read(&format!("{path}.weight"), &[outputs, inputs]).await?;
        let bias = loader.read(&format!("{path}.bias"), &[outputs]).await?;
        Linear::from_values(loader, path, &weight, &bias, inputs).await
    }

    /// Loads a 1x1 convolution, `{path}.weight` `[outputs, inputs, 1, 1]`.
    pub async fn load_conv1x1(loader: &Loader<'_>, path: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let weight = loader.read(&format!("{path}.weight"), &[outputs, inputs, 1, 1]).await?;
        let bias = loader.read(&format!("{path}.bias"), &[outputs]).await?;
        Linear::from_values(loader, path, &weight, &bias, inputs).await
    }

    /// [`Linear::load_conv1x1`] for an input that is spread over several tensors, of `sources` channels each: one layer for
    /// each, whose results add up. The first has the bias.
    pub async fn load_conv1x1_parts(loader: &Loader<'_>, path: &str, sources: &[usize], outputs: usize) -> Result<Vec<Linear>> {
        let weight = loader.read(&format!("{path}.weight"), &[outputs, sources.iter().sum(), 1, 1]).await?;
        let mut bias = loader.read(&format!("{path}.bias"), &[outputs]).await?;
        Linear::parts(loader, path, &weight, &mut bias, sources).await
    }

    /// [`Linear::load`] in the same way.
    pub async fn load_parts(loader: &Loader<'_>, path: &str, sources: &[usize], outputs: usize) -> Result<Vec<Linear>> {
        let weight = loader.read(&format!("{path}.weight"), &[outputs, sources.iter().sum()]).await?;
        let mut bias = loader.read(&format!("{path}.bias"), &[outputs]).await?;
        Linear::parts(loader, path, &weight, &mut bias, sources).await
    }

    async fn parts(loader: &Loader<'_>, path: &str, weight: &[f32], bias: &mut [f32], sources: &[usize]) -> Result<Vec<Linear>> {
        let mut parts = Vec::new();
        for (columns, &source) in columns(weight, bias.len(), 1, sources).iter().zip(sources) {
            parts.push(Linear::from_values(loader, path, columns, bias, source).await?);
            bias.fill(0.0);
        }
        Ok(parts)
    }

    /// Loads `{path}.weight` `[outputs, inputs]` of a layer without bias.
    pub async fn load_without_bias(loader: &Loader<'_>, path: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let weight = loader.read(&format!("{path}.weight"), &[outputs, inputs]).await?;
        Linear::from_values(loader, path, &weight, &vec![0.0; outputs], inputs).await
    }

    /// Uploads values that the caller has changed: `weight` `[outputs, inputs]` row-major, `bias` `[outputs]`.
    pub async fn from_values(loader: &Loader<'_>, path: &str, weight: &[f32], bias: &[f32], inputs: usize) -> Result<Linear> {
        let outputs = bias.len();
        let packed = linear::pack_linear(weight, outputs, inputs).values;
        let weight = loader.upload_weight(&format!("{path}.weight"), &packed).await?;
        let bias = loader.upload_vector(&format!("{path}.bias"), bias).await?;
        Ok(Linear(LinearWeights { weight, bias, inputs, outputs }))
    }

    /// Output features.
    pub fn outputs(&self) -> usize {
        self.0.outputs
    }

    /// `act(x W^T + b + residual)`: `[.., inputs]` to `[.., outputs]`.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor, residual: Option<&Tensor>, act: Act, elem: Elem) -> Tensor {
        linear::linear(rec, x, &self.0, residual, act, elem)
    }

    /// [`Linear::forward`] into `y`, which may be some rows of a larger tensor.
    pub fn forward_into(&self, rec: &mut Recorder, x: &Tensor, residual: Option<&Tensor>, act: Act, y: &Tensor) {
        linear::linear_into(rec, x, &self.0, residual, act, y);
    }
}
