//! The command line. What cannot be meant ends with exit status 2 before anything is opened.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, Subcommand, ValueEnum};
use infgen::nn::RotaryScaling;
use infgen::schedulers::Sampler;
use infgen::{Dtype, Rect};

#[derive(Debug, Parser)]
#[command(name = "infgen", version, about = "Latents to pictures of any size, on any GPU", max_term_width = 100)]
#[command(after_help = "Examples:
  infgen decode --latent sample.safetensors --size 1920x1080 -o sample.png
  infgen generate --model sd15/ -p \"a lighthouse in a storm\" --latent-size 912x512 --size 1920x1080 -o lighthouse.png
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
    /// Adapter to use: its number in `infgen devices`, a part of its name, or a backend such as `dx12` [default: the best]
    #[arg(long, global = true, help_heading = "Every command", value_name = "N|NAME")]
    pub device: Option<String>,
    /// Storage of weights and of activations (text to image: of weights); sums are f32 in both
    #[arg(long, global = true, help_heading = "Every command", value_enum, default_value_t = DtypeArg::F16)]
    pub dtype: DtypeArg,
    /// Ceiling on GPU memory, such as 2GiB or 800MB: the same picture in bands; what cannot be done is refused before it starts
    #[arg(long, global = true, help_heading = "Every command", value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Ceiling on host memory for what has no room on the GPU [default: half of the machine's]
    #[arg(long, global = true, help_heading = "Every command", value_name = "SIZE", value_parser = parse_bytes)]
    pub host_memory: Option<u64>,
    /// Use the fixed choice of kernels instead of measuring which are fastest at the first use of a GPU
    #[arg(long, global = true, help_heading = "Every command")]
    pub no_tune: bool,
    /// No progress and no summary
    #[arg(short, long, global = true, help_heading = "Every command")]
    pub quiet: bool,
    /// Log what happens
    #[arg(short, long, global = true, help_heading = "Every command")]
    pub verbose: bool,
    /// One JSON object on stdout that says what was done
    #[arg(long, global = true, help_heading = "Every command")]
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
  infgen decode --latent z.npy --weights vae/ --size 512x512 -o picture.npy --dtype f32
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
    /// Generate pictures from text (Stable Diffusion 1.x, 2.x, SDXL) or a class (DiT, SiT, FiT, MDT, MaskDiT), at any size
    #[command(after_help = GENERATE_HELP)]
    Generate(Box<GenerateArgs>),
    /// Open a window that shows a latent decoded at exactly the pixels it covers
    #[cfg(feature = "viewer")]
    #[command(after_help = "Examples:
  infgen view examples/sample.safetensors
  infgen view photo.jpg                                 encoded first
  infgen view z.npy --weights decoder/ --compare vae/   two decoders side by side
  infgen view --model sd15/                             pictures from prompts

Keys: wheel or + - zoom, drag moves, F fits, W fills the window, 1 is 100 %, C compares, ? lists all.")]
    View(ViewArgs),
    /// Say what a weights or latent file holds and which model it is, or with which settings a PNG was made
    Inspect(InspectArgs),
    /// Time kernels and whole decodes, beside the device's own peak
    #[command(after_help = "Examples:
  infgen bench                                everything
  infgen bench conv2d linear                  what has one of these in its name
  infgen bench --network vae --check          the SD VAE's shapes, each compared with its f64 definition first
  infgen bench --variants conv2d              every kernel family that could compute it
  infgen bench decode --sizes 512,1024 --json whole decodes, for other programs")]
    Bench(BenchArgs),
}

