//! Errors as JavaScript sees them: an `Error` with the same text, the variant's name in `code`, and its numbers.

use js_sys::Reflect;
use wasm_bindgen::JsValue;

use crate::Error;

pub(super) fn to_js(error: Error) -> JsValue {
    let object = js_sys::Error::new(&error.to_string());
    let set = |key: &str, value: JsValue| {
        // An ordinary object takes any property.
        let _ = Reflect::set(&object, &key.into(), &value);
    };
    set("code", error.code().into());
    match &error {
        Error::MemoryCeiling { needed, ceiling } => {
            set("needed", (*needed as f64).into());
            set("limit", (*ceiling as f64).into());
        }
        Error::BufferTooLarge { bytes, limit, .. } => {
            set("needed", (*bytes as f64).into());
            set("limit", (*limit as f64).into());
        }
        _ => {}
    }
    object.into()
}
