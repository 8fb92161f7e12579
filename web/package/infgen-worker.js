// The engine's own thread: wasm, the GPU device and the network live here; `infgen.js` sends calls and gets answers.
//
// In:  { id, call, args }, { abort: id }
// Out: { id, value }, { id, error }, { id, progress: [done, what] }, { fatal }

import init, * as wasm from './infgen_core.js';
import { blobSource, clearCache, urlSource } from './infgen-source.js';

let engine = null;
let memory = null;
let builtin = null;
/** Everything that a handle in `infgen.js` stands for. */
const objects = new Map();
let lastHandle = 0;
/** Calls in progress by id. */
const calls = new Map();
/** The end of the last call that uses the GPU: these run one after the other, so that memory plans hold. */
let gpu = Promise.resolve();

function keep(object) {
  objects.set(++lastHandle, object);
  return lastHandle;
}

function get(handle) {
  const object = objects.get(handle);
  if (!object) throw fail('Invalid', 'handle: this object was freed');
  return object;
}

const fail = (code, message) => Object.assign(new Error(message), { code });

/** A wasm latent of what a page has: `{ data, shape, space }`. */
function latentOf({ data, shape, space }) {
  if (!(data instanceof Float32Array) || !Array.isArray(shape)) {
    throw fail('Invalid', 'latent: { data: Float32Array, shape: [C, h, w], space } is needed, as loadLatent and encode give');
  }
  return wasm.WasmLatent.fromValues(Uint32Array.from(shape), data, space ?? undefined);
}

function pageLatent(latent) {
  const shape = Array.from(latent.shape());
  return { data: latent.data(), shape: shape[0] === 1 ? shape.slice(1) : shape, space: latent.space() ?? null };
}

/** Name and bytes of a Blob or URL, for what is read whole. */
async function wholeOf({ blob, url, name }, signal) {
  if (blob) return [new Uint8Array(await blob.arrayBuffer()), name];
  const source = await urlSource(url, { cache: false, signal });
  try {
    return [await source.read(0, source.length), name];
  } finally {
    await source.close();
  }
}

async function pixelsOf({ bitmap }) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext('2d');
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** Loads a model from a Blob, a URL or the package itself, with its bytes counted as progress. */
async function load(which, { blob, url, name, sha256, cache = true }, call) {
  const progress = (done, all) => call.progress(all ? done / all : 1, 'weights');
  if (!blob && !url) {
    const file = builtin[which];
    url = new URL(`./${file.file}`, import.meta.url).href;
    name = `(built in) ${file.file}`;
    sha256 = file.sha256 ?? undefined;
  }
  let source;
  try {
    source = blob ? blobSource(blob, progress) : await urlSource(url, { cache, signal: call.signal, progress });
  } catch (error) {
    throw call.signal.aborted ? error : fail('Io', `${name}: ${error.message}`);
  }
  let model = null;
  try {
    model = await (which === 'decoder' ? engine.loadDecoder(source, name) : engine.loadEncoder(source, name));
    if (sha256) {
      const hash = new wasm.Sha256();
      if (!(await source.verify(hash, sha256))) {
        const found = hash.digest();
        throw fail('Malformed', `${name}: not a valid download: SHA-256 is ${found}, expected ${sha256}: load it again`);
      }
    }
    const answer = { handle: keep(model), facts: JSON.parse(model.facts()), cache: source.cache };
    model = null;
    return answer;
  } finally {
    model?.free();
    await source.close();
  }
}

/** Runs `work(latent, task)` with a wasm latent and a task that a cancel reaches. */
async function run(call, latent, work) {
  const task = call.task();
  const input = latent && latentOf(latent);
  try {
    return await work(input, task);
  } finally {
    input?.free();
  }
}

