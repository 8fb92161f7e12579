//! Hostile and damaged inputs: every reader answers with a value or a typed error, in one line, without a panic and
//! without memory out of proportion to the file; every writer leaves a whole file or none.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};

use infgen::error::Error;
use infgen::image::{Image, OutputFormat, RowWriter, batch_path, check_writable};
use infgen::latent::{Latent, LatentSpace};
use infgen::models::clip_config::ClipTextConfig;
use infgen::models::infgen_config::InfgenConfig;
use infgen::models::taesd_config::TaesdConfig;
use infgen::models::unet_config::UnetConfig;
use infgen::models::vae_config::VaeConfig;
use infgen::weights::recognise::{Recognised, check, inspect, recognise};
use infgen::weights::taesd_keys::Half;
use infgen::weights::{Weights, vae_keys};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

// ---- the largest single allocation of this thread -------------------------------------------------------------------

struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        unsafe { System.realloc(ptr, layout, size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }
}

fn note(size: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// What `work` returns, and the largest single allocation it made.
fn watched<T>(work: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.set(0);
    let result = work();
    (result, LARGEST.get())
}

/// Files here have a few KiB; the readers' own buffers take up to 256 KiB.
const MODEST: usize = 1 << 20;

// ---- building files -------------------------------------------------------------------------------------------------

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A safetensors file of these headers and bytes, whether or not they fit.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A valid safetensors file of zeros.
fn zeros<'a>(tensors: impl IntoIterator<Item = &'a (String, Vec<usize>)>, metadata: &[(&str, &str)]) -> Vec<u8> {
    let list: Vec<_> = tensors.into_iter().collect();
    let data: Vec<_> = list.iter().map(|(_, shape)| vec![0; 4 * shape.iter().product::<usize>()]).collect();
    let views =
        list.iter().zip(&data).map(|((name, shape), data)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    let pairs = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    safetensors::serialize(views, (!metadata.is_empty()).then_some(pairs)).unwrap()
}

fn tensor(name: &str, shape: &[usize]) -> (String, Vec<usize>) {
    (name.to_owned(), shape.to_vec())
}

fn small_vae() -> VaeConfig {
    VaeConfig { block_out_channels: vec![32, 64], layers_per_block: 1, ..VaeConfig::default() }
}

fn small_infgen() -> InfgenConfig {
    InfgenConfig {
        hidden_size: 32,
        num_blocks: 1,
        num_heads: 2,
        mlp_hidden: 8,
        inpe_features: 4,
        inpe_hidden: 8,
        up_block_channels: vec![32, 32, 32],
        layers_per_up_block: 1,
        ..InfgenConfig::table1()
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.0.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The error's text: one line that names the input.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, input: &str) -> String {
    let text = result.expect_err(input).to_string();
    assert!(!text.contains('\n') && text.len() < 1000, "{text}");
    assert!(text.contains(input), "`{input}` is not named in: {text}");
    text
}

// ---- weights --------------------------------------------------------------------------------------------------------

#[test]
fn lying_safetensors_headers_are_refused_with_the_lie_in_the_message_and_little_memory() {
    let one =
        |dtype: &str, shape: &str, offsets: &str| format!(r#"{{"a":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{offsets}]}}}}"#);
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[{first}]}},"b":{{"dtype":"F32","shape":[2],"data_offsets":[{second}]}}}}"#
        )
    };
    let mut huge = raw("{}", &[]);
    huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    let mut beyond = raw(&one("F32", "2", "0,8"), &[0; 8]);
    beyond[..8].copy_from_slice(&5000u64.to_le_bytes());
    let nested = format!("{}{}", r#"{"a":"#.repeat(5000), "}".repeat(5000));
    let duplicate = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "empty"),
        (vec![1, 2, 3], "truncated: 3 bytes"),
        (huge, "1152921504606846976"),
        (beyond, "5000"),
        (raw("", &[]), "EOF"),
        (raw("[]", &[]), "a map from tensor names"),
        (raw("{\"a\":1}", &[]), "invalid type"),
        (raw("{\"a\"", &[]), "EOF"),
        (raw("\u{fffd}", &[]), "expected value"),
        ([&8u64.to_le_bytes()[..], b"{\"\xff\xff\":1}"].concat(), "header"),
        (raw(&nested, &[]), "header"),
        (raw(duplicate, &[0; 8]), "duplicate name `a`"),
        (raw(r#"{"__metadata__":{"k":1}}"#, &[]), "invalid type"),
        (raw(r#"{"__metadata__":{},"__metadata__":{}}"#, &[]), "duplicate name `__metadata__`"),
        (raw(&one("F33", "2", "0,8"), &[0; 8]), "F33"),
        (raw(&one("F32", "2", "0,8"), &[0; 7]), "8 bytes of data, the file has 7"),
        (raw(&one("F32", "2", "0,8"), &[0; 9]), "1 bytes follow"),
        (raw(&one("F32", "2", "0,4"), &[0; 4]), "invalid shape"),
        (raw(&one("F32", "2", "4,12"), &[0; 12]), "invalid offset"),
        (raw(&one("F32", "2", "8,0"), &[0; 8]), "invalid offset"),
        (raw(&one("F32", "2", "-8,0"), &[0; 8]), "invalid value"),
        (raw(&one("F32", "-2", "0,8"), &[0; 8]), "invalid value"),
        (raw(&one("F32", "4611686018427387904,4", "0,0"), &[]), "overflow"),
        (raw(&one("F32", "4611686018427387904", "0,0"), &[]), "overflow"),
        (raw(&one("F32", "2305843009213693951", "0,9223372036854775804"), &[0; 8]), "overflow"),
        (raw(&one("U8", "4611686018427387904", "0,4611686018427387904"), &[0; 8]), "overflow"),
        (raw(&one("U8", "1152921504606846976", "0,1152921504606846976"), &[0; 8]), "truncated"),
        (raw(&two("0,8", "0,8"), &[0; 8]), "invalid offset"),
        (raw(&two("0,8", "4,12"), &[0; 12]), "invalid offset"),
        (raw(&two("0,8", "12,20"), &[0; 20]), "invalid offset"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n".to_vec(), "git lfs pull"),
        (b"<!DOCTYPE html><html></html>".to_vec(), "HTML"),
        (b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), "GGUF"),
        (b"PK\x03\x04 word/document.xml".to_vec(), "zip archive"),
        (b"\x93NUMPY\x01\0\0\0".to_vec(), ".npy"),
        (b"{\"a\": 1}".to_vec(), "JSON"),
    ];
    for (bytes, says) in cases {
        let (result, largest) = watched(|| Weights::from_bytes(bytes.clone(), "evil.safetensors"));
        let text = refused(result, "evil.safetensors");
        assert!(text.contains(says), "`{says}` not in: {text}");
        assert!(matches!(Weights::from_bytes(bytes, "x"), Err(Error::Malformed { .. })));
        assert!(largest < MODEST, "{says}: {largest} bytes at once");
    }
}

#[test]
fn a_large_file_cannot_ask_for_a_large_header() {
    let folder = Folder::new();
    let path = folder.put("large.safetensors", 200_000_000u64.to_le_bytes());
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 28).unwrap(); // sparse
    let (result, largest) = watched(|| Weights::open(&path));
    assert!(refused(result, "large.safetensors").contains("the limit is 100000000"));
    assert!(largest < MODEST, "{largest} bytes at once");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = zeros(&[tensor("first", &[3]), tensor("second", &[2, 2])], &[("k", "v")]);
    let folder = Folder::new();
    for len in 0..whole.len() {
        let path = folder.put("cut.safetensors", &whole[..len]);
        let text = refused(Weights::open(&path), "cut.safetensors");
        assert!(text.contains("truncated") || text.contains("empty"), "{len}: {text}");
    }
    assert_eq!(Weights::open(folder.put("whole.safetensors", &whole)).unwrap().len(), 2);
}

#[test]
fn a_file_that_shrinks_while_open_is_an_error_on_the_next_read() {
    let folder = Folder::new();
    let path = folder.put("m.safetensors", zeros(&[tensor("a", &[1000])], &[]));
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.get("a", &[1000]).unwrap(), [0.0; 1000]);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(500).unwrap();
    assert!(matches!(weights.get("a", &[1000]), Err(Error::Io { .. })));
}