#[derive(Debug, clap::Args)]
pub struct DecodeArgs {
    /// Latent: .safetensors with a tensor `latent`, or .npy; [C,h,w] or [B,C,h,w], scaled as pipelines hand it on
    #[arg(long, value_name = "FILE")]
    pub latent: PathBuf,
    /// Decoder: InfGen, INFD, AutoencoderKL or TAESD, as a file or folder [default: the one that ships]
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
    /// Encoder: AutoencoderKL, INFD or TAESD, as a file or folder [default: the one that ships]
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
    /// Decoder: InfGen or INFD [default: the one that ships]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Encoder of the same latent space [default: that of an INFD file, else the one that ships]
    #[arg(long, value_name = "FILE")]
    pub encoder: Option<PathBuf>,
    /// Picture to write: .png, .jpg, .webp (8 bits), .npy or .safetensors (float)
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

const GENERATE_HELP: &str = "Examples:
  infgen generate --model sd15/ -p \"a lighthouse in a storm\" -o lighthouse.png
  infgen generate --model v1-5-pruned-emaonly.safetensors -p \"a red fox\" -n \"blurry\" --steps 25 \\
      --sampler dpmpp-2m-karras --cfg 7 -s 42 -o fox.png
  infgen generate --model sd15/ -p \"a harbour\" --latent-size 768x512 --size 3840x2560 -o harbour.png
  infgen generate --model sd15/ -p \"a watercolour\" --image photo.jpg --strength 0.6 -o watercolour.png
  infgen generate --model sd15-inpainting/ -p \"a cat\" --image sofa.png --mask seat.png -o cat.png
  infgen generate --model sd15/ -p \"a portrait\" --lora style.safetensors:0.8 --batch 4 -o portrait.png
  infgen generate --model sd15/ -p \"a fox\" -s 1-8 --steps 20 --preview now.png -o fox.png     (fox-000.png ... fox-007.png)
  infgen generate --model sd_xl_base_1.0.safetensors -p \"a fox\" --size 1920x1920 --decoder weights/infgen-tiny-sdxl.safetensors -o fox.png
  infgen generate --model dit-xl-2-256/ -p \"golden retriever\" --size 1024x1024 -o dog.png     (a class, also -p 207)
  infgen generate --model FiTv2_XL_HRFT/model_ema.safetensors -p 207 --latent-size 640x320 -o wide.png     (FiT: any shape)
  infgen generate --model imagenet256-guidance.safetensors -p 207 --steps 40 --size 1024x1024 -o dog.png     (MaskDiT)
  infgen generate --model infd.safetensors -s 1-4 --size 2048x2048 -o face.png     (INFD: told nothing, each seed is a picture)
  infgen generate --model org/name -p \"a map\" -o map.png     (from the hub, once; kept in its cache)

Notes:
  A seed gives the noise of PyTorch's CPU generator on every device, so diffusers with
  generator=torch.Generator(\"cpu\").manual_seed(SEED) makes the same picture.
  The picture is decoded by the model's own VAE, if it has one, at its native size, and by the InfGen decoder that ships here at any other (of SDXL
  by one of its space: --decoder).
  SDXL without --negative is led away from zeros, with --negative \"\" from the empty text, as in diffusers.
  SiT and FiTv2 take --steps intervals of their time, which their own samplers call one number of steps more.
  A PNG keeps the settings where other tools look for them (`parameters`); `infgen inspect fox.png` prints them.
  Weights are stored as --dtype says, what flows between layers is f32 in both.";

#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// Model: a diffusers folder, a single-file checkpoint (.safetensors), or a hub id (org/name, org/name/file.safetensors)
    #[arg(long, value_name = "M", help_heading = "Model")]
    pub model: String,
    /// Server of hub ids [default: $HF_ENDPOINT, or the public hub]
    #[arg(long, value_name = "URL", help_heading = "Model")]
    pub hub_endpoint: Option<String>,
    /// Branch, tag or commit of a hub id [default: main]
    #[arg(long, value_name = "REV", help_heading = "Model")]
    pub revision: Option<String>,
    /// LoRA merged into the model, with its strength; can be given several times
    #[arg(long = "lora", value_name = "FILE[:STRENGTH]", value_parser = parse_lora, help_heading = "Model")]
    pub loras: Vec<LoraArg>,
    /// What the model predicts, where its files do not say (single-file SD 2.x: v; SiT: flow)
    #[arg(long, value_enum, help_heading = "Model")]
    pub prediction: Option<PredictionArg>,

