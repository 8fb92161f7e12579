//! What stays for the next call of [`Pipeline::generate`]: encoded prompts on the host, weights on the device where there is room.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::network::Network;
use super::{Pipeline, emphasise};
use crate::engine::hint;
use crate::error::{Error, Result};
use crate::gpu::{Observer, Recorder};
use crate::models::clip::{self, ClipText};
use crate::nn::Loader;
use crate::tokenizer::{ClipTokenizer, Tokens};
use crate::weights::View;

/// Which weights stay on the device after a call of [`Pipeline::generate`]. Encoded prompts always stay, on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// None: for a single call.
    Nothing,
    /// The denoiser's, whatever the ceiling: for calls one after the other, with nothing in between that needs the device.
    Denoiser,
    /// The denoiser's and the text encoders'. Under a ceiling text encoders stay while the denoiser runs if all have room, and between calls
    /// weights stay while they take half of the ceiling at most: the other half is the decoder's.
    #[default]
    All,
}

/// Encoded prompts that are kept: 0.2 MB each for SD 1.x, 0.6 for SDXL.
const CONTEXTS: usize = 32;

/// What the text encoders made of a prompt.
#[doc(hidden)]
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// `[tokens, width]`, SDXL's two encoders beside each other.
    pub context: Vec<f32>,
    /// `[projection_dim]`, of SDXL's second encoder.
    pub pooled: Option<Vec<f32>>,
}

impl Encoded {
    /// Zeros of the same shapes.
    pub(super) fn zeros(&self) -> Encoded {
        Encoded { context: vec![0.0; self.context.len()], pooled: self.pooled.as_ref().map(|pooled| vec![0.0; pooled.len()]) }
    }

    /// With the tokens of another encoder behind those that are there.
    fn append(&mut self, tokens: usize, context: Vec<f32>, pooled: Option<Vec<f32>>) {
        let rows = |values: &[f32], i: usize| values[i * values.len() / tokens..(i + 1) * values.len() / tokens].to_vec();
        self.context = (0..tokens).flat_map(|i| [rows(&self.context, i), rows(&context, i)].concat()).collect();
        self.pooled = pooled;
    }
}

/// A prompt as the text encoders saw it, and what came out.
#[derive(Debug)]
struct Context {
    /// For each encoder.
    tokens: Vec<Tokens>,
    clip_skip: usize,
    values: Arc<Encoded>,
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
    texts: [Option<Held<ClipText>>; 2],
    denoiser: Option<Held<Network>>,
    /// The one used last at the end.
    contexts: Vec<Context>,
}

impl Kept {
    /// Of weights on the device.
    fn bytes(&self) -> u64 {
        self.texts.iter().flatten().map(|held| held.bytes).sum::<u64>() + self.denoiser.as_ref().map_or(0, |held| held.bytes)
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
        (kept.texts, kept.denoiser) = Default::default();
        drop(kept);
        self.gpu().trim();
        bytes
    }

    /// Bytes of the weights that are kept on the device.
    pub(crate) fn kept_bytes(&self) -> u64 {
        lock(&self.kept).bytes()
    }

    /// Frees the text encoders if `needed` bytes are more than the ceiling.
    pub(super) fn make_room(&self, needed: u64) {
        if self.gpu().memory_ceiling().is_some_and(|ceiling| needed > ceiling) {
            lock(&self.kept).texts = Default::default();
        }
    }

    /// Frees what is not to be kept between calls.
    pub(super) fn settle(&self) {
        let mut kept = lock(&self.kept);
        match self.keep {
            Keep::Nothing => (kept.texts, kept.denoiser) = Default::default(),
            Keep::Denoiser => kept.texts = Default::default(),
            Keep::All => {
                let most = self.gpu().memory_ceiling().map_or(u64::MAX, |ceiling| ceiling / 2);
                if kept.bytes() > most {
                    kept.denoiser = None;
                }
                if kept.bytes() > most {
                    kept.texts = Default::default();
                }
            }
        }
        drop(kept);
        self.gpu().trim();
    }

    fn known(&self, tokens: &[Tokens], clip_skip: usize) -> Option<Arc<Encoded>> {
        let mut kept = lock(&self.kept);
        let same = |a: &Tokens, b: &Tokens| (&a.ids, &a.weights) == (&b.ids, &b.weights);
        let at = kept.contexts.iter().position(|c| c.clip_skip == clip_skip && c.tokens.iter().zip(tokens).all(|(a, b)| same(a, b)))?;
        let context = kept.contexts.remove(at);
        let values = context.values.clone();
        kept.contexts.push(context);
        Some(values)
    }