#[test]
fn pickles_are_refused_under_any_name_and_never_opened() {
    let folder = Folder::new();
    let zip = b"PK\x03\x04\x14\x00\x00\x00\x08\x08archive/data.pkl".to_vec();
    for (name, bytes) in [
        ("model.safetensors", b"\x80\x02}q\x00.".to_vec()),
        ("model.ckpt", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.".to_vec()),
        ("legacy.pt", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec()),
        ("vae.safetensors", zip.clone()),
        ("model.pth", zip),
    ] {
        let path = folder.put(name, bytes);
        for result in [Weights::open(&path).map(drop), Latent::open(&path).map(drop), inspect(&path).map(drop)] {
            assert!(matches!(result, Err(Error::Pickle { .. })), "{name}: {result:?}");
            assert!(refused(result, name).contains("safetensors.torch.save_file"));
        }
    }
}

#[test]
fn a_safetensors_header_whose_length_looks_like_a_pickle_opens() {
    for len in [0x0280, 0x0380, 0x0480, 0x0580] {
        let header = format!("{:len$}", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#);
        let weights = Weights::from_bytes(raw(&header, &floats(&[2.5])), "m").unwrap();
        assert_eq!(weights.get("a", &[1]).unwrap(), [2.5]);
    }
}

#[test]
fn folders_and_missing_files_are_told_apart() {
    let folder = Folder::new();
    assert!(matches!(Weights::open(folder.path("none.safetensors")), Err(Error::Io { .. })));
    assert!(matches!(Weights::open(folder.0.path()), Err(Error::UnknownModel { .. })));
    assert!(matches!(Latent::open(folder.0.path()), Err(Error::Io { .. })));
    assert!(matches!(Image::open(folder.0.path()), Err(Error::Io { .. })));

    let file = zeros(&[tensor("a", &[1])], &[]);
    folder.put("pickled/pytorch_model.bin", b"\x80\x02}.");
    assert!(matches!(Weights::open(folder.path("pickled")), Err(Error::Pickle { .. })));
    folder.put("two/a.safetensors", &file);
    assert_eq!(Weights::open(folder.path("two")).unwrap().len(), 1);
    folder.put("two/b.safetensors", &file);
    let text = refused(Weights::open(folder.path("two")), "two");
    assert!(text.contains("a.safetensors, b.safetensors"), "{text}");
}

#[test]
fn component_and_pipeline_folders_open_with_their_config() {
    let config = small_vae();
    let file = zeros(&config.tensors(true, true), &[]);
    let json = r#"{"_class_name":"AutoencoderKL","block_out_channels":[32,64],"layers_per_block":1,"scaling_factor":0.13025}"#;
    for name in ["diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.fp16.safetensors"] {
        let folder = Folder::new();
        folder.put("model_index.json", "{}");
        folder.put("vae/config.json", json);
        let single = folder.put(&format!("vae/{name}"), &file);
        for path in [folder.0.path(), &folder.path("vae"), &single] {
            let weights = Weights::open(path).unwrap();
            let Recognised::Vae(vae) = recognise(&weights).unwrap() else { panic!("{path:?}") };
            assert_eq!(vae.config.latent_space, Some(LatentSpace::Sdxl));
            assert!(vae.encoder && vae.decoder);
        }
        folder.put("vae/config.json", "{");
        assert!(matches!(recognise(&Weights::open(&single).unwrap()), Err(Error::Config { path, .. }) if path.ends_with("config.json")));
    }
}

#[test]
fn shards_open_as_one_and_cannot_reach_outside_their_folder() {
    let folder = Folder::new();
    folder.put("model-1.safetensors", zeros(&[tensor("a", &[1])], &[]));
    folder.put("model-2.safetensors", zeros(&[tensor("b", &[2])], &[]));
    let index = |b: &str| format!(r#"{{"metadata":{{"total_size":12}},"weight_map":{{"a":"model-1.safetensors","b":"{b}"}}}}"#);
    let path = folder.put("model.safetensors.index.json", index("model-2.safetensors"));
    for path in [folder.0.path(), &path] {
        let weights = Weights::open(path).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(weights.get("b", &[2]).unwrap(), [0.0; 2]);
    }
    folder.put("../outside.safetensors", zeros(&[tensor("b", &[2])], &[]));
    for evil in ["../outside.safetensors", "/etc/passwd", "..", "", "x/../../y", "a\\\\b"] {
        let path = folder.put("evil.index.json", index(evil));
        let text = refused(Weights::open(&path), "evil.index.json");
        assert!(text.contains("not the name of a file beside it"), "{text}");
    }
    std::fs::remove_file(folder.path("../outside.safetensors")).unwrap();
    let missing = folder.put("missing.index.json", index("model-3.safetensors"));
    assert!(matches!(Weights::open(missing), Err(Error::Io { .. })));
    folder.put("model-3.safetensors", zeros(&[tensor("a", &[1])], &[]));
    let twice = folder.put("twice.index.json", index("model-3.safetensors"));
    assert!(refused(Weights::open(twice), "model-3.safetensors").contains("`a` is also in another shard"));
    let other = folder.put("other.index.json", "{\"a\": 1}");
    assert!(refused(Weights::open(other), "other.index.json").contains("weight_map"));
}

// ---- recognition ----------------------------------------------------------------------------------------------------

#[test]
fn each_kind_of_file_is_recognised_and_a_missing_tensor_is_named() {
    let folder = Folder::new();
    let infgen = small_infgen();
    let taesd = TaesdConfig { latent_channels: 4, channels: vec![6, 6], blocks: vec![1, 1] };
    let prefixed = |prefix: &str, tensors: Vec<(String, Vec<usize>)>| -> Vec<_> {
        tensors.into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect()
    };
    let unet = |columns| tensor("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", &[2, columns]);
    let vae = small_vae().tensors(false, true);
    let mut sd1 = prefixed("first_stage_model.", vae.clone());
    sd1.push(unet(768));
    let mut sdxl = sd1.clone();
    sdxl.push(tensor("conditioner.embedders.0.x", &[1]));

    let cases = [
        ("infgen.safetensors", zeros(&infgen.tensors(), &[("infgen_config", &infgen.to_json())]), "InfGen decoder"),
        ("vae.safetensors", zeros(&vae, &[]), "AutoencoderKL decoder (4 latent channels, scaling factor 0.18215, latent space sd)"),
        ("sdxl_vae.safetensors", zeros(&vae, &[]), "scaling factor 0.13025, latent space sdxl"),
        ("ft.safetensors", zeros(&vae, &[("modelspec.architecture", "stable-diffusion-xl-v1-base/vae")]), "latent space sdxl"),
        (
            "taesdxl.safetensors",
            zeros(&[taesd.tensors(Half::Encoder), taesd.tensors(Half::Decoder)].concat(), &[]),
            "TAESD encoder and decoder (4 latent channels, latent space sdxl)",
        ),
        ("taesd_decoder.safetensors", zeros(&taesd.tensors(Half::Decoder), &[]), "TAESD decoder (4 latent channels, latent space sd)"),
        ("sd.safetensors", zeros(&sd1, &[]), "family sd1) with AutoencoderKL decoder (4 latent channels, scaling factor 0.18215"),
        ("xl.safetensors", zeros(&sdxl, &[]), "family sdxl) with AutoencoderKL decoder (4 latent channels, scaling factor 0.13025"),
        ("unet-only.safetensors", zeros(&[unet(1024)], &[]), "family sd2) without an autoencoder"),
        ("latent.safetensors", zeros(&[tensor("latent", &[4, 8, 6])], &[("latent_space", "sd")]), "latent of 1 x 4 x 8 x 6"),
        ("unet.safetensors", zeros(&[tensor("time_embedding.linear_1.weight", &[2, 2])], &[]), "UNet: it decodes no latents"),
        ("text.safetensors", zeros(&[tensor("text_model.final_layer_norm.bias", &[2])], &[]), "text encoder"),
        ("lora.safetensors", zeros(&[tensor("lora_unet_down_blocks_0.lora_up.weight", &[2, 2])], &[]), "LoRA"),
        ("other.safetensors", zeros(&[tensor("fc.weight", &[2, 2])], &[]), "not recognised"),
        ("nothing.safetensors", zeros(&[], &[]), "not recognised"),
    ];
    for (name, bytes, says) in cases {
        let inspection = inspect(folder.put(name, bytes)).unwrap();
        let text = inspection.recognised.to_string();
        assert!(text.contains(says), "{name}: `{says}` not in: {text}");
        assert_eq!(inspection.problem, None, "{name}");
        serde_json::to_string(&inspection).unwrap();
    }

    let npy = folder.path("l.npy");
    Latent::new([1, 4, 3, 2], vec![0.5; 24]).unwrap().save(&npy).unwrap();
    assert!(matches!(inspect(npy).unwrap().recognised, Recognised::Latent { shape: [1, 4, 3, 2], .. }));

    for (tensors, metadata) in [(infgen.tensors(), infgen.to_json()), (vae, String::new()), (taesd.tensors(Half::Encoder), String::new())] {
        let metadata: &[(&str, &str)] = if metadata.is_empty() { &[] } else { &[("infgen_config", &metadata)] };
        for lost in [tensors.len() / 2, tensors.len() - 1] {
            let kept: Vec<_> = tensors.iter().enumerate().filter(|(i, _)| *i != lost).map(|(_, t)| t.clone()).collect();
            let weights = Weights::from_bytes(zeros(&kept, metadata), "m").unwrap();
            let found = recognise(&weights).and_then(|recognised| check(&weights, &recognised));
            let text = refused(found, "m");
            let (name, _) = &tensors[lost];
            let bare = name.trim_start_matches("encoder.layers.").trim_end_matches(".bias").trim_end_matches(".weight");
            assert!(text.contains(bare), "{name} not in: {text}");
        }
    }
}

#[test]
fn an_infgen_without_config_or_with_a_rounded_b_is_refused() {
    let config = small_infgen();
    let weights = Weights::from_bytes(zeros(&config.tensors(), &[]), "decoder").unwrap();
    assert!(refused(recognise(&weights), "decoder").contains("infgen_config"));
    let data = vec![0; 4 << 16];
    let json = config.to_json();
    let tensors = config.tensors();
    let views = tensors.iter().map(|(name, shape)| {
        let dtype = if name == "inpe.B" { Dtype::F16 } else { Dtype::F32 };
        let bytes = dtype.bitsize() / 8 * shape.iter().product::<usize>();
        (name, TensorView::new(dtype, shape.clone(), &data[..bytes]).unwrap())
    });
    let bytes = safetensors::serialize(views, Some([("infgen_config".to_owned(), json)].into())).unwrap();
    let weights = Weights::from_bytes(bytes, "decoder").unwrap();
    let text = refused(config.check(&weights.view()), "decoder");
    assert!(text.contains("inpe.B") && text.contains("F16"), "{text}");
}

/// A network of which the config leaves out a part is another one; tensors of something else do not matter.
#[test]
fn an_infgen_with_tensors_that_its_config_has_no_place_for_is_refused() {
    let config = small_infgen();
    let with = |name: &str| {
        let tensors = [config.tensors(), vec![tensor(name, &[2])]].concat();
        let weights = Weights::from_bytes(zeros(&tensors, &[("infgen_config", &config.to_json())]), "decoder").unwrap();
        config.check(&weights.view())
    };
    let surplus = format!("blocks.{}.norm1.weight", config.num_blocks);
    assert!(refused(with(&surplus), "decoder").contains(&surplus));
    with("ema_step").unwrap();
}

/// Old names of the mid block's attention, as AutoencoderKL files may have them.
#[test]
fn an_infgen_may_have_old_attention_names() {
    let config = InfgenConfig { mid_block_add_attention: true, ..small_infgen() };
    let old = |name: &str| {
        [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
            .iter()
            .fold(name.to_owned(), |name, (new, old)| if name.contains(".attentions.") { name.replace(new, old) } else { name })
    };
    let tensors: Vec<_> = config.tensors().into_iter().map(|(name, shape)| (old(&name), shape)).collect();
    assert!(tensors.iter().any(|(name, _)| name.contains(".query.")));
    let weights = Weights::from_bytes(zeros(&tensors, &[("infgen_config", &config.to_json())]), "decoder").unwrap();
    config.check(&weights.view()).unwrap();
}

#[test]
fn a_pipelines_vae_is_found_beside_checkpoints_and_a_name_that_shapes_contradict_says_nothing() {
    let folder = Folder::new();
    let vae = small_vae().tensors(true, true);
    let says = |path: std::path::PathBuf| inspect(path).unwrap().recognised.to_string();
    for name in ["my_flux_vae.safetensors", "vaesd384.safetensors"] {
        let found = says(folder.put(name, zeros(&vae, &[])));
        assert!(found.contains("scaling factor 0.18215, latent space sd)"), "{name}: {found}");
    }
    std::fs::create_dir(folder.path("vae")).unwrap();
    folder.put("vae/diffusion_pytorch_model.safetensors", zeros(&vae, &[]));
    folder.put("model_index.json", "{}");
    assert!(says(folder.path("")).contains("AutoencoderKL"));
}

/// The tensors that torch and diffusers gave each model of the golden vectors are those that its config implies, and
/// every other naming of them that the goldens list opens as the same model.
#[test]
fn configs_imply_the_tensors_that_torch_has() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let sorted = |mut list: Vec<(String, Vec<usize>)>| {
        list.sort();
        list
    };
    let (mut models, mut namings) = (0, 0);
    for folder in std::fs::read_dir(golden).unwrap() {
        let path = folder.unwrap().path().join("case.json");
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let case: serde_json::Value = serde_json::from_str(&text).unwrap();
        let shape = |value: &serde_json::Value| serde_json::from_value::<Vec<usize>>(value.clone()).unwrap();
        let Some(list) = case["tensors"].as_array() else { continue };
        let torch = sorted(list.iter().map(|t| (t["name"].as_str().unwrap().to_owned(), shape(&t["shape"]))).collect());
        let config = case["config"].to_string();
        let ours = match case["model"].as_str().unwrap() {
            "infgen" => InfgenConfig::from_json(&config, &path).unwrap().tensors(),
            "autoencoder_kl" => VaeConfig::from_json(&config, &path).unwrap().tensors(true, true),
            "unet" => UnetConfig::from_json(&config, &path).unwrap().tensors(),
            // An OpenCLIP file has a layer more than its config, which must not run.
            "clip_text" if case["aliases"].get("open_clip").is_none() => ClipTextConfig::from_json(&config, &path).unwrap().tensors(),
            // Named as upstream names them; their aliases are below.
            _ => torch.clone(),
        };
        assert_eq!(sorted(ours), torch, "{}", path.display());
        models += 1;

        for (naming, names) in case["aliases"].as_object().into_iter().flatten() {
            let renamed = |(name, own): &(String, Vec<usize>)| match &names[name] {
                serde_json::Value::Null => (name.clone(), own.clone()),
                pair => (pair[0].as_str().unwrap().to_owned(), shape(&pair[1])),
            };
            // Fused tensors have one name for several.
            let file: Vec<_> = torch.iter().map(renamed).collect::<std::collections::BTreeMap<_, _>>().into_iter().collect();
            let values: usize = file.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            if values > 5_000_000 {
                continue;
            }
            let weights = Weights::from_bytes(zeros(&file, &[]), naming).unwrap();
            let recognised = recognise(&weights).unwrap();
            let expected = match (case["model"].as_str().unwrap(), &recognised) {
                ("unet", Recognised::Unet { .. } | Recognised::Checkpoint { unet: Some(_), .. }) => true,
                ("clip_text", Recognised::TextEncoder { .. }) => true,
                (model, Recognised::Vae(_) | Recognised::Taesd { .. }) => model != "unet" && model != "clip_text",
                _ => false,
            };
            assert!(expected, "{naming}: {recognised}");
            check(&weights, &recognised).unwrap();
            namings += 1;
        }
    }
    assert!(models >= 5 && namings >= 3, "{models} models, {namings} other namings");
}

// ---- latents --------------------------------------------------------------------------------------------------------

#[test]
fn latents_survive_saving_in_both_forms() {
    let folder = Folder::new();
    let mut latent = Latent::new([2, 4, 3, 5], (0..120).map(|i| i as f32 * 0.25 - 7.0).collect()).unwrap();
    latent.space = Some("sdxl".into());
    for name in ["l.safetensors", "l.npy", "L.NPY"] {
        let path = folder.path(name);
        latent.save(&path).unwrap();
        let read = Latent::open(&path).unwrap();
        assert_eq!((read.shape(), read.data()), (latent.shape(), latent.data()));
        assert_eq!(read.space.as_deref(), if name.ends_with("safetensors") { Some("sdxl") } else { None });
        assert_eq!(read.image(1).unwrap(), &latent.data()[60..]);
        assert!(read.image(2).is_none());
        // the content decides, not the ending
        let renamed = folder.put("renamed.bin", std::fs::read(&path).unwrap());
        assert_eq!(Latent::open(renamed).unwrap().data(), latent.data());
    }
    for bad in ["l.pt", "l", "l.png"] {
        assert!(refused(latent.save(folder.path(bad)), bad).contains(".safetensors or .npy"));
        assert!(Latent::check_ending(bad).is_err());
    }
    assert_eq!(folder.names(), ["L.NPY", "l.npy", "l.safetensors", "renamed.bin"]);
}

#[test]
fn latents_that_are_none_are_refused() {
    let nan = floats(&[1.0, 2.0, f32::NAN, 4.0]);
    let view = |shape: &[usize], data: &[u8]| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap();
        safetensors::serialize([("latent", view)], None).unwrap()
    };
    let integers = raw(r#"{"latent":{"dtype":"I32","shape":[1,2,2],"data_offsets":[0,16]}}"#, &[0; 16]);
    for (bytes, says) in [
        (view(&[1, 2, 2], &nan), "non-finite value (NaN or infinity) at element 2"),
        (view(&[2, 2], &floats(&[0.0; 4])), "shape [2, 2]"),
        (view(&[1, 1, 1, 2, 2], &floats(&[0.0; 4])), "[B, C, h, w]"),
        (view(&[0, 2, 2], &[]), "channels is 0"),
        (view(&[4, 0, 2], &[]), "height is 0"),
        (view(&[257, 1, 1], &floats(&[0.0; 257])), "channels is 257"),
        (view(&[1, 1, 16385], &floats(&[0.0; 16385])), "width is 16385"),
        (zeros(&[tensor("samples", &[1, 2, 2])], &[]), "no such tensor among its 1: samples"),
        (integers, "I32"),
        (vec![], "empty"),
        (b"\x89PNG\r\n\x1a\n".to_vec(), "PNG"),
        (b"{}".to_vec(), "JSON"),
    ] {
        let text = refused(Latent::from_bytes(bytes, "l.bin"), "l.bin");
        assert!(text.contains(says), "`{says}` not in: {text}");
    }
    for (shape, n) in [([1, 4, 2, 2], 15), ([0, 4, 2, 2], 0), ([1, 4, 1 << 40, 1 << 40], 0), ([1024, 256, 16384, 16384], 0)] {
        assert!(matches!(Latent::new(shape, vec![0.0; n]), Err(Error::Invalid { .. })), "{shape:?}");
    }
    let many = Latent::new([1024, 256, 16384, 16384], vec![]).unwrap_err().to_string();
    assert!(many.contains("more than 1073741824 values"), "{many}");
    assert!(Latent::new([1, 1, 1, 1], vec![f32::INFINITY]).is_err());
}

// ---- pictures -------------------------------------------------------------------------------------------------------

/// Values between and beyond the levels of 8 bits, no two channels alike.
fn picture(width: usize, height: usize) -> Image {
    let value = |i: usize| ((i * 37 % 101) as f32 / 50.0 - 1.0) * if i.is_multiple_of(11) { 1.2 } else { 1.0 };
    Image::new(width, height, (0..3 * width * height).map(value).collect()).unwrap()
}

#[test]
fn every_format_is_written_and_read_back() {
    let folder = Folder::new();
    let image = picture(13, 7);
    let metadata = [("prompt", "a cat"), ("Note", "猫 & Grüße"), ("Latin", "Grüße")];
    for name in ["o.png", "o.webp", "o.jpg", "o.jpeg", "o.npy", "o.safetensors"] {
        image.save(folder.path(name), &metadata).unwrap();
    }
    assert_eq!(folder.names().len(), 6, "{:?}", folder.names());
    for lossless in ["o.png", "o.webp"] {
        assert_eq!(Image::open(folder.path(lossless)).unwrap().to_rgb8(), image.to_rgb8(), "{lossless}");
    }
    let jpeg = Image::open(folder.path("o.jpg")).unwrap();
    assert_eq!((jpeg.width(), jpeg.height()), (13, 7));

    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(folder.path("o.png")).unwrap()));
    let reader = decoder.read_info().unwrap();
    let info = reader.info();
    assert!(info.srgb.is_some());
    let latin: Vec<_> = info.uncompressed_latin1_text.iter().map(|t| (t.keyword.as_str(), t.text.as_str())).collect();
    assert_eq!(latin, [("prompt", "a cat"), ("Latin", "Grüße")]);
    assert_eq!(info.utf8_text[0].get_text().unwrap(), "猫 & Grüße");

    let planar: Vec<f32> = (0..3).flat_map(|c| image.data().iter().skip(c).step_by(3).copied()).collect();
    let weights = Weights::open(folder.path("o.safetensors")).unwrap();
    assert_eq!(weights.get("image", &[3, 7, 13]).unwrap(), planar);
    assert_eq!(weights.metadata()["Note"], "猫 & Grüße");
    let npy = std::fs::read(folder.path("o.npy")).unwrap();
    assert_eq!(&npy[npy.len() - 4 * planar.len()..], floats(&planar));
    assert!(String::from_utf8_lossy(&npy[..128]).contains("'shape': (3, 7, 13)"));
}

#[test]
fn a_picture_in_bands_is_the_same_file_as_a_picture_at_once() {
    let folder = Folder::new();
    let image = picture(5, 9);
    for ending in ["png", "jpg", "webp", "npy", "safetensors"] {
        let (once, bands) = (folder.path(&format!("once.{ending}")), folder.path(&format!("bands.{ending}")));
        image.save(&once, &[("k", "v")]).unwrap();
        let mut rows = RowWriter::create(&bands, 5, 9, &[("k", "v")]).unwrap();
        for (i, band) in [1, 4, 0, 3, 1].into_iter().scan(0, |at, n| Some((std::mem::replace(at, *at + n), n))).enumerate() {
            let (start, n) = band;
            if i % 2 == 0 || ending == "npy" || ending == "safetensors" {
                rows.write_f32(&image.data()[15 * start..15 * (start + n)]).unwrap();
            } else {
                rows.write_rgb8(&image.to_rgb8()[15 * start..15 * (start + n)]).unwrap();
            }
        }
        assert!(!bands.exists());
        rows.finish().unwrap();
        assert!(std::fs::read(&once).unwrap() == std::fs::read(&bands).unwrap(), "{ending}");
    }
}

#[test]
fn nothing_is_left_behind_by_pictures_that_were_not_finished() {
    let folder = Folder::new();
    let image = picture(4, 4);
    for ending in ["png", "jpg", "webp", "npy", "safetensors"] {
        let path = folder.path(&format!("o.{ending}"));
        let create = || RowWriter::create(&path, 4, 4, &[]).unwrap();
        let mut dropped = create();
        dropped.write_f32(&image.data()[..24]).unwrap();
        assert_eq!(folder.names().len(), 1, "one temporary file while it is written");
        drop(dropped);
        let mut short = create();
        short.write_f32(&image.data()[..24]).unwrap();
        assert!(short.finish().unwrap_err().to_string().contains("2 of 4 rows"));
        let mut long = create();
        assert!(long.write_f32(picture(4, 5).data()).is_err());
        assert!(long.write_f32(&image.data()[..13]).is_err());
        let mut nan = create();
        let mut data = image.data().to_vec();
        data[17] = f32::NAN;
        assert!(matches!(nan.write_f32(&data), Err(Error::NonFinite { .. })));
        drop((long, nan));
        assert!(Image::new(4, 4, data).unwrap().save(&path, &[]).is_err());
        if OutputFormat::from_path(&path).unwrap().is_float() {
            assert!(create().write_rgb8(&[0; 12]).is_err());
        }
        assert_eq!(folder.names(), [""; 0], "{ending}");
    }
    for keyword in ["", "k\u{0}", " k", "k\n", "猫", &"k".repeat(80)] {
        assert!(matches!(image.save(folder.path("o.png"), &[(keyword, "v")]), Err(Error::Invalid { .. })), "{keyword:?}");
    }
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_any_work() {
    let folder = Folder::new();
    check_writable(folder.path("new.png")).unwrap();
    assert_eq!(folder.names(), [""; 0]);
    assert!(refused(check_writable(folder.path("none/o.png")), "none").contains("does not exist"));
    std::fs::create_dir(folder.path("folder.png")).unwrap();
    assert!(matches!(check_writable(folder.path("folder.png")), Err(Error::Io { .. })));
    let kept = folder.put("kept.png", "old");
    let mut permissions = std::fs::metadata(&kept).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&kept, permissions).unwrap();
    assert!(refused(picture(2, 2).save(&kept, &[]), "kept.png").contains("read-only"));
    assert_eq!(std::fs::read(&kept).unwrap(), b"old");
    let blocked = folder.put("file", "");
    assert!(matches!(check_writable(blocked.join("o.png")), Err(Error::Io { .. })));
    for (name, w, says) in [("o.webp", 16384, "16383"), ("o.jpg", 65536, "65535"), ("o.gif", 1, ".png, .jpg"), ("o.png", 0, "from 1")] {
        let error = RowWriter::create(folder.path(name), w, 1, &[]).err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(folder.names(), ["file", "folder.png", "kept.png"]);
    assert_eq!(batch_path("a/o.png", 2), Path::new("a/o-002.png"));
}

#[cfg(unix)]
#[test]
fn an_output_has_ordinary_permissions_and_a_link_stays_a_link() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let plain = folder.put("plain", "");
    picture(2, 2).save(folder.path("o.png"), &[]).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&folder.path("o.png")), mode(&plain));
    std::os::unix::fs::symlink("o.png", folder.path("link.png")).unwrap();
    picture(3, 2).save(folder.path("link.png"), &[]).unwrap();
    assert!(std::fs::symlink_metadata(folder.path("link.png")).unwrap().is_symlink());
    assert_eq!(Image::open(folder.path("o.png")).unwrap().width(), 3);
}