    /// What to show; for a class-conditional model the number of a class, or its name where the model's folder has names; none for INFD
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Picture")]
    pub prompt: Option<String>,
    /// What not to show (text-to-image models)
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Picture")]
    pub negative: Option<String>,
    /// Read (word:1.2) and [word] in the prompts as emphasis
    #[arg(long, help_heading = "Picture")]
    pub emphasis: bool,
    /// Steps [default: 50; lcm: 4; INFD: 200]
    #[arg(long, value_name = "N", value_parser = parse_steps, help_heading = "Picture")]
    pub steps: Option<usize>,
    /// Sampler [default: the model's own]
    #[arg(long, value_enum, value_name = "S", help_heading = "Picture")]
    pub sampler: Option<SamplerArg>,
    /// Guidance scale; 1 is without, and twice as fast [default: 7.5; SDXL: 5; lcm: 1.5; DiT, SiT, MDT: 4; FiT, MaskDiT: 1.5]
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Picture")]
    pub cfg: Option<f64>,
    /// Guidance that changes with the steps by a cosine of this power: MDT's and DiT's grows to the scale, the smaller the sooner; FiTv2's, as its own, falls
    /// from it; 0: the scale throughout [default: MDT: 0.01; others: 0]
    #[arg(long, value_name = "X", value_parser = parse_power, help_heading = "Picture")]
    pub cfg_power: Option<f64>,
    /// Seed of all noise (of which, as in PyTorch, 32 bits count); several, such as 7,11 or 1-4, make a picture (or batch) each [default: another one every time]
    #[arg(short, long, value_name = "N[,N..]", value_parser = parse_seeds, help_heading = "Picture")]
    pub seed: Option<Seeds>,
    /// Number of pictures, from one stream of noise: name-000.png, name-001.png, ...
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_batch, help_heading = "Picture")]
    pub batch: usize,
    /// Leave out the last N layers of the text encoder, for both prompts (what others call clip skip N + 1)
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Picture")]
    pub clip_skip: usize,
    /// Noise of the sampler ddim, 0 to 1 [default: 0; INFD: 1]
    #[arg(long, value_name = "X", value_parser = parse_share, help_heading = "Picture")]
    pub eta: Option<f64>,
    /// Share by which guided predictions take the spread of unguided ones, 0 to 1
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = parse_share, help_heading = "Picture")]
    pub guidance_rescale: f64,

    /// Size at which the model works, in pixels; multiples of 8, INFD's of 4 [default: the picture's or the model's own; DiT, SiT, MDT and MaskDiT have one, FiT takes multiples of 16]
    #[arg(long, value_name = "WxH", help_heading = "Size")]
    pub latent_size: Option<Size>,
    /// How FiT's positions follow latent sizes above 256 pixels a side (its --interpolation, --decouple) [default: dynntk]
    #[arg(long, value_parser = parse_rope, value_name = "no|linear|dynntk|ntkpro1|ntkpro2|partntk|yarn", help_heading = "Size")]
    pub rope: Option<RotaryScaling>,
    /// Size of the result in pixels, any; of another shape than the latent size it stretches the picture [default: the latent size]
    #[arg(long, value_name = "WxH", help_heading = "Size")]
    pub size: Option<Size>,
    /// `vae` (the model's own, native size only, but for INFD's), `builtin` (InfGen, any size), or a decoder's file or folder [default: vae at its
    /// native size and for INFD, builtin at any other and for class-conditional models without one]
    #[arg(long, value_name = "vae|builtin|FILE", help_heading = "Size")]
    pub decoder: Option<String>,

    /// Picture to start from
    #[arg(long, value_name = "FILE", help_heading = "Start")]
    pub image: Option<PathBuf>,
    /// How much of that picture may change, 0 to 1 [default: 0.8; with --mask 1, of SDXL 0.9999]
    #[arg(long, value_name = "X", requires = "image", value_parser = parse_share, help_heading = "Start")]
    pub strength: Option<f64>,
    /// Where it may change: white; black stays as it is
    #[arg(long, value_name = "FILE", requires = "image", help_heading = "Start")]
    pub mask: Option<PathBuf>,
    /// First noise of unit variance instead of the seed's: a latent's file
    #[arg(long, value_name = "FILE", help_heading = "Start")]
    pub init_noise: Option<PathBuf>,

    /// Picture to write: .png, .jpg, .webp (8 bits), .npy or .safetensors (float)
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub output: PathBuf,
    /// Also write the final latents: .safetensors or .npy
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub save_latent: Option<PathBuf>,
    /// Write a rough picture here while it works
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub preview: Option<PathBuf>,
    /// After every that many calls of the model
    #[arg(long, value_name = "N", default_value_t = 5, requires = "preview", value_parser = parse_count, help_heading = "Output")]
    pub preview_every: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SamplerArg {
    Ddim,
    Pndm,
    Euler,
    EulerA,
    Heun,
    #[value(name = "dpmpp-2m")]
    Dpmpp2m,
    #[value(name = "dpmpp-2m-karras")]
    Dpmpp2mKarras,
    Lcm,
    Ddpm,
}

