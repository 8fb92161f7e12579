//! Writing one f32 tensor as safetensors.

use serde_json::json;

/// The bytes that precede the data of a file with the single f32 tensor `name`.
pub(crate) fn header(name: &str, shape: &[usize], metadata: &[(&str, &str)]) -> Vec<u8> {
    let bytes = 4 * shape.iter().map(|&d| d as u64).product::<u64>();
    let mut header = json!({ name: { "dtype": "F32", "shape": shape, "data_offsets": [0, bytes] } });
    if !metadata.is_empty() {
        header["__metadata__"] = metadata.iter().copied().collect();
    }
    let mut json = header.to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' '); // the format's alignment
    [&(json.len() as u64).to_le_bytes(), &json[..]].concat()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    /// A safetensors file made by the `safetensors` crate.
    pub fn bytes_of(tensors: &[(&str, Dtype, &[usize], &[u8])], metadata: &[(&str, &str)]) -> Vec<u8> {
        let views = tensors.iter().map(|(n, t, s, d)| (n.to_string(), TensorView::new(*t, s.to_vec(), d).unwrap()));
        let pairs = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        safetensors::serialize(views, Some(pairs)).unwrap()
    }

    #[test]
    fn the_crate_reads_the_header_back() {
        for metadata in [&[][..], &[("a", "1"), ("b", "\"\n")]] {
            let mut file = header("latent", &[2, 3], metadata);
            assert_eq!(file.len() % 8, 0);
            file.extend([0; 24]);
            let (_, read) = safetensors::SafeTensors::read_metadata(&file).unwrap();
            assert_eq!(read.info("latent").unwrap().shape, [2, 3]);
            let pairs = read.metadata().clone().unwrap_or_default();
            assert_eq!(pairs.len(), metadata.len());
            assert!(metadata.iter().all(|(k, v)| pairs[*k] == *v));
        }
    }
}