#[test]
fn pictures_cut_anywhere_are_refused() {
    let folder = Folder::new();
    for name in ["o.png", "o.jpg", "o.webp"] {
        picture(19, 11).save(folder.path(name), &[]).unwrap();
        let whole = std::fs::read(folder.path(name)).unwrap();
        Image::from_bytes(&whole, name).unwrap();
        for len in 0..whole.len() {
            // What follows the last pixel of a PNG (checksums, IEND) is not missed.
            let result = Image::from_bytes(&whole[..len], name);
            if result.is_ok() {
                assert!(name == "o.png" && len >= whole.len() - 24, "{name} cut at {len} of {}", whole.len());
            } else {
                refused(result, name);
            }
        }
    }
    for (bytes, says) in [(&b""[..], "first bytes"), (b"GIF89a", "first bytes"), (b"\x80\x02}.", "first bytes")] {
        assert!(refused(Image::from_bytes(bytes, "i"), "i").contains(says));
    }
}

#[test]
fn a_tiny_file_cannot_ask_for_a_huge_picture() {
    let folder = Folder::new();
    picture(3, 3).save(folder.path("o.png"), &[]).unwrap();
    let mut bytes = std::fs::read(folder.path("o.png")).unwrap();
    for (width, height) in [(16384u32, 16384u32), (0x7fff_ffff, 0x7fff_ffff), (100_000, 100_000), (0, 3)] {
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let crc = crc32(&bytes[12..29]).to_be_bytes();
        bytes[29..33].copy_from_slice(&crc);
        let (result, largest) = watched(|| Image::from_bytes(&bytes, "huge.png"));
        refused(result, "huge.png");
        assert!(largest < 4 * MODEST, "{width}x{height}: {largest} bytes at once");
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 }))
}

