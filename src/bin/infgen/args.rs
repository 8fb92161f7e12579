//! The command line. Wrong usage ends with exit status 2 before anything is opened.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, Subcommand, ValueEnum};
use infgen::{Dtype, Rect};

#[derive(Debug, Parser)]
#[command(name = "infgen", version, about = "Latents to pictures of any size, on any GPU", max_term_width = 100)]
#[command(after_help = "Examples:
  infgen decode --latent sample.safetensors --size 1920x1080 -o sample.png
  infgen upscale --image photo.jpg --scale 2 -o large.png
  infgen encode --image photo.jpg -o latent.safetensors
  infgen devices

Exit status: 0 done, 2 wrong usage, 1 anything else, with one line on stderr that says what was wrong.")]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, clap::Args)]
pub struct Common {
    /// Adapter to use: its number in `infgen devices`, or a part of its name [default: the best]
    #[arg(long, global = true, value_name = "N|NAME")]
    pub device: Option<String>,
    /// Storage of weights and activations; sums are f32 in both
    #[arg(long, global = true, value_enum, default_value_t = DtypeArg::F16)]
    pub dtype: DtypeArg,
    /// Ceiling on GPU memory, such as 2GiB or 800MB: the same picture in bands; what cannot be done is refused before it starts
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Ceiling on host memory for what has no room on the GPU [default: half of the machine's]
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_bytes)]
    pub host_memory: Option<u64>,
    /// No progress and no summary
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log what happens
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// One JSON object on stdout that says what was done
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    F16,
    F32,
}

impl From<DtypeArg> for Dtype {
    fn from(dtype: DtypeArg) -> Dtype {
        match dtype {
            DtypeArg::F16 => Dtype::F16,
            DtypeArg::F32 => Dtype::F32,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List adapters with their limits and features, best first
    Devices,
    /// Decode a latent to a picture of exactly the size asked for
    #[command(after_help = "Examples:
  infgen decode --latent sample.safetensors --size 1920x1080 -o sample.png
  infgen decode --latent z.npy --weights vae/ --size 512x512 -o z.npy --dtype f32
  infgen decode --latent z.npy --size 8192x8192 --region 4000,4000,512x512 -o detail.png")]
    Decode(DecodeArgs),
    /// Encode a picture to a latent
    #[command(after_help = "Examples:
  infgen encode --image photo.jpg --size 512x512 -o latent.safetensors
  infgen encode --image photo.png --weights vae/ --sample --seed 7 -o latent.npy")]
    Encode(EncodeArgs),
    /// Enlarge a picture: encode, decode, and again, at most 2x a round
    #[command(after_help = "Examples:
  infgen upscale --image photo.jpg --scale 2 -o large.png
  infgen upscale --image photo.jpg --size 4096x2731 -o large.png")]
    Upscale(UpscaleArgs),
    /// Say what a weights or latent file holds, and which model it is
    Inspect(InspectArgs),
    /// Time kernels and whole decodes, beside the device's own peak
    #[command(after_help = "Examples:
  infgen bench                 everything
  infgen bench conv2d linear   what has one of these in its name")]
    Bench(BenchArgs),
}

#[derive(Debug, clap::Args)]
pub struct DecodeArgs {
    /// Latent: .safetensors with a tensor `latent`, or .npy; [C,h,w] or [B,C,h,w], scaled as pipelines hand it on
    #[arg(long, value_name = "FILE")]
    pub latent: PathBuf,
    /// Decoder: InfGen, AutoencoderKL or TAESD, as a file or folder [default: the one that ships]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Size of the picture in pixels, each side 1 to 16384
    #[arg(long, value_name = "WxH")]
    pub size: Size,
    /// Print how it would be done, with bytes, operations and passes a layer, and stop
    #[arg(long)]
    pub explain: bool,
    /// Only this rectangle of the picture: equal to that crop of the whole
    #[arg(long, value_name = "X,Y,WxH", value_parser = parse_region)]
    pub region: Option<Rect>,
    /// Picture to write: .png, .jpg, .webp (8 bits), .npy or .safetensors (float)
    #[arg(short, long, value_name = "FILE", required_unless_present = "explain")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct EncodeArgs {
    /// Picture: PNG, JPEG or WebP
    #[arg(long, value_name = "FILE")]
    pub image: PathBuf,
    /// Encoder: AutoencoderKL or TAESD, as a file or folder [default: the one that ships]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Resize the picture to this first [default: its own size, rounded down to the encoder's multiple]
    #[arg(long, value_name = "WxH")]
    pub size: Option<Size>,
    /// Draw from the posterior instead of taking its mean
    #[arg(long)]
    pub sample: bool,
    /// Seed of that draw: the same noise as torch's CPU generator
    #[arg(long, value_name = "N", default_value_t = 0, requires = "sample")]
    pub seed: u64,
    /// Latent to write: .safetensors or .npy
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("target").required(true)))]
pub struct UpscaleArgs {
    /// Picture: PNG, JPEG or WebP
    #[arg(long, value_name = "FILE")]
    pub image: PathBuf,
    /// Enlarge both sides by this factor
    #[arg(long, value_name = "F", group = "target", value_parser = parse_scale)]
    pub scale: Option<f64>,
    /// Size of the result in pixels
    #[arg(long, value_name = "WxH", group = "target")]
    pub size: Option<Size>,
    /// InfGen decoder [default: the one that ships]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Encoder of the same latent space [default: the one that ships]
    #[arg(long, value_name = "FILE")]
    pub encoder: Option<PathBuf>,
    /// Picture to write: .png, .jpg, .webp (8 bits), .npy or .safetensors (float)
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// Weights file or folder, or latent
    pub file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Run only what has one of these in its name
    pub names: Vec<String>,
    /// Decoder for the whole decodes [default: the one that ships]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Measurements of each; the median is shown
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
}

