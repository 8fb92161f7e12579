// Where the bytes of weights come from: a Blob, or a URL read by ranges and kept in the origin private file system.
//
// A source is { length, read(offset, length) -> Promise<Uint8Array> }. Only what is asked for is held: the engine asks
// tensor by tensor, and each tensor goes to the GPU before the next is read.

const MiB = 1 << 20;
const BLOCK = MiB;
/** A gap of this size is cheaper to read through than to skip with a new request. */
const SKIP = 8 * MiB;
/** Blocks that stay in memory, for portions that are smaller than a block. */
const RECENT = 4;
const RETRIES = 4;
const DIRECTORY = 'infgen-weights';
/** Room for the description at the start of a cache index; digests of 32 bytes a block follow. */
const ABOUT_BYTES = 1024;
const DIGEST_BYTES = 32;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');

/** Bytes that the page has already: a file that was dropped, a buffer. */
export function blobSource(blob, progress = () => {}) {
  let furthest = 0;
  return {
    length: blob.size,
    cache: { state: 'none' },
    async read(offset, length) {
      const bytes = new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
      furthest = Math.max(furthest, offset + bytes.length);
      progress(furthest, blob.size);
      return bytes;
    },
    async verify(hash, expected) {
      for (let at = 0; at < blob.size; at += BLOCK) hash.update(await this.read(at, Math.min(BLOCK, blob.size - at)));
      return hash.digest() === expected;
    },
    async close() {},
  };
}

/**
 * Opens `url`. With `cache`, blocks that have arrived are kept with their SHA-256 and checked when they are read again;
 * an interrupted download goes on where it stopped.
 */
export async function urlSource(url, { cache = true, signal, progress = () => {} } = {}) {
  const remote = new Remote(url, signal, progress);
  return remote.open(cache);
}

/** Removes everything that is cached. */
export async function clearCache() {
  const root = await navigator.storage.getDirectory();
  await root.removeEntry(DIRECTORY, { recursive: true }).catch((error) => {
    if (error.name !== 'NotFoundError') throw error;
  });
}

class Remote {
  constructor(url, signal, progress) {
    this.url = url;
    this.signal = signal;
    this.progress = progress;
    this.length = 0;
    this.validator = null;
    /** Whether the server answers ranges; if not, blocks that pass by are kept until they are asked for. */
    this.ranges = false;
    this.reader = null;
    /** Offset in the file of the next byte of `reader`, less what waits in `rest`. */
    this.position = 0;
    this.rest = null;
    this.recent = new Map();
    this.kept = new Map();
    this.arrived = 0;
    this.store = null;
    this.cache = { state: 'off' };
  }

  async open(cached) {
    if (cached) {
      const opened = await Store.open(this.url);
      this.store = opened.store;
      if (!this.store) this.cache = { state: 'off', reason: opened.reason };
    }
    let response;
    try {
      response = await this.request(0, this.store?.complete() ? this.store.validator : null);
    } catch (error) {
      if (this.signal?.aborted || !this.store?.complete()) {
        await this.store?.close();
        throw error;
      }
      // Offline, and everything is here.
      this.length = this.store.length;
      this.cache = { state: 'hit' };
      return this;
    }
    if (response.status === 304) {
      ({ length: this.length, ranges: this.ranges, validator: this.validator } = this.store);
      this.cache = { state: 'hit' };
      this.progress(this.length, this.length);
      return this;
    }
    const total = lengthOf(response);
    if (total === null) {
      // Compressed on the way, or of a length that the server does not know: there is nothing to ask ranges of.
      await this.store?.close();
      const source = blobSource(await response.blob(), this.progress);
      return Object.assign(source, { cache: { state: 'off', reason: 'the server gives no length' } });
    }
    this.length = total;
    this.ranges = response.status === 206 || response.headers.get('Accept-Ranges') === 'bytes';
    this.validator = response.headers.get('ETag') ?? response.headers.get('Last-Modified');
    if (this.store) {
      const reason = await this.store.begin(this.length, this.validator, this.ranges);
      if (reason) await this.uncache(reason);
      else this.cache = { state: this.store.complete() ? 'hit' : this.store.count > 0 ? 'resumed' : 'stored' };
      this.arrived = this.store ? this.store.count * BLOCK : 0;
    }
    this.attach(response, 0);
    if (this.store?.has(0)) await this.detach();
    return this;
  }

