use super::*;

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
