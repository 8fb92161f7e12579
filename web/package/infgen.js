// Latents to pictures of any size, through WebGPU. See `infgen.d.ts` for every call.
//
// The engine runs in a worker of its own, so nothing here blocks the page.

/** What went wrong: `code` names the kind, `message` says what, where and what to do. */
export class InfgenError extends Error {
  constructor({ code, message, needed, limit }) {
    super(message);
    // What pages look for when they have cancelled something.
    this.name = code === 'Cancelled' ? 'AbortError' : 'InfgenError';
    this.code = code;
    if (needed !== undefined) Object.assign(this, { needed, limit });
  }
}

const invalid = (message) => new InfgenError({ code: 'Invalid', message });

/** Worker and calls in progress. */
class Connection {
  constructor(workerUrl) {
    this.calls = new Map();
    this.lastId = 0;
    this.dead = null;
    this.worker = startWorker(workerUrl);
    this.worker.addEventListener('message', ({ data }) => this.receive(data));
    this.worker.addEventListener('error', (event) => this.die(event.message || 'the worker script could not be loaded'));
    this.canvases = new WeakMap();
    // Handles that the page has dropped without `free()`.
    this.dropped = new FinalizationRegistry((handle) => this.free(handle));
  }

  receive({ id, value, error, progress, fatal }) {
    if (fatal !== undefined) return this.die(fatal);
    const call = this.calls.get(id);
    if (!call) return;
    if (progress) return call.onProgress?.({ done: progress[0], layer: progress[1] });
    this.calls.delete(id);
    call.release();
    if (error) call.reject(new InfgenError(error));
    else call.resolve(value);
  }

  die(message) {
    this.dead = new InfgenError({ code: 'Internal', message: `the engine has stopped: ${message}; create a new one` });
    for (const call of this.calls.values()) {
      call.release();
      call.reject(this.dead);
    }
    this.calls.clear();
    this.worker.terminate();
  }

  call(name, args, { signal, onProgress } = {}, transfer = []) {
    if (this.dead) return Promise.reject(this.dead);
    if (signal?.aborted) return Promise.reject(new InfgenError({ code: 'Cancelled', message: 'cancelled' }));
    const id = ++this.lastId;
    const abort = () => this.worker.postMessage({ abort: id });
    signal?.addEventListener('abort', abort, { once: true });
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve, reject, onProgress, release: () => signal?.removeEventListener('abort', abort) });
      this.worker.postMessage({ id, call: name, args }, transfer);
    });
  }

  free(handle) {
    if (!this.dead) this.worker.postMessage({ free: handle });
  }

  async canvas(canvas) {
    let attached = this.canvases.get(canvas);
    if (!attached) {
      let offscreen = canvas;
      if ('transferControlToOffscreen' in canvas) {
        try {
          offscreen = canvas.transferControlToOffscreen();
        } catch {
          throw invalid('canvas: it has a context already, or belongs to another engine; give this engine one of its own');
        }
      } else if (!(canvas instanceof OffscreenCanvas)) {
        throw invalid('canvas: an HTMLCanvasElement or OffscreenCanvas is needed');
      }
      attached = this.call('attach', { canvas: offscreen }, {}, [offscreen]);
      this.canvases.set(canvas, attached);
    }
    return (await attached).handle;
  }
}

function startWorker(url) {
  const own = url === undefined;
  const target = own ? new URL('./infgen-worker.js', import.meta.url) : new URL(url, location.href);
  if (target.origin !== location.origin && target.protocol !== 'blob:') {
    // Workers must come from the page's own origin; their modules may come from anywhere that allows it.
    const script = new Blob([`import ${JSON.stringify(target.href)};`], { type: 'text/javascript' });
    return new Worker(URL.createObjectURL(script), { type: 'module' });
  }
  // Written out for bundlers, which look for just this.
  return own ? new Worker(new URL('./infgen-worker.js', import.meta.url), { type: 'module' }) : new Worker(target, { type: 'module' });
}

/** `{ blob, name }` or `{ url, name }` of whatever a page has. */
function sourceOf(source, name) {
  if (source instanceof Response) throw invalid('source: give the URL instead of a Response, or its bytes');
  if (source instanceof Blob) return { blob: source, name: name ?? source.name ?? 'bytes' };
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source)) return { blob: new Blob([source]), name: name ?? 'bytes' };
  if (typeof source === 'string' || source instanceof URL) {
    const url = new URL(source, globalThis.document?.baseURI ?? location.href).href;
    return { url, name: name ?? url };
  }
  throw invalid('source: a URL, a Blob or File, an ArrayBuffer or a typed array is needed');
}

class Handle {
  constructor(connection, handle) {
    Object.defineProperties(this, { connection: { value: connection }, handle: { value: handle } });
    connection.dropped.register(this, handle, this);
  }

  free() {
    this.connection.dropped.unregister(this);
    this.connection.free(this.handle);
  }
}

export class Decoder extends Handle {
  constructor(connection, { handle, facts, cache }) {
    super(connection, handle);
    this.facts = facts;
    this.cache = cache;
  }

  async decode(latent, width, height, options) {
    const rgba = await this.connection.call('decode', { decoder: this.handle, latent, width, height }, options);
    return new ImageData(rgba, width, height);
  }

  decodeFloat(latent, width, height, options) {
    return this.connection.call('decodeFloat', { decoder: this.handle, latent, width, height }, options);
  }

