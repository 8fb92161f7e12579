// The demo: a picture or a latent, decoded at the physical size of the stage, whatever that is.
//
// The picture has a size in physical pixels, `fit` times the zoom; the view canvas holds the part of it that is on screen,
// pixel for pixel. While something changes the old pixels are scaled; once it rests they are decoded anew.

import { Engine } from './infgen/infgen.js';

const $ = (id) => document.getElementById(id);
const stage = $('stage');
const view = $('view');

const REST_MS = 120;
const MAX_SIDE = 16384;
/** A decode that would take longer is preceded by a small one. */
const PREVIEW_SECONDS = 1.2;

const state = {
  engine: null,
  decoder: null,
  latent: null,
  name: 'sample',
  zoom: 1,
  /** Point of the picture, 0 to 1, in the middle of the stage. */
  center: { x: 0.5, y: 0.5 },
  /** What the view canvas shows: the size of the whole picture and the rectangle of it. */
  shown: null,
  decoding: null,
  native: null,
  pace: 0,
  running: null,
  /** Whether what is on screen still has to be decoded, once what runs now is done. */
  stale: false,
};

// ---- geometry -----------------------------------------------------------------------------------------------------

const ratio = () => window.devicePixelRatio || 1;

function latentSize() {
  const [h, w] = state.latent.shape.slice(-2);
  return { w: w * state.decoder.facts.scale, h: h * state.decoder.facts.scale };
}

/** Stage in physical pixels. */
function stageSize() {
  return { w: Math.max(1, Math.round(stage.clientWidth * ratio())), h: Math.max(1, Math.round(stage.clientHeight * ratio())) };
}

/** The whole picture at the present zoom, in physical pixels. */
function pictureSize() {
  const own = latentSize();
  if (!state.decoder.facts.anySize) return own;
  const room = stageSize();
  const scale = Math.min(room.w / own.w, room.h / own.h) * state.zoom;
  const side = (length) => Math.max(1, Math.min(MAX_SIDE, Math.round(length * scale)));
  return { w: side(own.w), h: side(own.h) };
}

function maxZoom() {
  const own = latentSize();
  const room = stageSize();
  const scale = Math.min(room.w / own.w, room.h / own.h);
  return Math.max(1, Math.min(32, MAX_SIDE / (Math.max(own.w, own.h) * scale)));
}

/** Where the picture lies on the stage, in physical pixels; it stays inside, or in the middle where it is smaller. */
function origin(picture) {
  const room = stageSize();
  const place = (length, space, center) =>
    length <= space ? Math.round((space - length) / 2) : Math.round(Math.min(0, Math.max(space - length, space / 2 - center * length)));
  return { x: place(picture.w, room.w, state.center.x), y: place(picture.h, room.h, state.center.y) };
}

/** The part of the picture that is on the stage. */
function visible(picture) {
  const at = origin(picture);
  const room = stageSize();
  const x = Math.max(0, -at.x);
  const y = Math.max(0, -at.y);
  return { x, y, width: Math.min(picture.w, room.w - at.x) - x, height: Math.min(picture.h, room.h - at.y) - y };
}

function put(element, x, y, w, h) {
  const unit = ratio();
  Object.assign(element.style, { left: `${x / unit}px`, top: `${y / unit}px`, width: `${w / unit}px`, height: `${h / unit}px` });
}

/** Puts what has been decoded where it belongs now, scaled if need be. */
function arrange() {
  if (!state.latent) return;
  const picture = pictureSize();
  const at = origin(picture);
  if (state.shown) {
    const { size, rect } = state.shown;
    const [sx, sy] = [picture.w / size.w, picture.h / size.h];
    put(view, at.x + rect.x * sx, at.y + rect.y * sy, rect.width * sx, rect.height * sy);
    view.style.imageRendering = sx > 1.01 && state.shown.final ? 'auto' : '';
  }
  put($('native'), at.x, at.y, picture.w, picture.h);
  $('size').textContent = `${picture.w} × ${picture.h}`;
  $('zoom').textContent = `${state.zoom < 10 ? Math.round(state.zoom * 10) / 10 : Math.round(state.zoom)}×`;
  document.body.toggleAttribute('data-zoomed', state.zoom > 1);
  $('out').disabled = state.zoom <= 1;
  $('in').disabled = state.zoom >= maxZoom() || !state.decoder.facts.anySize;
}