    /// A prompt as each text encoder's tokenizer cuts it.
    pub(super) fn tokens(&self, prompt: &str, emphasis: bool) -> Result<Vec<Tokens>> {
        let cut = |tokenizer: &ClipTokenizer| match emphasis {
            true => tokenizer.encode_with_emphasis(prompt),
            false => Ok(tokenizer.encode(prompt)),
        };
        self.parts.texts().map(|text| cut(&text.tokenizer)).collect()
    }

    /// What the text encoders make of each prompt, one encoder after the other. Names what was loaded for it in `loaded`.
    pub(super) async fn encode(
        &self,
        prompts: &[Vec<Tokens>],
        clip_skip: usize,
        observer: &Observer,
        loaded: &mut Vec<&'static str>,
    ) -> Result<Vec<Arc<Encoded>>> {
        let mut all: Vec<Option<Arc<Encoded>>> = prompts.iter().map(|tokens| self.known(tokens, clip_skip)).collect();
        let missing: Vec<usize> = (0..prompts.len()).filter(|i| all[*i].is_none()).collect();
        let mut fresh = vec![Encoded::default(); missing.len()];
        for (which, text) in self.parts.texts().enumerate().filter(|_| !missing.is_empty()) {
            let encoder = self.text_encoder(which, observer, loaded).await?;
            let view = self.patched_text(which)?;
            for (encoded, i) in fresh.iter_mut().zip(&missing) {
                let tokens = &prompts[*i][which];
                let embeddings = clip::embeddings(&view, &text.config, &tokens.ids).await?;
                let recording = self.record_text(&encoder, &embeddings, clip_skip, text.tokenizer.end(&tokens.ids))?.finish();
                if self.gpu().memory_ceiling().is_some_and(|ceiling| self.gpu().peak_bytes(&recording) > ceiling) {
                    // The plan has this encoder alone.
                    self.release();
                }
                let outputs = self.gpu().run(recording, &observer.quiet()).await;
                let mut outputs = outputs.map_err(|error| hint(error, self.engine.dtype()))?;
                let mut context = outputs.numbers("context");
                if let Some(weights) = &tokens.weights {
                    emphasise(&mut context, weights);
                }
                let pooled = text.config.projection_dim.map(|_| outputs.numbers("pooled"));
                encoded.append(tokens.ids.len(), context, pooled);
            }
            drop(encoder);
            if self.keep != Keep::All {
                lock(&self.kept).texts[which] = None;
                self.gpu().trim();
            }
        }
        for (i, encoded) in missing.into_iter().zip(fresh) {
            let values = Arc::new(encoded);
            all[i] = Some(values.clone());
            let mut kept = lock(&self.kept);
            if kept.contexts.len() == CONTEXTS {
                kept.contexts.remove(0);
            }
            kept.contexts.push(Context { tokens: prompts[i].clone(), clip_skip, values });
        }
        self.gpu().trim();
        Ok(all.into_iter().map(|encoded| encoded.expect("known or encoded")).collect())
    }

    /// One text of a text encoder, whose end is token `end`: the output `context`, and `pooled` of an encoder that has it.
    pub(super) fn record_text(&self, encoder: &ClipText, embeddings: &[f32], clip_skip: usize, end: usize) -> Result<Recorder> {
        let mut rec = self.gpu().recorder();
        let (context, pooled) = rec.scoped("text_encoder", |rec| match self.parts.is_sdxl() {
            true => encoder.penultimate(rec, embeddings, clip_skip, end),
            false => Ok((encoder.forward(rec, embeddings, clip_skip)?, None)),
        })?;
        rec.output("context", &context);
        pooled.iter().for_each(|pooled| rec.output("pooled", pooled));
        Ok(rec)
    }

    fn patched_text(&self, which: usize) -> Result<View<'_>> {
        Ok(self.parts.text_view(which)?.patched(self.text_patches[which].clone()))
    }

    /// The first text encoder (0), or SDXL's second (1).
    async fn text_encoder(&self, which: usize, observer: &Observer, loaded: &mut Vec<&'static str>) -> Result<Arc<ClipText>> {
        if let Some(held) = &lock(&self.kept).texts[which] {
            return Ok(held.network.clone());
        }
        loaded.push(["text_encoder", "text_encoder_2"][which]);
        let text = self.parts.texts().nth(which).expect("there is one");
        let load = async || -> Result<Held<ClipText>> {
            let view = self.patched_text(which)?;
            let loader = Loader::new(self.gpu(), &view, self.precision()).observed(&observer.quiet(), &[]);
            let before = self.gpu().memory().current;
            let network = Arc::new(ClipText::load(&loader, &text.config).await?);
            self.gpu().flush().await?;
            Ok(Held { network, bytes: self.gpu().memory().current - before })
        };
        let held = self.with_room(load).await?;
        let network = held.network.clone();
        lock(&self.kept).texts[which] = Some(held);
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
