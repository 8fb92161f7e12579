//! What stays for the next call of [`Pipeline::generate`]: encoded prompts on the host, weights on the device where there is room.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::network::Network;
use super::parts::Text;
use super::{Pipeline, emphasise};
use crate::engine::hint;
use crate::error::{Error, Result};
use crate::gpu::Observer;
use crate::models::clip::{self, ClipText};
use crate::nn::Loader;
use crate::tokenizer::Tokens;

/// Which weights stay on the device after a call of [`Pipeline::generate`]. Encoded prompts always stay, on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// None: for a single call.
    Nothing,
    /// The denoiser's, whatever the ceiling: for calls one after the other, with nothing in between that needs the device.
    Denoiser,
    /// The denoiser's and the text encoder's. Under a ceiling the text encoder stays while the denoiser runs if both have room, and between calls
    /// weights stay while they take half of the ceiling at most: the other half is the decoder's.
    #[default]
    All,
}

/// Encoded prompts that are kept: 0.2 MB each for SD 1.x.
const CONTEXTS: usize = 32;

/// A prompt as the text encoder saw it, and what came out: `[tokens, width]`.
#[derive(Debug)]
struct Context {
    tokens: Tokens,
    clip_skip: usize,
    values: Arc<Vec<f32>>,
}

/// A network and the bytes that it takes on the device.
#[derive(Debug)]
struct Held<T> {
    network: Arc<T>,
    bytes: u64,
}

/// See [`Keep`].
#[derive(Debug, Default)]
pub(super) struct Kept {
    text: Option<Held<ClipText>>,
    denoiser: Option<Held<Network>>,
    /// The one used last at the end.
    contexts: Vec<Context>,
}

