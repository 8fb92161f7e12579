use super::*;

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