impl From<SamplerArg> for Sampler {
    fn from(sampler: SamplerArg) -> Sampler {
        match sampler {
            SamplerArg::Ddim => Sampler::Ddim,
            SamplerArg::Pndm => Sampler::Pndm,
            SamplerArg::Euler => Sampler::Euler,
            SamplerArg::EulerA => Sampler::EulerAncestral,
            SamplerArg::Heun => Sampler::Heun,
            SamplerArg::Dpmpp2m => Sampler::DpmSolver,
            SamplerArg::Dpmpp2mKarras => Sampler::DpmSolverKarras,
            SamplerArg::Lcm => Sampler::Lcm,
            SamplerArg::Ddpm => Sampler::Ddpm,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PredictionArg {
    /// The noise
    Epsilon,
    /// The velocity
    V,
    /// The clean latent
    Sample,
    /// The velocity from noise to data (SiT, FiTv2)
    Flow,
}

/// `style.safetensors:0.8`
#[derive(Debug, Clone, PartialEq)]
pub struct LoraArg {
    pub path: PathBuf,
    pub strength: f64,
}

fn parse_lora(text: &str) -> Result<LoraArg, String> {
    let whole = || LoraArg { path: text.into(), strength: 1.0 };
    let Some((path, number)) = text.rsplit_once(':').filter(|(path, _)| !path.is_empty()) else { return Ok(whole()) };
    match number.parse::<f64>() {
        Ok(strength) if strength.is_finite() && strength.abs() <= 100.0 => Ok(LoraArg { path: path.into(), strength }),
        Ok(_) => Err("a strength is a number from -100 to 100, such as 0.8".into()),
        // A drive letter, or a name with a colon.
        Err(_) => Ok(whole()),
    }
}

fn parse_batch(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=256).contains(n)).ok_or_else(|| "a number of pictures, 1 to 256".into())
}

/// `7`, `7,11`, `1-4,9`
#[derive(Debug, Clone, PartialEq)]
pub struct Seeds(pub Vec<u64>);

/// Most seeds of one call.
const MAX_SEEDS: u64 = 256;

fn parse_seeds(text: &str) -> Result<Seeds, String> {
    let mut seeds = Vec::new();
    for part in text.split(',') {
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| format!("`{part}` is neither a seed nor a range such as 1-4"));
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if last < first || last - first >= MAX_SEEDS || seeds.len() as u64 + last - first >= MAX_SEEDS {
            return Err(format!("`{part}`: a range goes up, and at most {MAX_SEEDS} seeds are possible"));
        }
        seeds.extend(first..=last);
    }
    Ok(Seeds(seeds))
}

fn parse_steps(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "a number of steps, 1 or more".into())
}