impl Kept {
    /// Of weights on the device.
    fn bytes(&self) -> u64 {
        self.text.as_ref().map_or(0, |held| held.bytes) + self.denoiser.as_ref().map_or(0, |held| held.bytes)
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pipeline {
    /// Frees all weights on the device; the next call of [`Pipeline::generate`] loads them again. How many bytes of them were kept.
    pub fn release(&self) -> u64 {
        let mut kept = lock(&self.kept);
        let bytes = kept.bytes();
        (kept.text, kept.denoiser) = (None, None);
        drop(kept);
        self.gpu().trim();
        bytes
    }

    /// Bytes of the weights that are kept on the device.
    pub(crate) fn kept_bytes(&self) -> u64 {
        lock(&self.kept).bytes()
    }

    /// Frees the text encoder if `needed` bytes are more than the ceiling.
    pub(super) fn make_room(&self, needed: u64) {
        if self.gpu().memory_ceiling().is_some_and(|ceiling| needed > ceiling) {
            lock(&self.kept).text = None;
        }
    }

    /// Frees what is not to be kept between calls.
    pub(super) fn settle(&self) {
        let mut kept = lock(&self.kept);
        match self.keep {
            Keep::Nothing => (kept.text, kept.denoiser) = (None, None),
            Keep::Denoiser => kept.text = None,
            Keep::All => {
                let most = self.gpu().memory_ceiling().map_or(u64::MAX, |ceiling| ceiling / 2);
                if kept.bytes() > most {
                    kept.denoiser = None;
                }
                if kept.bytes() > most {
                    kept.text = None;
                }
            }
        }
        drop(kept);
        self.gpu().trim();
    }

    fn known(&self, tokens: &Tokens, clip_skip: usize) -> Option<Arc<Vec<f32>>> {
        let mut kept = lock(&self.kept);
        let at = kept
            .contexts
            .iter()
            .position(|c| c.clip_skip == clip_skip && (&c.tokens.ids, &c.tokens.weights) == (&tokens.ids, &tokens.weights))?;
        let context = kept.contexts.remove(at);
        let values = context.values.clone();
        kept.contexts.push(context);
        Some(values)
    }

    /// The text encoder's output for each prompt: `[tokens, width]`. Names what was loaded for it in `loaded`.
    pub(super) async fn encode_tokens(
        &self,
        text: &Text,
        tokens: &[Tokens],
        clip_skip: usize,
        observer: &Observer,
        loaded: &mut Vec<&'static str>,
    ) -> Result<Vec<Arc<Vec<f32>>>> {
        let mut contexts = Vec::new();
        let mut encoder = None;
        for tokens in tokens {
            if let Some(values) = self.known(tokens, clip_skip) {
                contexts.push(values);
                continue;
            }
            let encoder = match &encoder {
                Some(encoder) => Arc::clone(encoder),
                None => encoder.insert(self.text_encoder(text, observer, loaded).await?).clone(),
            };
            let view = self.parts.text_view()?.patched(self.text_patches.clone());
            let embeddings = clip::embeddings(&view, &text.config, &tokens.ids).await?;
            let mut rec = self.gpu().recorder();
            let y = rec.scoped("text_encoder", |rec| encoder.forward(rec, &embeddings, clip_skip))?;
            rec.output("context", &y);
            let outputs = self.gpu().run(rec.finish(), &observer.quiet()).await;
            let mut context = outputs.map_err(|error| hint(error, self.engine.dtype()))?.numbers("context");
            if let Some(weights) = &tokens.weights {
                emphasise(&mut context, weights);
            }
            let values = Arc::new(context);
            contexts.push(values.clone());
            let mut kept = lock(&self.kept);
            if kept.contexts.len() == CONTEXTS {
                kept.contexts.remove(0);
            }
            kept.contexts.push(Context { tokens: tokens.clone(), clip_skip, values });
        }
        if self.keep != Keep::All {
            lock(&self.kept).text = None;
        }
        drop(encoder);
        self.gpu().trim();
        Ok(contexts)
    }

    async fn text_encoder(&self, text: &Text, observer: &Observer, loaded: &mut Vec<&'static str>) -> Result<Arc<ClipText>> {
        if let Some(held) = &lock(&self.kept).text {
            return Ok(held.network.clone());
        }
        loaded.push("text_encoder");
        let load = async || -> Result<Held<ClipText>> {
            let view = self.parts.text_view()?.patched(self.text_patches.clone());
            let loader = Loader::new(self.gpu(), &view, self.precision()).observed(&observer.quiet(), &[]);
            let before = self.gpu().memory().current;
            let network = Arc::new(ClipText::load(&loader, &text.config).await?);
            self.gpu().flush().await?;
            Ok(Held { network, bytes: self.gpu().memory().current - before })
        };
        let held = self.with_room(load).await?;
        let network = held.network.clone();
        lock(&self.kept).text = Some(held);
        Ok(network)
    }

    /// The denoiser in the form that pictures of this size take.
    pub(super) async fn denoiser(&self, any_size: bool, observer: &Observer, loaded: &mut Vec<&'static str>) -> Result<Arc<Network>> {
        {
            let mut kept = lock(&self.kept);
            match &kept.denoiser {
                Some(held) if held.network.fits(any_size) => return Ok(held.network.clone()),
                _ => kept.denoiser = None,
            }
        }
        loaded.push("denoiser");
        // At least this much: packing adds to it.
        let values: usize = self.parts.denoiser_tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        self.make_room(self.gpu().memory().current + values as u64 * self.precision().weights.bytes() / 4);
        let load = async || -> Result<Held<Network>> {
            let view = self.parts.denoiser_view()?.patched(self.denoiser_patches.clone());
            let loader = Loader::new(self.gpu(), &view, self.precision()).observed(observer, &self.parts.denoiser_tensors());
            let before = self.gpu().memory().current;
            let network = Arc::new(Network::load(&loader, &self.parts.denoiser, any_size).await?);
            self.gpu().flush().await?;
            Ok(Held { network, bytes: self.gpu().memory().current - before })
        };
        let held = self.with_room(load).await?;
        let network = held.network.clone();
        lock(&self.kept).denoiser = Some(held);
        Ok(network)
    }

    /// `load`, and once more without what is kept if there is too little memory beside it.
    async fn with_room<T>(&self, load: impl AsyncFn() -> Result<T>) -> Result<T> {
        match load().await {
            Err(Error::MemoryCeiling { .. } | Error::OutOfMemory { .. }) if self.release() > 0 => load().await,
            done => done,
        }
    }
}