/// `1920x1080`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub width: usize,
    pub height: usize,
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Size, String> {
        let sides = text.split_once(['x', 'X']).and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        match sides {
            Some((width, height)) if width > 0 && height > 0 => Ok(Size { width, height }),
            _ => Err("a size is WIDTHxHEIGHT in pixels, such as 1920x1080".into()),
        }
    }
}

fn parse_region(text: &str) -> Result<Rect, String> {
    let parts: Vec<&str> = text.splitn(3, ',').collect();
    let rect = match parts[..] {
        [x, y, size] => x.trim().parse().ok().zip(y.trim().parse().ok()).zip(size.trim().parse::<Size>().ok()),
        _ => None,
    };
    rect.map(|((x, y), size)| Rect { x, y, w: size.width, h: size.height })
        .ok_or_else(|| "a region is X,Y,WIDTHxHEIGHT in pixels, such as 100,0,512x512".into())
}

fn parse_scale(text: &str) -> Result<f64, String> {
    match text.trim_end_matches(['x', 'X']).parse::<f64>() {
        Ok(scale) if scale > 0.0 && scale <= 1000.0 => Ok(scale),
        _ => Err("a scale is a number above 0, such as 2 or 1.5".into()),
    }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit: u64 = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        "tb" => 1000 * 1000 * 1000 * 1000,
        _ => 0,
    };
    match digits.parse::<f64>() {
        Ok(value) if unit > 0 && value > 0.0 && value * (unit as f64) < 1e18 => Ok((value * unit as f64) as u64),
        _ => Err("a size is a number with a unit, such as 2GiB, 800MB or 1.5G".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn sizes_regions_and_bytes_are_read_and_nonsense_is_refused() {
        assert_eq!("1920x1080".parse(), Ok(Size { width: 1920, height: 1080 }));
        for bad in ["", "x", "10", "0x5", "5x0", "-1x5", "1x2x3", "1.5x2"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!(parse_region("1,2,3x4"), Ok(Rect { x: 1, y: 2, w: 3, h: 4 }));
        assert!(parse_region("1,2").is_err() && parse_region("1,2,3").is_err() && parse_region("-1,2,3x4").is_err());
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        assert_eq!(parse_bytes("1.5 k"), Ok(1536));
        assert_eq!(parse_bytes("800MB"), Ok(800_000_000));
        for bad in ["", "GiB", "-1GiB", "3 parsecs", "1e30", "0"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_scale("2x"), Ok(2.0));
        assert!(parse_scale("0").is_err() && parse_scale("nan").is_err());
    }
}
