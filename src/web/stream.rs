//! Weights from JavaScript: an object that knows its length and delivers ranges, whether from the network, a cache or a
//! dropped file. Only the range that is being read is in wasm memory.

use std::io;

use js_sys::{Reflect, Uint8Array};
use wasm_bindgen::prelude::*;

use crate::Result;
use crate::weights::{ByteStream, Fetched, Weights};

#[wasm_bindgen]
extern "C" {
    /// `{ length: number, read(offset, length): Promise<Uint8Array> }`
    pub type JsSource;
    #[wasm_bindgen(method, getter)]
    fn length(this: &JsSource) -> f64;
    #[wasm_bindgen(method, catch)]
    async fn read(this: &JsSource, offset: f64, length: f64) -> Result<JsValue, JsValue>;
}

pub(super) struct JsStream(JsSource);

impl JsStream {
    pub async fn open(source: JsSource, name: &str) -> Result<Weights> {
        Weights::stream(JsStream(source), name).await
    }
}

impl ByteStream for JsStream {
    fn length(&self) -> u64 {
        self.0.length() as u64
    }

    fn fetch<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> Fetched<'a> {
        Box::pin(async move {
            if buffer.is_empty() {
                return Ok(());
            }
            let answer = self.0.read(offset as f64, buffer.len() as f64).await.map_err(|thrown| io::Error::other(text(&thrown)))?;
            let bytes: Uint8Array = answer.dyn_into().map_err(|_| io::Error::other("the source gave no bytes"))?;
            if bytes.length() as usize != buffer.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.copy_to(buffer);
            Ok(())
        })
    }
}

/// The message of whatever was thrown.
pub(super) fn text(thrown: &JsValue) -> String {
    let message = Reflect::get(thrown, &"message".into()).ok().and_then(|message| message.as_string());
    message.or_else(|| thrown.as_string()).unwrap_or_else(|| "failed for an unknown reason".into())
}
