use super::*;

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
