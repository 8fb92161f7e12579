use infgen::image::{OutputFormat, RowWriter, batch_path, check_writable};

use super::*;

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