const methods = {
  async create({ dtype, memory: ceiling, defaultLimits }) {
    const core = await init({ module_or_path: new URL('./infgen_core_bg.wasm', import.meta.url) });
    memory = core.memory;
    builtin = JSON.parse(wasm.builtinFiles());
    const adapter = await navigator.gpu?.requestAdapter({ powerPreference: 'high-performance' });
    engine = await wasm.WasmEngine.open(dtype !== 'f32', ceiling, defaultLimits === true, adapter?.info?.vendor);
    return { device: JSON.parse(engine.device()) };
  },

  loadDecoder: (source, call) => load('decoder', source, call),
  loadEncoder: (source, call) => load('encoder', source, call),

  async loadLatent(source, call) {
    const [bytes, name] = await wholeOf(source, call.signal);
    const latent = wasm.WasmLatent.fromBytes(bytes, name);
    try {
      return pageLatent(latent);
    } finally {
      latent.free();
    }
  },

  async saveLatent({ latent }) {
    const input = latentOf(latent);
    try {
      return input.toSafetensors();
    } finally {
      input.free();
    }
  },

  async encode({ encoder, image, width = 0, height = 0 }, call) {
    let picture;
    if (image.bitmap || image.pixels) {
      const { data, width: w, height: h } = image.pixels ?? (await pixelsOf(image));
      picture = wasm.WasmImage.fromRgba(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), w, h);
    } else {
      picture = wasm.WasmImage.fromBytes(...(await wholeOf(image, call.signal)));
    }
    try {
      const latent = await get(encoder).encode(picture, width, height, call.task());
      try {
        return pageLatent(latent);
      } finally {
        latent.free();
      }
    } finally {
      picture.free();
    }
  },

  decode: ({ decoder, latent, width, height }, call) =>
    run(call, latent, (input, task) => get(decoder).decode(input, width, height, task)),

  decodeFloat: ({ decoder, latent, width, height }, call) =>
    run(call, latent, (input, task) => get(decoder).decodeFloat(input, width, height, task)),

  decodeToCanvas: ({ decoder, latent, width, height, canvas }, call) =>
    run(call, latent, (input, task) => get(decoder).decodeToScreen(input, width, height, get(canvas), task)),

  prepare: ({ decoder, latent, width, height }, call) =>
    run(call, latent, async (input, task) => ({ handle: keep(await get(decoder).prepare(input, width, height, task)) })),

  region: ({ decoding, x, y, width, height }, call) =>
    run(call, null, (_, task) => get(decoding).region(x, y, width, height, task)),

  regionToCanvas: ({ decoding, x, y, width, height, canvas }, call) =>
    run(call, null, (_, task) => get(decoding).regionToScreen(x, y, width, height, get(canvas), task)),

  async estimate({ decoder, latent, width, height }) {
    const input = latentOf(latent);
    try {
      return JSON.parse(get(decoder).estimate(input, width, height));
    } finally {
      input.free();
    }
  },

  async attach({ canvas }) {
    return { handle: keep(engine.screen(canvas)) };
  },

  async memory() {
    return { gpu: JSON.parse(engine.memory()), wasm: memory.buffer.byteLength };
  },

  async trim() {
    engine.trim();
  },

  clearCache,
};

/** Calls that wait for each other. */
const exclusive = new Set([
  'loadDecoder', 'loadEncoder', 'encode', 'decode', 'decodeFloat', 'decodeToCanvas', 'prepare', 'region', 'regionToCanvas',
]);

/** One call: where it is told to stop and tells how far it is. */
class Call {
  constructor(id) {
    this.id = id;
    this.controller = new AbortController();
    this.running = null;
  }

  get signal() {
    return this.controller.signal;
  }

  progress(done, what) {
    postMessage({ id: this.id, progress: [done, what] });
  }

  task() {
    this.running ??= new wasm.Task(this.id, (done, what) => this.progress(done, what));
    if (this.signal.aborted) this.running.cancel();
    return this.running;
  }

  abort() {
    this.controller.abort();
    this.running?.cancel();
  }
}

function describe(error, call) {
  if (call.signal.aborted) return { code: 'Cancelled', message: 'cancelled' };
  const { code = 'Internal', needed, limit } = error;
  return { code, message: error.message ?? String(error), needed, limit };
}

async function answer({ id, call: name, args }) {
  const call = new Call(id);
  calls.set(id, call);
  const work = async () => {
    if (call.signal.aborted) throw fail('Cancelled', 'cancelled');
    return methods[name](args, call);
  };
  try {
    let result;
    if (exclusive.has(name)) {
      result = gpu.then(work);
      gpu = result.catch(() => {});
    } else {
      result = work();
    }
    const value = await result;
    const bytes = ArrayBuffer.isView(value) ? value : value?.data;
    postMessage({ id, value }, ArrayBuffer.isView(bytes) ? [bytes.buffer] : []);
  } catch (error) {
    postMessage({ id, error: describe(error, call) });
  } finally {
    calls.delete(id);
    call.running?.free();
  }
}

self.addEventListener('message', ({ data }) => {
  if ('abort' in data) {
    calls.get(data.abort)?.abort();
  } else if ('free' in data) {
    objects.get(data.free)?.free();
    objects.delete(data.free);
  } else {
    answer(data);
  }
});

// A panic in wasm ends no promise: it comes as an error of this thread, and nothing in it can be trusted afterwards.
const fatal = (error) => postMessage({ fatal: error?.message ?? String(error) });
self.addEventListener('error', (event) => fatal(event.error ?? event));
self.addEventListener('unhandledrejection', (event) => fatal(event.reason));