// ---- fuzzing --------------------------------------------------------------------------------------------------------

/// One damage to a file.
#[derive(Debug, Clone)]
enum Damage {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, prop::sample::Index),
    Number(prop::sample::Index, u64),
}

impl Damage {
    /// Damages the first `reach` bytes.
    fn apply(&self, bytes: &mut Vec<u8>, reach: usize) {
        let within = bytes.len().min(reach);
        if within == 0 {
            return;
        }
        match *self {
            Self::Set(at, value) => {
                let at = at.index(within);
                bytes[at] = value;
            }
            Self::Cut(at) => bytes.truncate(at.index(within)),
            Self::Remove(at, count) => {
                let start = at.index(within);
                bytes.drain(start..(start + count).min(bytes.len()));
            }
            Self::Repeat(from, to) => {
                let (from, to) = (from.index(within), to.index(within));
                let piece = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.splice(to..to, piece);
            }
            // A run of digits becomes another number: sizes and offsets are text in most of these formats.
            Self::Number(at, value) => {
                let from = at.index(within);
                let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit).map(|n| from + n) else { return };
                let end = bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |n| start + n);
                bytes.splice(start..end, value.to_string().into_bytes());
            }
        }
    }
}

/// Bytes of a safetensors file in front of its data.
fn header_len(file: &[u8]) -> usize {
    8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let index = any::<prop::sample::Index>;
    let number = prop_oneof![0..5u64, Just(1 << 32), Just(1 << 62), Just(u64::MAX), any::<u64>()];
    let one = prop_oneof![
        4 => (index(), any::<u8>()).prop_map(|(at, value)| Damage::Set(at, value)),
        1 => index().prop_map(Damage::Cut),
        1 => (index(), 1..9usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        1 => (index(), index()).prop_map(|(from, to)| Damage::Repeat(from, to)),
        3 => (index(), number).prop_map(|(at, value)| Damage::Number(at, value)),
    ];
    prop::collection::vec(one, 1..4)
}

/// Runs `read` on `cases` copies of `whole` with damage in their first `reach` bytes, always the same ones, and returns
/// how many were still accepted.
fn fuzz(whole: &[u8], reach: usize, cases: u32, largest_allowed: usize, read: impl Fn(&[u8]) -> Result<(), Error>) -> u32 {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let accepted = Cell::new(0);
    let outcome = TestRunner::new_with_rng(config, rng).run(&damage(), |damage| {
        let mut bytes = whole.to_vec();
        damage.iter().for_each(|damage| damage.apply(&mut bytes, reach));
        let (result, largest) = watched(|| read(&bytes));
        prop_assert!(largest <= largest_allowed.max(8 * bytes.len()), "{} bytes at once", largest);
        match result {
            Ok(()) => accepted.set(accepted.get() + 1),
            Err(error) => prop_assert!(!error.to_string().contains('\n'), "{}", error),
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    accepted.get()
}

#[test]
fn damaged_weights_and_latents_never_panic() {
    let everything = |bytes: &[u8]| {
        let weights = Weights::from_bytes(bytes.to_vec(), "fuzz")?;
        let names: Vec<String> = weights.names().map(str::to_owned).collect();
        names.iter().for_each(|name| drop(weights.get_any(name)));
        if let Some(view) = vae_keys::view(&weights) {
            let _ = VaeConfig::infer(&view, None);
        }
        if let Err(error) = recognise(&weights).and_then(|recognised| check(&weights, &recognised)) {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
        Ok(())
    };
    let taesd = TaesdConfig { latent_channels: 4, channels: vec![2, 2], blocks: vec![1, 1] };
    let vae = VaeConfig { norm_num_groups: 32, block_out_channels: vec![32], layers_per_block: 1, ..VaeConfig::default() };
    for tensors in [taesd.tensors(Half::Encoder), taesd.tensors(Half::Decoder), vae.tensors(true, true)] {
        let file = zeros(&tensors, &[]);
        let accepted = fuzz(&file, header_len(&file), 150, MODEST, everything);
        assert!((1..150).contains(&accepted), "{accepted} of 150 accepted: the damage is too great or too small");
    }
    let config = small_infgen();
    let infgen = zeros(&config.tensors(), &[("infgen_config", &config.to_json())]);
    fuzz(&infgen, header_len(&infgen), 150, MODEST, everything);

    let folder = Folder::new();
    let latent = Latent::new([1, 2, 3, 4], (0..24).map(|i| i as f32).collect()).unwrap();
    for name in ["l.npy", "l.safetensors"] {
        latent.save(folder.path(name)).unwrap();
        let bytes = std::fs::read(folder.path(name)).unwrap();
        let accepted = fuzz(&bytes, bytes.len(), 400, MODEST, |bytes| Latent::from_bytes(bytes.to_vec(), "fuzz").map(drop));
        assert!((1..400).contains(&accepted), "{name}: {accepted} of 400 accepted");
    }
}

#[test]
fn damaged_configs_never_panic() {
    let infgen = small_infgen().to_json();
    let read = |bytes: &[u8]| {
        let config = InfgenConfig::from_json(&String::from_utf8_lossy(bytes), Path::new("c"))?;
        let (tensors, blocks) = (config.tensors().len(), config.up_blocks().len());
        assert!(tensors < 20_000 && blocks <= 8);
        Ok(())
    };
    let accepted = fuzz(infgen.as_bytes(), infgen.len(), 400, 8 * MODEST, read);
    assert!((1..400).contains(&accepted), "{accepted} of 400 accepted");
    let vae = r#"{"_class_name":"AutoencoderKL","act_fn":"silu","block_out_channels":[32,64],"down_block_types":["DownEncoderBlock2D"],
        "latent_channels":4,"layers_per_block":2,"norm_num_groups":32,"scaling_factor":0.13025,"force_upcast":true}"#;
    let read = |bytes: &[u8]| {
        let config = VaeConfig::from_json(&String::from_utf8_lossy(bytes), Path::new("c"))?;
        assert!(config.tensors(true, true).len() < 20_000);
        Ok(())
    };
    let accepted = fuzz(vae.as_bytes(), vae.len(), 400, MODEST, read);
    assert!((1..400).contains(&accepted), "{accepted} of 400 accepted");
}

#[test]
fn damaged_pictures_never_panic() {
    let folder = Folder::new();
    for name in ["o.png", "o.jpg", "o.webp"] {
        picture(24, 18).save(folder.path(name), &[("k", "v")]).unwrap();
        let bytes = std::fs::read(folder.path(name)).unwrap();
        // JPEG and WebP sides have 16 and 14 bits, so a damaged one may honestly ask for a large picture.
        fuzz(&bytes, bytes.len(), 200, 5 << 30, |bytes| Image::from_bytes(bytes, "fuzz").map(drop));
    }
}