fn parse_share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| (0.0..=1.0).contains(x)).ok_or_else(|| "a number from 0 to 1".into())
}

fn parse_rope(text: &str) -> Result<RotaryScaling, String> {
    RotaryScaling::from_name(text).ok_or_else(|| format!("one of {}", RotaryScaling::ALL.map(RotaryScaling::name).join(", ")))
}

fn parse_power(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| (0.0..=100.0).contains(x)).ok_or_else(|| "a number from 0 to 100".into())
}

fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "a number of calls, 1 or more".into())
}

#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// Weights file or folder, latent, or PNG
    pub file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Run only what has one of these in its name
    pub names: Vec<String>,
    /// Decoder for the whole decodes [default: the one that ships]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Only shapes of this network: tiny (the decoder that ships), table1, sd4 (InfGen's presets), vae, unet (SD 1.5), dit (DiT-XL/2)
    #[arg(long, value_name = "NAME", value_parser = ["tiny", "table1", "sd4", "vae", "unet", "dit"])]
    pub network: Option<String>,
    /// Sides of the whole decodes in pixels [default: 256 on software, 512,1024,2048 on a GPU]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = parse_side)]
    pub sizes: Vec<usize>,
    /// Compare each kernel with its definition in f64 before it is timed; what is wrong is not timed, and makes the command fail
    #[arg(long)]
    pub check: bool,
    /// Time every kernel family that could compute the operator, not only the one chosen
    #[arg(long)]
    pub variants: bool,
    /// Write the JSON report to this file as well
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Kernels with or without checks of indices, to see what they cost [default: without on Vulkan and DX12]
    #[arg(long, value_name = "true|false")]
    pub bounds_checks: Option<bool>,
    /// Whole planes on software devices too, where they lose rows to be done in time
    #[arg(long)]
    pub full: bool,
    /// Measurements of each; the median is shown
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
}

#[cfg(feature = "viewer")]
#[derive(Debug, clap::Args)]
pub struct ViewArgs {
    /// Latent, picture (encoded first), decoder, text-to-image, class-conditional or unconditional model to open
    pub file: Option<PathBuf>,
    /// Decoder: InfGen, INFD, AutoencoderKL or TAESD, as a file or folder [default: the one that ships]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Another decoder to compare with
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Model for the prompt panel: a diffusers folder or a single-file checkpoint
    #[arg(long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Size of the window in physical pixels [default: as it was left]
    #[arg(long, value_name = "WxH")]
    pub size: Option<Size>,
    /// Start without menus and status line, as the Tab key leaves it
    #[arg(long)]
    pub bare: bool,
    /// Write what happens to this file, one JSON object a line
    #[arg(long, value_name = "FILE", hide = true)]
    pub events: Option<PathBuf>,
}

fn parse_side(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|side| (8..=16384).contains(side)).ok_or_else(|| "a side of 8 to 16384 pixels".into())
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
        _ => Err("a scale is a number above 0 and not above 1000, such as 2 or 1.5".into()),
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
        let lora = |path: &str, strength| Ok(LoraArg { path: path.into(), strength });
        assert_eq!(parse_lora("a.safetensors"), lora("a.safetensors", 1.0));
        assert_eq!(parse_lora("a.safetensors:-0.5"), lora("a.safetensors", -0.5));
        assert_eq!(parse_lora("C:\\a.safetensors"), lora("C:\\a.safetensors", 1.0));
        assert!(parse_lora("a:1e9").is_err() && parse_lora("a:nan").is_err());
        assert_eq!(parse_seeds("7"), Ok(Seeds(vec![7])));
        assert_eq!(parse_seeds("9, 1-3"), Ok(Seeds(vec![9, 1, 2, 3])));
        for bad in ["", "x", "-1", "4-1", "1-257", "1-200,1-200", "0-18446744073709551615", "1,"] {
            assert!(parse_seeds(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_scale("2x"), Ok(2.0));
        assert!(parse_scale("0").is_err() && parse_scale("nan").is_err());
    }
}