  /** Asks for the bytes from `from` on; or for nothing (304), if `known` still names what is there. */
  async request(from, known = null) {
    const headers = { Range: `bytes=${from}-` };
    // Another origin would have to allow such a header first.
    if (known && new URL(this.url).origin === location.origin) {
      headers[/^(W\/)?"/.test(known) ? 'If-None-Match' : 'If-Modified-Since'] = known;
    }
    if (from > 0 && this.validator && !this.validator.startsWith('W/')) headers['If-Range'] = this.validator;
    let response;
    try {
      // Past the browser's own cache, which would keep the same bytes a second time.
      response = await fetch(this.url, { headers, signal: this.signal, cache: 'no-store' });
    } catch (error) {
      if (this.signal?.aborted) throw error;
      throw Object.assign(new Error(`the network request failed (${error.message})`), { transient: true });
    }
    if (!response.ok && !(known && response.status === 304)) {
      const transient = response.status >= 500 || response.status === 429;
      throw Object.assign(new Error(`the server answered ${response.status} ${response.statusText}`.trim()), { transient });
    }
    return response;
  }

  attach(response, position) {
    this.reader = response.body.getReader();
    this.position = position;
    this.rest = null;
  }

  async detach() {
    const reader = this.reader;
    this.reader = null;
    this.rest = null;
    await reader?.cancel().catch(() => {});
  }

  /** Starts to read at `position`, where the server can. */
  async seek(position) {
    await this.detach();
    if (position > 0 && !this.ranges) throw new Error('the connection broke and the server cannot resume');
    const response = await this.request(position);
    if (position > 0 && response.status !== 206) {
      await response.body?.cancel();
      throw new Error('the file has changed on the server while it was read');
    }
    this.attach(response, position);
  }

  /** The next block of the stream, which stands at the start of one. */
  async next() {
    const start = this.position;
    const index = start / BLOCK;
    const bytes = new Uint8Array(Math.min(BLOCK, this.length - start));
    let filled = 0;
    for (let attempt = 0; filled < bytes.length; ) {
      try {
        if (!this.reader) await this.seek(start + filled);
        const chunk = this.rest ?? (await this.reader.read()).value;
        if (!chunk) throw Object.assign(new Error('the connection ended early'), { transient: true });
        const part = chunk.subarray(0, bytes.length - filled);
        bytes.set(part, filled);
        filled += part.length;
        this.rest = part.length < chunk.length ? chunk.subarray(part.length) : null;
        attempt = 0;
      } catch (error) {
        await this.detach();
        // What a stream rejects with has no mark of ours; only answers of the server do.
        const lasting = error.transient !== true && !(error instanceof TypeError);
        if (this.signal?.aborted || lasting || ++attempt > RETRIES || !(this.ranges || start + filled === 0)) throw error;
        await pause(200 * 2 ** attempt);
      }
    }
    this.position = start + bytes.length;
    this.arrived += bytes.length;
    this.progress(Math.min(this.arrived, this.length), this.length);
    if (this.position === this.length) await this.detach();
    return [index, bytes];
  }

  async block(index) {
    const held = this.recent.get(index) ?? this.kept.get(index);
    if (held) return held;
    if (this.store?.has(index)) {
      const bytes = await this.store.get(index);
      if (bytes) return this.remember(index, bytes);
    }
    const start = index * BLOCK;
    const ahead = start - this.position;
    if (!this.reader || ahead < 0 || (ahead > SKIP && this.ranges)) {
      await this.detach();
      this.position = this.ranges ? start : 0;
    }
    for (;;) {
      const [at, bytes] = await this.next();
      if (this.store && !this.store.has(at)) {
        const reason = await this.store.put(at, bytes);
        if (reason) await this.uncache(reason);
      }
      if (at === index) return this.remember(index, bytes);
      if (!this.ranges && !this.store) this.kept.set(at, bytes);
    }
  }

  remember(index, bytes) {
    this.recent.set(index, bytes);
    if (this.recent.size > RECENT) this.recent.delete(this.recent.keys().next().value);
    return bytes;
  }

  async read(offset, length) {
    const end = offset + length;
    if (end > this.length) throw new Error(`bytes ${offset} to ${end} of ${this.length} were asked for`);
    const result = new Uint8Array(length);
    for (let at = offset; at < end; ) {
      const index = Math.floor(at / BLOCK);
      const bytes = await this.block(index);
      const part = bytes.subarray(at - index * BLOCK, Math.min(bytes.length, end - index * BLOCK));
      result.set(part, at - offset);
      at += part.length;
    }
    return result;
  }

  /** Whether the SHA-256 of the whole is `expected`; if not, nothing of it stays in the cache. */
  async verify(hash, expected) {
    for (let at = 0; at < this.length; at += BLOCK) hash.update(await this.block(at / BLOCK));
    if (hash.digest() === expected) return true;
    await this.uncache('its SHA-256 is wrong');
    return false;
  }

  /** Goes on without a cache. */
  async uncache(reason) {
    const store = this.store;
    this.store = null;
    this.cache = { state: 'off', reason };
    await store?.remove();
  }

  async close() {
    await this.detach();
    this.recent.clear();
    this.kept.clear();
    await this.store?.close();
    this.store = null;
  }
}

/** Bytes of the whole file, or null where ranges of it would mean nothing. */
function lengthOf(response) {
  const encoding = response.headers.get('Content-Encoding');
  if (encoding && encoding !== 'identity') return null;
  // Another origin may hide Content-Range; the answer to `bytes=0-` has the whole length in any case.
  const total = response.headers.get('Content-Range')?.split('/')[1] ?? response.headers.get('Content-Length');
  return /^\d+$/.test(total ?? '') ? Number(total) : null;
}

/** One file in the origin private file system: `data`, and `index` with what it is and the SHA-256 of each block in it. */
class Store {
  static async open(url) {
    try {
      const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(url));
      const name = hex(new Uint8Array(digest).subarray(0, 16));
      const root = await navigator.storage.getDirectory();
      const all = await root.getDirectoryHandle(DIRECTORY, { create: true });
      const folder = await all.getDirectoryHandle(name, { create: true });
      const handle = async (file) => (await folder.getFileHandle(file, { create: true })).createSyncAccessHandle();
      const store = new Store(all, name);
      store.index = await handle('index');
      try {
        store.data = await handle('data');
      } catch (error) {
        store.index.close();
        throw error;
      }
      await store.load();
      return { store };
    } catch (error) {
      const busy = error.name === 'NoModificationAllowedError';
      return { reason: busy ? 'another tab is using it' : `the browser gives no private file system here (${error.message})` };
    }
  }