  async decodeToCanvas(latent, canvas, options = {}) {
    const { width = canvas.width, height = canvas.height } = options;
    const args = { decoder: this.handle, latent, width, height, canvas: await this.connection.canvas(canvas) };
    await this.connection.call('decodeToCanvas', args, options);
  }

  async prepare(latent, width, height, options) {
    const { handle } = await this.connection.call('prepare', { decoder: this.handle, latent, width, height }, options);
    return new Decoding(this.connection, handle, width, height);
  }

  estimate(latent, width, height) {
    return this.connection.call('estimate', { decoder: this.handle, latent, width, height });
  }
}

export class Decoding extends Handle {
  constructor(connection, handle, width, height) {
    super(connection, handle);
    this.width = width;
    this.height = height;
  }

  async region({ x, y, width, height }, options) {
    const rgba = await this.connection.call('region', { decoding: this.handle, x, y, width, height }, options);
    return new ImageData(rgba, width, height);
  }

  async regionToCanvas({ x, y, width, height }, canvas, options) {
    const args = { decoding: this.handle, x, y, width, height, canvas: await this.connection.canvas(canvas) };
    await this.connection.call('regionToCanvas', args, options);
  }
}

export class Encoder extends Handle {
  constructor(connection, { handle, facts, cache }) {
    super(connection, handle);
    this.facts = facts;
    this.cache = cache;
  }

  async encode(image, options = {}) {
    const { width, height } = options;
    let input;
    const transfer = [];
    if (image instanceof ImageData) {
      input = { pixels: { data: image.data, width: image.width, height: image.height } };
    } else if (image instanceof Blob || image instanceof ArrayBuffer || ArrayBuffer.isView(image) || typeof image === 'string' || image instanceof URL) {
      input = sourceOf(image, options.name);
    } else {
      const bitmap = await createImageBitmap(image).catch((error) => {
        throw invalid(`image: ${error.message}`);
      });
      input = { bitmap };
      transfer.push(bitmap);
    }
    return this.connection.call('encode', { encoder: this.handle, image: input, width, height }, options, transfer);
  }
}

export class Engine {
  static async create(options = {}) {
    const { dtype = 'f16', memory, defaultLimits, workerUrl, signal } = options;
    if (dtype !== 'f16' && dtype !== 'f32') throw invalid(`dtype: ${dtype} is neither f16 nor f32`);
    const connection = new Connection(workerUrl);
    try {
      const { device } = await connection.call('create', { dtype, memory, defaultLimits }, { signal });
      return new Engine(connection, device);
    } catch (error) {
      connection.worker.terminate();
      throw error;
    }
  }

  constructor(connection, device) {
    Object.defineProperties(this, {
      connection: { value: connection },
      decoder: { value: null, writable: true },
      encoder: { value: null, writable: true },
    });
    this.device = device;
  }

  async load(which, source, options = {}) {
    const { name, sha256, cache } = options;
    const from = source === undefined ? {} : sourceOf(source, name);
    const Model = which === 'decoder' ? Decoder : Encoder;
    const call = which === 'decoder' ? 'loadDecoder' : 'loadEncoder';
    return new Model(this.connection, await this.connection.call(call, { ...from, sha256, cache }, options));
  }

  /** Loads a decoder, which `decode` then uses; without a source the one that ships. */
  async loadDecoder(source, options) {
    const loading = this.load('decoder', source, options);
    const before = this.decoder;
    this.decoder = loading;
    // One that cannot be loaded leaves the last one in use.
    loading.catch(() => {
      if (this.decoder === loading) this.decoder = before;
    });
    return loading;
  }

  /** Loads an encoder, which `encode` then uses; without a source the one that ships. */
  async loadEncoder(source, options) {
    const loading = this.load('encoder', source, options);
    const before = this.encoder;
    this.encoder = loading;
    loading.catch(() => {
      if (this.encoder === loading) this.encoder = before;
    });
    return loading;
  }

  async currentDecoder() {
    return this.decoder ?? this.loadDecoder();
  }

  async currentEncoder() {
    return this.encoder ?? this.loadEncoder();
  }

  loadLatent(source, options = {}) {
    return this.connection.call('loadLatent', sourceOf(source, options.name), options);
  }

  saveLatent(latent) {
    return this.connection.call('saveLatent', { latent });
  }

  async encode(image, options) {
    return (await this.currentEncoder()).encode(image, options);
  }

  async decode(latent, width, height, options) {
    return (await this.currentDecoder()).decode(latent, width, height, options);
  }

  async decodeFloat(latent, width, height, options) {
    return (await this.currentDecoder()).decodeFloat(latent, width, height, options);
  }

  async decodeToCanvas(latent, canvas, options) {
    return (await this.currentDecoder()).decodeToCanvas(latent, canvas, options);
  }

  async prepare(latent, width, height, options) {
    return (await this.currentDecoder()).prepare(latent, width, height, options);
  }

  async estimate(latent, width, height) {
    return (await this.currentDecoder()).estimate(latent, width, height);
  }

  memory() {
    return this.connection.call('memory');
  }

  trim() {
    return this.connection.call('trim');
  }

  clearCache() {
    return this.connection.call('clearCache');
  }

  dispose() {
    this.connection.die('it was disposed of');
  }
}