// ---- messages -----------------------------------------------------------------------------------------------------

function say(text) {
  $('status').textContent = text;
}

function complain(text) {
  $('message').querySelector('p').textContent = text;
  $('message').hidden = false;
  document.body.dataset.state = 'failed';
}

function progress(done) {
  const bar = $('progress');
  bar.toggleAttribute('data-busy', done !== null);
  bar.firstElementChild.style.width = `${(done ?? 0) * 100}%`;
  bar.setAttribute('aria-valuenow', Math.round((done ?? 0) * 100));
  $('stop').hidden = done === null;
}

const bytes = (n) => (n >= 1 << 30 ? `${(n / (1 << 30)).toFixed(1)} GiB` : `${Math.max(1, Math.round(n / (1 << 20)))} MiB`);
const seconds = (s) => (s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`);

// ---- decoding -----------------------------------------------------------------------------------------------------

/**
 * Runs `work(signal, onProgress)` after stopping what runs; what is stopped says nothing. `keep`: a resize must not stop it,
 * the picture is decoded anew when it is done.
 */
async function run(label, work, { keep = false, decodes = false } = {}) {
  if (state.running?.decodes && !decodes) state.stale = true;
  state.running?.abort();
  const controller = Object.assign(new AbortController(), { keep, decodes });
  state.running = controller;
  document.body.dataset.state = 'busy';
  progress(0);
  const onProgress = ({ done }) => {
    if (state.running !== controller) return;
    progress(done);
    say(`${label} ${Math.round(done * 100)} %`);
  };
  try {
    const result = await work(controller.signal, onProgress);
    if (state.running !== controller) return undefined;
    document.body.dataset.state = 'ready';
    return result;
  } catch (error) {
    if (state.running !== controller) return undefined;
    if (error.code === 'Cancelled') {
      document.body.dataset.state = 'stopped';
      say('Stopped');
    } else {
      complain(error.message);
      say('');
    }
    return undefined;
  } finally {
    if (state.running === controller) {
      state.running = null;
      progress(null);
      setTimeout(() => state.stale && refine());
    }
  }
}

/** Decodes what is on screen, coarsely first where that takes long. */
function refine() {
  if (!state.latent) return;
  state.stale = Boolean(state.running?.keep);
  if (state.stale) return;
  const size = pictureSize();
  const rect = visible(size);
  run('Decoding', async (signal, onProgress) => {
    const began = performance.now();
    const area = rect.width * rect.height;
    const draw = async (picture, part, report) => {
      const options = { signal, onProgress: report, width: picture.w, height: picture.h };
      if (part.width === picture.w && part.height === picture.h) {
        await state.decoder.decodeToCanvas(state.latent, view, options);
      } else {
        if (state.decoding?.latent !== state.latent || state.decoding.width !== picture.w || state.decoding.height !== picture.h) {
          state.decoding?.free();
          state.decoding = null;
          state.decoding = await state.decoder.prepare(state.latent, picture.w, picture.h, options);
          state.decoding.latent = state.latent;
        }
        await state.decoding.regionToCanvas(part, view, options);
      }
      state.shown = { size: picture, rect: part, final: picture.w === size.w };
      $('picture').hidden = false;
      arrange();
    };
    const fast = state.pace > 0 && area / state.pace < PREVIEW_SECONDS;
    const first = !state.shown || state.shown.latent !== state.latent;
    if (first && !fast && state.decoder.facts.anySize && area > 128 * 128) {
      // A small picture of the whole: something to look at, and a measure of the pace.
      const shrink = state.pace > 0 ? Math.sqrt((0.3 * state.pace) / area) : 96 / Math.max(size.w, size.h);
      const side = (length) => Math.max(1, Math.round(length * Math.min(0.5, Math.max(shrink, 64 / Math.max(size.w, size.h)))));
      const small = { w: side(size.w), h: side(size.h) };
      await draw(small, { x: 0, y: 0, width: small.w, height: small.h }, undefined);
    }
    const start = performance.now();
    await draw(size, rect, onProgress);
    state.shown.latent = state.latent;
    state.pace = area / Math.max(0.001, (performance.now() - start) / 1000);
    say(`${rect.width} × ${rect.height} in ${seconds((performance.now() - began) / 1000)}`);
    if (!$('divider').hidden) await showPlain(signal, onProgress);
  }, { decodes: true });
}

let rest = 0;
/** Decodes once nothing has changed for a moment. */
function later() {
  arrange();
  clearTimeout(rest);
  rest = setTimeout(refine, REST_MS);
}

/** The picture at the latent's native size, which the browser then scales: what everyone does today. */
async function showPlain(signal, onProgress) {
  if (state.native !== state.latent) {
    const { w, h } = latentSize();
    const image = await state.decoder.decode(state.latent, w, h, { signal, onProgress });
    const canvas = $('native');
    canvas.width = w;
    canvas.height = h;
    canvas.getContext('2d').putImageData(image, 0, 0);
    state.native = state.latent;
  }
  $('plain').hidden = false;
  arrange();
}

function split() {
  const share = Number($('split').value) / 1000;
  $('divider').style.setProperty('--split', `${share * 100}%`);
  $('plain').style.clipPath = `inset(0 0 0 ${share * 100}%)`;
}

function compare(on = $('divider').hidden) {
  $('compare').setAttribute('aria-pressed', String(on));
  $('divider').hidden = !on;
  $('plain').hidden = true;
  if (!on) return;
  split();
  run('Decoding for comparison', async (signal, onProgress) => {
    await showPlain(signal, onProgress);
    const { w, h } = latentSize();
    say(`Right: ${w} × ${h}, scaled by the browser`);
  });
}

// ---- opening and saving -------------------------------------------------------------------------------------------

const LATENT = /\.(safetensors|npy)$/i;

function show(latent, name) {
  Object.assign(state, { latent, name, zoom: 1, center: { x: 0.5, y: 0.5 }, native: null });
  state.decoding?.free();
  state.decoding = null;
  $('plain').hidden = true;
  $('message').hidden = true;
  arrange();
  refine();
}

/** Opens a File or a URL. */
async function open(source, name) {
  const latent = await run(`Opening ${name}`, async (signal, onProgress) => {
    if (LATENT.test(name)) return state.engine.loadLatent(source, { signal, name });
    let bitmap = await createImageBitmap(source).catch(() => {
      throw new Error(`${name}: neither a picture that this browser reads nor a latent (.safetensors or .npy)`);
    });
    // A quarter of a megapixel is what diffusion latents stand for; a photograph is brought to that, a large one by the
    // browser to four times as much first.
    const shrink = Math.min(1, Math.sqrt((512 * 512) / (bitmap.width * bitmap.height)));
    const side = (length) => Math.max(8, Math.round((length * shrink) / 8) * 8);
    const [width, height] = [side(bitmap.width), side(bitmap.height)];
    if (shrink < 0.25) {
      const large = bitmap;
      bitmap = await createImageBitmap(large, { resizeWidth: 4 * width, resizeHeight: 4 * height, resizeQuality: 'high' });
      large.close();
    }
    return state.engine.encode(bitmap, { width, height, signal, onProgress });
  }, { keep: true });
  if (latent) show(latent, name.replace(/\.[^.]*$/, ''));
}

function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function saveDialog() {
  if (!state.latent) return;
  const size = pictureSize();
  $('width').value = size.w;
  $('height').value = size.h;
  $('locked').disabled = !state.decoder.facts.anySize;
  estimate();
  $('saving').returnValue = ''; // Escape leaves the last one
  $('saving').showModal();
}

async function estimate() {
  const cost = $('cost');
  try {
    const { peakBytes } = await state.decoder.estimate(state.latent, Number($('width').value), Number($('height').value));
    cost.textContent = `Takes ${bytes(peakBytes)} of GPU memory.`;
  } catch (error) {
    cost.textContent = error.message;
  }
}

function keepAspect(changed, other) {
  const own = latentSize();
  const factor = changed.id === 'width' ? own.h / own.w : own.w / own.h;
  if ($('locked').checked) other.value = Math.max(1, Math.min(MAX_SIDE, Math.round(Number(changed.value) * factor)));
  estimate();
}

async function save(kind) {
  if (kind === 'latent') {
    download(new Blob([await state.engine.saveLatent(state.latent)]), `${state.name}.safetensors`);
  } else if (kind === 'png') {
    const [width, height] = [Number($('width').value), Number($('height').value)];
    const image = await run(`Decoding ${width} × ${height}`, (signal, onProgress) =>
      state.decoder.decode(state.latent, width, height, { signal, onProgress }), { keep: true });
    if (!image) return;
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext('2d').putImageData(image, 0, 0);
    download(await canvas.convertToBlob({ type: 'image/png' }), `${state.name}-${width}x${height}.png`);
    say(`Saved ${width} × ${height}`);
  }
}

// ---- hands --------------------------------------------------------------------------------------------------------

/** Zooms by `factor` with the point (x, y) of the stage, in CSS pixels, held still. */
function zoomBy(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  if (!state.latent || !state.decoder.facts.anySize) return;
  const before = pictureSize();
  const at = origin(before);
  const [px, py] = [x * ratio(), y * ratio()];
  const held = { x: (px - at.x) / before.w, y: (py - at.y) / before.h };
  state.zoom = Math.min(maxZoom(), Math.max(1, state.zoom * factor));
  if (state.zoom < 1.02) state.zoom = 1;
  const after = pictureSize();
  const room = stageSize();
  state.center = { x: held.x + (room.w / 2 - px) / after.w, y: held.y + (room.h / 2 - py) / after.h };
  clampCenter();
  later();
}

function panBy(dx, dy) {
  if (!state.latent || state.zoom <= 1) return;
  const picture = pictureSize();
  state.center.x -= (dx * ratio()) / picture.w;
  state.center.y -= (dy * ratio()) / picture.h;
  clampCenter();
  later();
}

function clampCenter() {
  const picture = pictureSize();
  const room = stageSize();
  const clamp = (value, length, space) => {
    const margin = Math.min(0.5, space / 2 / length);
    return Math.min(1 - margin, Math.max(margin, value));
  };
  state.center = { x: clamp(state.center.x, picture.w, room.w), y: clamp(state.center.y, picture.h, room.h) };
}

function fit() {
  state.zoom = 1;
  state.center = { x: 0.5, y: 0.5 };
  later();
}

const fingers = new Map();
stage.addEventListener('pointerdown', (event) => {
  if (event.target.closest('input, button, #message')) return;
  stage.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
  document.body.toggleAttribute('data-panning', state.zoom > 1);
});
stage.addEventListener('pointermove', (event) => {
  const last = fingers.get(event.pointerId);
  if (!last) return;
  const box = stage.getBoundingClientRect();
  const now = { x: event.clientX - box.x, y: event.clientY - box.y };
  if (last.client) {
    if (fingers.size === 1) {
      panBy(now.x - last.client.x, now.y - last.client.y);
    } else if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1].client;
      if (other) {
        const spread = (p) => Math.max(8, Math.hypot(p.x - other.x, p.y - other.y));
        zoomBy(spread(now) / spread(last.client), (now.x + other.x) / 2, (now.y + other.y) / 2);
        panBy((now.x - last.client.x) / 2, (now.y - last.client.y) / 2);
      }
    }
  }
  last.client = now;
});
for (const kind of ['pointerup', 'pointercancel']) {
  stage.addEventListener(kind, (event) => {
    fingers.delete(event.pointerId);
    if (fingers.size === 0) document.body.removeAttribute('data-panning');
  });
}
stage.addEventListener('wheel', (event) => {
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  const step = event.deltaMode === 1 ? 24 : 1;
  zoomBy(Math.exp((-event.deltaY * step * (event.ctrlKey ? 3 : 1)) / 400), event.clientX - box.x, event.clientY - box.y);
}, { passive: false });
stage.addEventListener('dblclick', (event) => {
  const box = stage.getBoundingClientRect();
  if (state.zoom > 1) fit();
  else zoomBy(2, event.clientX - box.x, event.clientY - box.y);
});

const keys = {
  o: () => $('file').click(),
  s: saveDialog,
  c: () => compare(),
  '+': () => zoomBy(1.5),
  '=': () => zoomBy(1.5),
  '-': () => zoomBy(1 / 1.5),
  0: fit,
  Escape: () => state.running?.abort(),
  ArrowLeft: () => panBy(80, 0),
  ArrowRight: () => panBy(-80, 0),
  ArrowUp: () => panBy(0, 80),
  ArrowDown: () => panBy(0, -80),
};
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $('saving').open || !state.decoder) return;
  if (event.target.matches('input') && event.key.startsWith('Arrow')) return;
  const act = keys[event.key] ?? keys[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
});

$('open').addEventListener('click', () => $('file').click());
$('file').addEventListener('change', ({ target }) => {
  if (target.files[0]) open(target.files[0], target.files[0].name);
  target.value = '';
});
$('save').addEventListener('click', saveDialog);
$('compare').addEventListener('click', () => compare());
$('in').addEventListener('click', () => zoomBy(1.5));
$('out').addEventListener('click', () => zoomBy(1 / 1.5));
$('fit').addEventListener('click', fit);
$('stop').addEventListener('click', () => state.running?.abort());
$('split').addEventListener('input', split);
$('dismiss').addEventListener('click', () => {
  $('message').hidden = true;
  if (state.latent && !state.running) document.body.dataset.state = 'ready';
});
$('saving').addEventListener('close', () => save($('saving').returnValue));
$('width').addEventListener('input', () => keepAspect($('width'), $('height')));
$('height').addEventListener('input', () => keepAspect($('height'), $('width')));

const carries = (event) => event.dataTransfer?.types.includes('Files');
addEventListener('dragover', (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  $('drop').hidden = false;
});
addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) $('drop').hidden = true;
});
addEventListener('drop', (event) => {
  $('drop').hidden = true;
  const file = event.dataTransfer?.files[0];
  if (!file) return;
  event.preventDefault();
  if (state.decoder) open(file, file.name);
});
addEventListener('paste', (event) => {
  const file = event.clipboardData?.files[0];
  if (file && state.decoder) open(file, file.name);
});
new ResizeObserver(later).observe(stage);
// The ratio also changes when the page is zoomed or moves to another screen, without a new size in CSS pixels.
function watchRatio() {
  matchMedia(`(resolution: ${ratio()}dppx)`).addEventListener('change', () => {
    later();
    watchRatio();
  }, { once: true });
}
watchRatio();

// ---- start --------------------------------------------------------------------------------------------------------

function ready(on) {
  for (const id of ['open', 'save', 'compare', 'in', 'out', 'fit']) $(id).disabled = !on;
}

async function start() {
  ready(false);
  const query = new URLSearchParams(location.search);
  if (!('gpu' in navigator) || !navigator.gpu) {
    const insecure = !isSecureContext ? ' This page was opened over plain http: open it over https or from localhost.' : '';
    say('');
    complain(`This browser gives the page no WebGPU, which does all the work here.${insecure} Current versions of Chrome, Edge, Safari and Firefox have it; ` +
      'on Linux it may have to be switched on (chrome://flags, “Unsafe WebGPU Support”).');
    return;
  }
  try {
    state.engine = await Engine.create({ dtype: query.get('dtype') ?? 'f16' });
    const { device } = state.engine;
    $('device').textContent = device.kind === 'software' ? `${device.name || 'software renderer'} (no GPU: slow)` : device.name || 'WebGPU';
    say('Loading the decoder');
    state.decoder = await state.engine.loadDecoder(query.get('weights') ?? undefined, {
      onProgress: ({ done }) => progress(done),
    });
    progress(null);
    ready(true);
    const url = query.get('latent') ?? 'sample.safetensors';
    show(await state.engine.loadLatent(new URL(url, document.baseURI)), url.split('/').pop().replace(/\.[^.]*$/, ''));
  } catch (error) {
    progress(null);
    say('');
    complain(error.message);
  }
}

window.demo = state; // for the console, and for tests
start();