  constructor(all, name) {
    this.all = all;
    this.name = name;
    this.length = 0;
    this.validator = null;
    /** Whether the server answers ranges. */
    this.ranges = false;
    this.digests = new Map();
  }

  get count() {
    return this.digests.size;
  }

  async load() {
    const bytes = new Uint8Array(await this.index.getSize());
    if (bytes.length < ABOUT_BYTES) return;
    await this.index.read(bytes, { at: 0 });
    try {
      const about = JSON.parse(new TextDecoder().decode(bytes.subarray(0, ABOUT_BYTES)));
      this.length = about.length;
      this.validator = about.validator;
      this.ranges = about.ranges;
    } catch {
      return; // a torn write: begin() starts anew
    }
    for (let i = 0; ABOUT_BYTES + (i + 1) * DIGEST_BYTES <= bytes.length; i++) {
      const digest = bytes.subarray(ABOUT_BYTES + i * DIGEST_BYTES, ABOUT_BYTES + (i + 1) * DIGEST_BYTES);
      if (digest.some((byte) => byte !== 0)) this.digests.set(i, hex(digest));
    }
  }

  /** Keeps what is there if it is of the same file, else starts anew. Says why it cannot. */
  async begin(length, validator, ranges) {
    if (this.length === length && this.validator === validator && validator !== null) return null;
    Object.assign(this, { length, validator, ranges });
    this.digests.clear();
    try {
      await this.index.truncate(0);
      await this.data.truncate(0);
      const { quota = Infinity, usage = 0 } = (await navigator.storage.estimate?.()) ?? {};
      if (quota - usage < length + 16 * MiB) await this.evict();
      const about = JSON.stringify({ length, validator, ranges }).padEnd(ABOUT_BYTES);
      await this.index.write(new TextEncoder().encode(about).subarray(0, ABOUT_BYTES), { at: 0 });
      return null;
    } catch (error) {
      return reasonOf(error);
    }
  }

  /** Frees what other files take. */
  async evict() {
    for await (const name of this.all.keys()) {
      // One that another tab has open stays.
      if (name !== this.name) await this.all.removeEntry(name, { recursive: true }).catch(() => {});
    }
  }

  has(index) {
    return this.digests.has(index);
  }

  complete() {
    return this.length > 0 && this.digests.size === Math.ceil(this.length / BLOCK);
  }

  /** A block, or null if it is not what was written. */
  async get(index) {
    const bytes = new Uint8Array(Math.min(BLOCK, this.length - index * BLOCK));
    await this.data.read(bytes, { at: index * BLOCK });
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
    if (hex(digest) === this.digests.get(index)) return bytes;
    this.digests.delete(index);
    return null;
  }

  /** Keeps a block. Says why it cannot. */
  async put(index, bytes) {
    try {
      const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
      if ((await this.data.write(bytes, { at: index * BLOCK })) < bytes.length) throw new DOMException('', 'QuotaExceededError');
      await this.index.write(digest, { at: ABOUT_BYTES + index * DIGEST_BYTES });
      this.digests.set(index, hex(digest));
      return null;
    } catch (error) {
      return reasonOf(error);
    }
  }

  async close() {
    for (const handle of [this.data, this.index]) {
      try {
        await handle.flush();
      } finally {
        await handle.close();
      }
    }
  }

  async remove() {
    await this.close().catch(() => {});
    await this.all.removeEntry(this.name, { recursive: true }).catch(() => {});
  }
}

function reasonOf(error) {
  return error.name === 'QuotaExceededError' ? 'the storage quota of this site is used up' : error.message;
}
