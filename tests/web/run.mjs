// Drives headless Chromium over the built package: node run.mjs DIST WORK [soak|part of a check's name|...]
//
// tests/web.rs puts into WORK what the native engine computed, and compares what this leaves there. Every check throws.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import puppeteer from 'puppeteer-core';
import { serve } from '../../web/serve.mjs';

const [dist, work, mode] = [path.resolve(process.argv[2]), path.resolve(process.argv[3]), process.argv[4] ?? 'test'];
const chromium = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/google-chrome', '/usr/bin/chromium-browser'].find((p) => p && existsSync(p));
assert(chromium, 'no Chromium; set CHROMIUM to its path');

const started = Date.now();
const note = (text) => console.log(`[${((Date.now() - started) / 1000).toFixed(1)} s] ${text}`);

// A site of the built files and the test's own.
const site = await mkdtemp(path.join(tmpdir(), 'infgen-site-'));
for (const name of ['infgen', 'index.html', 'demo.js', 'demo.css', 'sample.safetensors']) await symlink(path.join(dist, name), path.join(site, name));
await symlink(work, path.join(site, 'work'));
await writeFile(path.join(work, 'blank.html'), '<!doctype html><title>test</title><canvas id="canvas" width="40" height="30"></canvas>');

/** Requests by path, and faults to make. */
const traffic = { bytes: {}, faults: {} };
const server = await serve(site, {
  intercept: async (request, response, file, size) => {
    const name = path.basename(file);
    const fault = traffic.faults[name];
    const write = response.write.bind(response);
    response.write = (chunk, ...rest) => {
      traffic.bytes[name] = (traffic.bytes[name] ?? 0) + chunk.length;
      return write(chunk, ...rest);
    };
    return fault ? fault(request, response, file, size) : false;
  },
});
const base = `http://127.0.0.1:${server.address().port}`;

const profile = await mkdtemp(path.join(tmpdir(), 'infgen-chromium-'));
const browser = await puppeteer.launch({
  executablePath: chromium,
  userDataDir: profile,
  protocolTimeout: 500_000,
  timeout: 180_000,
  args: [
    '--headless=new', '--no-sandbox', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader',
    // With another renderer behind it the GPU process dies as soon as WebGPU draws on a canvas.
    '--use-angle=swiftshader', '--enable-features=Vulkan', '--use-vulkan=swiftshader', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync', '--js-flags=--expose-gc',
    // On a busy machine a software renderer may seem to hang.
    '--disable-gpu-watchdog',
  ],
});

async function fresh(url = '/work/blank.html', viewport) {
  const page = await browser.newPage();
  page.setDefaultTimeout(180_000);
  if (viewport) await page.setViewport(viewport);
  page.on('pageerror', (error) => note(`page error: ${error.message}`));
  page.on('console', (message) => ['error', 'warn'].includes(message.type()) && note(`console: ${message.text()}`));
  await page.goto(base + url);
  return page;
}

/** Saves a Float32Array that the page holds under `window[name]`. */
async function keep(page, name, file) {
  const encoded = await page.evaluate((key) => {
    const bytes = new Uint8Array(window[key].buffer, window[key].byteOffset, window[key].byteLength);
    let text = '';
    for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
    return btoa(text);
  }, name);
  await writeFile(path.join(work, file), Buffer.from(encoded, 'base64'));
}

const checks = {
  /**
   * Every kernel with every storage type, through the browser's own WGSL compiler: stricter than naga about uniform control
   * flow. Of the constants, which change sizes alone, two sets each become a pipeline: SwiftShader takes a second for one
   * (ALL_PIPELINES=1: all of them, for ten minutes and more).
   */
  async 'every kernel compiles'() {
    const page = await fresh();
    const result = await page.evaluate(async (all) => {
      const kernels = await (await fetch('/work/kernels.json')).json();
      const adapter = await navigator.gpu.requestAdapter();
      // As the engine does: all that there is.
      const { maxComputeWorkgroupStorageSize } = adapter.limits;
      const device = await adapter.requestDevice({ requiredFeatures: ['subgroups'], requiredLimits: { maxComputeWorkgroupStorageSize } });
      const failures = [];
      let pipelines = 0;
      const seen = new Set();
      for (const { label, source, bindings, constants } of kernels) {
        device.pushErrorScope('validation');
        const module = device.createShaderModule({ code: source });
        const messages = (await module.getCompilationInfo()).messages.map((m) => `${m.type} at ${m.lineNum}:${m.linePos}: ${m.message}`);
        if (messages.length) failures.push(`${label}: ${messages.join('; ')}`);
        const entries = bindings.map((type, binding) => ({
          binding,
          visibility: GPUShaderStage.COMPUTE,
          buffer: { type, hasDynamicOffset: type === 'uniform' },
        }));
        const layout = device.createPipelineLayout({ bindGroupLayouts: [device.createBindGroupLayout({ entries })] });
        const [name] = label.split(' ');
        const quick = constants.filter(({ D4 = 0 }) => D4 <= 16);
        const chosen = all ? constants : seen.has(name) ? [] : [...new Set([quick[0], quick.at(-1)])];
        seen.add(name);
        const made = await Promise.allSettled(
          chosen.map((values) => device.createComputePipelineAsync({ layout, compute: { module, entryPoint: 'main', constants: values } })));
        made.forEach((p, i) => p.status === 'rejected' && failures.push(`${label} ${JSON.stringify(chosen[i])}: ${p.reason.message}`));
        pipelines += chosen.length;
        const error = await device.popErrorScope();
        if (error) failures.push(`${label}: ${error.message}`);
      }
      device.destroy();
      return { failures, pipelines, modules: kernels.length };
    }, process.env.ALL_PIPELINES === '1');
    assert.deepEqual(result.failures, []);
    note(`${result.modules} modules, ${result.pipelines} pipelines`);
    await page.close();
  },

  /** Latents and pictures as the native engine gives them; Rust compares the files. */
  async 'decodes and encodes'() {
    const page = await fresh();
    const cases = JSON.parse(await readFile(path.join(work, 'cases.json'), 'utf8'));
    const device = await page.evaluate(async () => {
      const { Engine } = await import('/infgen/infgen.js');
      window.engine = await Engine.create({ dtype: 'f32' });
      window.progress = [];
      window.decoder = await engine.loadDecoder(undefined, { onProgress: (p) => progress.push(p) });
      window.latent = await engine.loadLatent('/work/sample.safetensors');
      return engine.device;
    });
    note(`device: ${JSON.stringify(device)}`);
    assert.equal(device.backend, 'webgpu');
    assert.equal(await page.evaluate(() => progress.at(-1).done), 1, 'the whole file was read');
    for (const { name, width, height } of cases.decodes) {
      await page.evaluate(async (w, h) => {
        window.values = await engine.decodeFloat(latent, w, h);
      }, width, height);
      await keep(page, 'values', `${name}.web.f32`);
      note(`decoded ${width}x${height}`);
    }
    await page.evaluate(async ({ width, height }) => {
      const picture = await (await fetch('/work/picture.png')).blob();
      const encoded = await engine.encode(picture, { width, height });
      if (encoded.space !== 'sd' || encoded.shape.join() !== [4, height / 8, width / 8].join()) throw new Error(`latent ${encoded.shape} ${encoded.space}`);
      window.values = encoded.data;
      // The file form must come back the same.
      const again = await engine.loadLatent(new Blob([await engine.saveLatent(encoded)]), { name: 'again.safetensors' });
      if (again.data.join() !== encoded.data.join() || again.space !== 'sd') throw new Error('saveLatent and loadLatent disagree');
      // Its own size, from pixels instead of a file.
      const pixels = new ImageData(new Uint8ClampedArray(24 * 16 * 4).fill(200), 24, 16);
      const small = await engine.encode(pixels);
      if (small.shape.join() !== '4,2,3') throw new Error(`latent of pixels ${small.shape}`);
    }, cases.encode);
    await keep(page, 'values', 'latent.web.f32');
    this.page = page;
  },

  /** One decode in its three forms, and rectangles of it. */
  async 'canvas and regions equal the picture'() {
    const result = await this.page.evaluate(async () => {
      const [width, height] = [77, 45];
      const image = await engine.decode(latent, width, height);
      const floats = await engine.decodeFloat(latent, width, height);
      const quantised = (x) => Math.round(255 * Math.min(1, Math.max(0, x / 2 + 0.5)));
      let wrong = 0;
      for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) wrong += Math.abs(image.data[4 * i + c] - quantised(floats[3 * i + c])) > 1 ? 1 : 0;
      const canvas = document.getElementById('canvas');
      await engine.decodeToCanvas(latent, canvas, { width, height });
      await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
      const copy = new OffscreenCanvas(width, height).getContext('2d');
      copy.drawImage(canvas, 0, 0);
      const drawn = copy.getImageData(0, 0, width, height);
      const differs = (a, b) => a.data.reduce((n, value, i) => n + (value !== b.data[i] ? 1 : 0), 0);
      const decoding = await engine.prepare(latent, width, height);
      const rect = { x: 30, y: 13, width: 40, height: 21 };
      const region = await decoding.region(rect);
      copy.putImageData(image, 0, 0);
      const crop = copy.getImageData(rect.x, rect.y, rect.width, rect.height);
      await decoding.regionToCanvas(rect, canvas);
      await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
      const size = [canvas.width, canvas.height];
      copy.drawImage(canvas, 0, 0);
      const shown = copy.getImageData(0, 0, rect.width, rect.height);
      decoding.free();
      return { wrong, drawn: differs(image, drawn), region: differs(crop, region), shown: differs(crop, shown), size, spread: new Set(image.data).size };
    });
    const { spread, ...differences } = result;
    assert.deepEqual(differences, { wrong: 0, drawn: 0, region: 0, shown: 0, size: [40, 21] });
    assert(spread > 50, 'a picture, not a plane');
  },

  async 'a decode is cancelled'() {
    const result = await this.page.evaluate(async () => {
      const cancel = new AbortController();
      let asked;
      let reports = 0;
      const onProgress = () => {
        if (++reports < 4) return;
        asked ??= performance.now();
        cancel.abort();
      };
      // The page goes on meanwhile.
      let gap = 0;
      let last = performance.now();
      const ticking = setInterval(() => {
        gap = Math.max(gap, performance.now() - last);
        last = performance.now();
      }, 10);
      const error = await engine.decode(latent, 640, 360, { signal: cancel.signal, onProgress }).then(() => null, (e) => e);
      const took = performance.now() - asked;
      clearInterval(ticking);
      // One that waits its turn, and one that is stopped before it starts.
      const stop = new AbortController();
      const first = engine.decode(latent, 16, 16);
      const second = engine.decode(latent, 640, 360, { signal: stop.signal }).catch((e) => e.code);
      stop.abort();
      const early = await engine.decode(latent, 16, 16, { signal: AbortSignal.abort() }).catch((e) => e.code);
      const after = await first;
      return { name: error?.name, code: error?.code, message: error?.message, took, gap, second: await second, early, after: after.width };
    });
    const { took, gap, ...rest } = result;
    assert.deepEqual(rest, { name: 'AbortError', code: 'Cancelled', message: 'cancelled', second: 'Cancelled', early: 'Cancelled', after: 16 });
    note(`cancelled after ${took.toFixed(0)} ms, the page stood still for at most ${gap.toFixed(0)} ms`);
    assert(gap < 1000, 'the page is not blocked');
    assert(took < 3000, `cancel took ${took} ms`);
  },

  /** Bad input gives the errors of the native library; Rust compares the messages. */
  async 'broken input is refused'() {
    const errors = await this.page.evaluate(async () => {
      const failure = (promise) => promise.then(() => 'no error', (e) => ({ code: e.code, message: e.message }));
      const weights = new Uint8Array(await (await fetch('/infgen/infgen-tiny-sd.safetensors')).arrayBuffer());
      const result = {
        truncated: await failure(engine.loadDecoder(weights.slice(0, 400_000), { name: 'truncated.safetensors' })),
        pickle: await failure(engine.loadDecoder(new Uint8Array([0x80, 2, 0x7d, 0x71, 0, 0x2e]), { name: 'model.ckpt' })),
        encoder: await failure(engine.loadDecoder('/infgen/encoder-tiny-sd.safetensors', { name: 'encoder' })),
        missing: await failure(engine.loadDecoder('/nothing.safetensors', { name: 'nothing' })),
        text: await failure(engine.loadLatent(new Blob(['{"a": 1}']), { name: 'latent.json' })),
        size: await failure(engine.decode(latent, 0, 10)),
        huge: await failure(engine.decode(latent, 20000, 10)),
        fraction: await failure(engine.decode(latent, 10.5, 10)),
        nan: await failure(engine.decode({ ...latent, data: latent.data.map(() => NaN) }, 10, 10)),
        shape: await failure(engine.decode({ ...latent, shape: [3, 3, 3] }, 10, 10)),
        picture: await failure(engine.encode(new Blob(['no picture']), { name: 'picture.txt' })),
        digest: await failure(engine.loadDecoder('/infgen/infgen-tiny-sd.safetensors', { name: 'digest', sha256: '0'.repeat(64) })),
      };
      // None of it has touched the decoder in use.
      result.after = (await engine.decode(latent, 16, 16)).width;
      return result;
    });
    assert.equal(errors.after, 16);
    delete errors.after;
    const codes = Object.fromEntries(Object.entries(errors).map(([key, error]) => [key, error.code ?? error]));
    assert.deepEqual(codes, {
      truncated: 'Malformed', pickle: 'Pickle', encoder: 'UnknownModel', missing: 'Io', text: 'Malformed', size: 'Invalid', huge: 'Invalid',
      fraction: 'Invalid', nan: 'Invalid', shape: 'Invalid', picture: 'Malformed', digest: 'Malformed',
    });
    assert.match(errors.missing.message, /404/);
    assert.match(errors.digest.message, /SHA-256/);
    await writeFile(path.join(work, 'errors.json'), JSON.stringify(errors, null, 1));
    await this.page.close();
  },

  /** A checkpoint of 1.6 GiB with a decoder of more than 400 MiB in it: only that travels, and little of it is held at a time. */
  async 'large files stream'() {
    const page = await fresh();
    const result = await page.evaluate(async () => {
      const { Engine } = await import('/infgen/infgen.js');
      const engine = await Engine.create();
      const start = performance.now();
      const decoder = await engine.loadDecoder('/work/large.safetensors', { cache: false });
      const { wasm } = await engine.memory();
      const answer = { wasm, facts: decoder.facts, cache: decoder.cache, seconds: (performance.now() - start) / 1000 };
      engine.dispose();
      return answer;
    });
    const travelled = traffic.bytes['large.safetensors'];
    const MiB = (bytes) => Math.round(bytes / (1 << 20));
    note(`large file: ${MiB(travelled)} MiB travelled, ${MiB(result.wasm)} MiB of wasm memory, ${result.seconds.toFixed(1)} s`);
    assert.equal(result.facts.model, 'InfGen decoder');
    assert(travelled > 300 << 20, 'larger than what may be held');
    // Beyond what is read: what the server had sent ahead when a request was broken off (64 to 200 MiB here, more the faster it is).
    assert(travelled < 900 << 20, `what is not needed stays away: ${travelled} bytes`);
    assert(result.wasm < 256 << 20, `${result.wasm} bytes of wasm memory`);
    await rm(path.join(work, 'large.safetensors'));
    await page.close();
  },

  /** WebGPU's default limits, f16 storage without `shader-f16`, and a ceiling under which a canvas must be drawn in bands. */
  async 'default limits and a memory ceiling'() {
    const page = await fresh();
    const { width, height } = JSON.parse(await readFile(path.join(work, 'cases.json'), 'utf8')).decodes[0];
    const result = await page.evaluate(async (w, h) => {
      const { Engine } = await import('/infgen/infgen.js');
      let engine = await Engine.create({ defaultLimits: true });
      let latent = await engine.loadLatent('/work/sample.safetensors');
      window.values = await engine.decodeFloat(latent, w, h);
      const half = await engine.decode(latent, w, h);
      engine.dispose();

      engine = await Engine.create({ memory: 1 << 20 });
      const refused = await engine.loadDecoder().then(() => null, (e) => e);
      engine.dispose();

      latent = { ...latent, shape: [4, 9, 16], data: latent.data.slice(0, 4 * 9 * 16) };
      const [width, height] = [177, 101];
      engine = await Engine.create();
      const free = await engine.decode(latent, width, height);
      const { peakBytes } = await engine.estimate(latent, width, height);
      engine.dispose();
      const memory = Math.round(0.85 * peakBytes);
      engine = await Engine.create({ memory });
      const canvas = document.getElementById('canvas');
      await engine.decodeToCanvas(latent, canvas, { width, height });
      await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
      const copy = new OffscreenCanvas(width, height).getContext('2d');
      copy.drawImage(canvas, 0, 0);
      const drawn = copy.getImageData(0, 0, width, height);
      const { gpu } = await engine.memory();
      engine.dispose();
      const wrong = drawn.data.reduce((n, value, i) => n + (value !== free.data[i] ? 1 : 0), 0);
      return { half: half.width, refused: refused && { code: refused.code, needed: refused.needed, limit: refused.limit }, wrong, peakBytes, memory, peak: gpu.peak };
    }, width, height);
    await keep(page, 'values', 'f16.web.f32');
    note(JSON.stringify(result));
    assert.equal(result.half, width);
    assert.equal(result.refused.code, 'MemoryCeiling');
    assert(result.refused.needed > result.refused.limit);
    assert.equal(result.wrong, 0, 'in bands or not, the same picture');
    assert(result.peak <= result.memory, 'the ceiling holds');
    await page.close();
  },

  /** The cache: stored, hit, damaged, interrupted, without room. */
  async 'weights are cached'() {
    const name = 'infgen-tiny-sd.safetensors';
    const page = await fresh();
    const load = (options = {}) => page.evaluate(async (o) => {
      const { Engine } = await import('/infgen/infgen.js');
      const engine = await Engine.create({ dtype: 'f32' });
      try {
        if (o.clear) await engine.clearCache();
        const latent = await engine.loadLatent('/work/sample.safetensors');
        const decoder = await engine.loadDecoder();
        const image = await decoder.decode(latent, 16, 16);
        return { cache: decoder.cache, pixels: image.data.join() };
      } finally {
        engine.dispose();
      }
    }, options);
    const bytes = async (action) => {
      await new Promise((resolve) => setTimeout(resolve, 500)); // what earlier pages have broken off
      traffic.bytes[name] = 0;
      const result = await action();
      return { ...result, bytes: traffic.bytes[name] };
    };
    const size = (await readFile(path.join(dist, 'infgen', name))).length;

    const first = await bytes(() => load({ clear: true }));
    assert.equal(first.cache.state, 'stored', JSON.stringify(first.cache));
    assert.equal(first.bytes, size);
    const second = await bytes(() => load());
    assert.equal(second.cache.state, 'hit');
    assert.equal(second.bytes, 0, 'a hit needs nothing of the file');
    assert.equal(second.pixels, first.pixels);

    // A byte of the cache is changed behind its back: that block comes from the network again.
    await page.evaluate(async () => {
      const root = await (await navigator.storage.getDirectory()).getDirectoryHandle('infgen-weights');
      for await (const folder of root.values()) {
        const handle = await folder.getFileHandle('data');
        const writer = await handle.createWritable({ keepExistingData: true });
        await writer.write({ type: 'write', position: 1_500_000, data: new Uint8Array([1, 2, 3, 4, 5, 6, 7]) });
        await writer.close();
      }
    });
    const repaired = await load();
    assert.equal(repaired.pixels, first.pixels, 'a damaged cache changes nothing');

    // The connection breaks after 2.5 MB, twice, in the middle of a block.
    let breaks = 0;
    traffic.faults[name] = async (request, response, file, length) => {
      const start = Number(/bytes=(\d+)-/.exec(request.headers.range)[1]);
      const all = await readFile(file);
      response.writeHead(206, { 'Content-Range': `bytes ${start}-${length - 1}/${length}`, 'Content-Length': length - start, ETag: '"x"' });
      if (breaks++ >= 2) {
        response.end(all.subarray(start));
        return true;
      }
      response.write(all.subarray(start, start + 2_500_000));
      setTimeout(() => response.destroy(), 200);
      return true;
    };
    const broken = await load({ clear: true });
    assert.equal(broken.pixels, first.pixels, 'a broken connection is taken up again');
    assert(breaks > 2, `${breaks} requests`);

    // Gone altogether: an error, and the next load goes on with what has arrived.
    traffic.faults[name] = (request, response, file, length) => {
      const start = Number(/bytes=(\d+)-/.exec(request.headers.range)[1]);
      if (start >= 2_000_000) {
        response.writeHead(404).end();
        return true;
      }
      return false;
    };
    let cut = 0;
    const cutOff = traffic.faults[name];
    traffic.faults[name] = async (request, response, file, length) => {
      if (cutOff(request, response, file, length)) return true;
      cut++;
      const all = await readFile(file);
      response.writeHead(206, { 'Content-Range': `bytes 0-${length - 1}/${length}`, 'Content-Length': length, ETag: '"y"' });
      response.write(all.subarray(0, 3_000_000));
      setTimeout(() => response.destroy(), 200);
      return true;
    };
    await assert.rejects(load({ clear: true }), /404/);
    assert.equal(cut, 1);
    traffic.faults[name] = async (request, response, file, length) => {
      const start = Number(/bytes=(\d+)-/.exec(request.headers.range)[1]);
      const all = await readFile(file);
      response.writeHead(206, { 'Content-Range': `bytes ${start}-${length - 1}/${length}`, 'Content-Length': length - start, ETag: '"y"' });
      response.end(all.subarray(start));
      return true;
    };
    const resumed = await load();
    assert.equal(resumed.cache.state, 'resumed');
    assert.equal(resumed.pixels, first.pixels);

    // A server that knows no ranges.
    traffic.faults[name] = async (request, response, file) => {
      const all = await readFile(file);
      response.writeHead(200, { 'Content-Length': all.length, ETag: '"z"' });
      response.end(all);
      return true;
    };
    const plain = await load({ clear: true });
    assert.equal(plain.cache.state, 'stored');
    assert.equal(plain.pixels, first.pixels);
    delete traffic.faults[name];

    // No room: nothing is kept, everything works.
    const session = await page.createCDPSession();
    await page.evaluate(async () => (await navigator.storage.getDirectory()).removeEntry('infgen-weights', { recursive: true }));
    await session.send('Storage.overrideQuotaForOrigin', { origin: base, quotaSize: 2 << 20 });
    const full = await load();
    assert.equal(full.cache.state, 'off');
    assert.match(full.cache.reason, /quota/);
    assert.equal(full.pixels, first.pixels);
    const left = await page.evaluate(async () => {
      const root = await (await navigator.storage.getDirectory()).getDirectoryHandle('infgen-weights');
      let count = 0;
      for await (const _ of root.keys()) count++;
      return count;
    });
    assert.equal(left, 0, 'nothing half-written stays');
    await session.send('Storage.overrideQuotaForOrigin', { origin: base });
    await page.close();
  },

  /** The page itself: first picture, resized, compared, a picture dropped in, a phone. */
  async 'the demo page works'() {
    const page = await fresh('/?dtype=f32&latent=work/small.safetensors', { width: 340, height: 270 });
    const ready = async () => {
      const over = () => document.body.dataset.state === 'failed' || (document.body.dataset.state === 'ready' && demo.shown?.final);
      await page.waitForFunction(over, { timeout: 240_000 });
      assert.equal(await page.evaluate(() => document.body.dataset.state), 'ready', await page.$eval('#message p', (p) => p.textContent));
    };
    const pictured = () => page.evaluate(() => {
      const view = document.getElementById('view');
      const copy = new OffscreenCanvas(view.width, view.height).getContext('2d');
      copy.drawImage(view, 0, 0);
      const { data } = copy.getImageData(0, 0, view.width, view.height);
      const box = view.getBoundingClientRect();
      return { width: view.width, height: view.height, css: [box.width, box.height], ratio: devicePixelRatio, colours: new Set(data).size };
    });
    const physical = ({ width, height, css, ratio }) => {
      assert.deepEqual([width, height], css.map((side) => Math.round(side * ratio)), 'one canvas pixel for one of the screen');
    };
    const shot = async (name) => {
      await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
      await page.screenshot({ path: path.join(work, `${name}.png`) });
    };
    await ready();
    const small = await pictured();
    physical(small);
    assert(small.colours > 50, 'a picture');
    await shot('demo');
    note(`demo: ${small.width}x${small.height}`);

    await page.setViewport({ width: 420, height: 250 });
    await page.waitForFunction((w) => document.getElementById('view').width !== w, { timeout: 120_000 }, small.width);
    await ready();
    physical(await pictured());
    await shot('demo-resized');

    await page.keyboard.press('c');
    await page.waitForFunction(() => !document.getElementById('plain').hidden, { timeout: 240_000 });
    await ready();
    await shot('demo-compare');
    await page.keyboard.press('c');
    await page.keyboard.press('+');
    await page.waitForFunction(() => document.body.dataset.state === 'ready' && demo.shown.size.h > demo.shown.rect.height, { timeout: 240_000 });
    physical(await pictured());
    await shot('demo-zoomed');
    await page.keyboard.press('0');
    await page.waitForFunction(() => document.body.dataset.state === 'ready' && demo.shown.size.h === demo.shown.rect.height, { timeout: 240_000 });

    await (await page.$('#file')).uploadFile(path.join(work, 'broken.safetensors'));
    await page.waitForFunction(() => !document.getElementById('message').hidden);
    assert.match(await page.$eval('#message p', (p) => p.textContent), /broken\.safetensors: not a valid/);
    await shot('demo-broken');
    await page.click('#dismiss');

    await page.setViewport({ width: 320, height: 480 });
    await (await page.$('#file')).uploadFile(path.join(work, 'strip.png'));
    await page.waitForFunction(() => demo.name === 'strip', { timeout: 240_000 });
    await ready();
    physical(await pictured());
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.equal(overflow, 0, 'nothing sticks out of a phone');
    await shot('demo-phone');
    await page.click('#save');
    await shot('demo-save');
    assert.match(await page.$eval('#cost', (p) => p.textContent), /GPU memory/);
    await page.close();
  },

  async 'a browser without WebGPU is told so'() {
    const page = await browser.newPage();
    await page.setViewport({ width: 420, height: 330 });
    await page.evaluateOnNewDocument(() => Object.defineProperty(Navigator.prototype, 'gpu', { get: () => undefined }));
    await page.goto(base);
    await page.waitForFunction(() => document.body.dataset.state === 'failed');
    assert.match(await page.$eval('#message p', (p) => p.textContent), /no WebGPU/);
    await page.screenshot({ path: path.join(work, 'demo-no-webgpu.png') });
    await page.close();
  },

  /** Memory after many decodes of changing size in one page. */
  async 'memory stays flat'() {
    const decodes = mode === 'soak' ? 200 : 24;
    const page = await fresh();
    await page.evaluate(async () => {
      const { Engine } = await import('/infgen/infgen.js');
      window.engine = await Engine.create();
      window.latent = await engine.loadLatent('/work/small.safetensors');
    });
    const resident = () => {
      // Every process of this browser: the page, its worker and the GPU are three of them.
      const all = execFileSync('ps', ['-eo', 'pid,ppid,rss', '--no-headers'], { encoding: 'utf8' }).trim().split('\n').map((line) => line.trim().split(/\s+/).map(Number));
      const tree = new Set([browser.process().pid]);
      for (let grown = true; grown; ) {
        grown = false;
        for (const [pid, parent] of all) {
          if (tree.has(parent) && !tree.has(pid)) grown = Boolean(tree.add(pid));
        }
      }
      return all.filter(([pid]) => tree.has(pid)).reduce((sum, [, , kib]) => sum + kib, 0) / 1024;
    };
    const samples = [];
    for (let i = 0; i < decodes; i++) {
      const at = await page.evaluate(async (step) => {
        const [width, height] = [16 + ((step * 37) % 72), 16 + ((step * 23) % 48)];
        if (step % 2) await engine.decodeToCanvas(latent, document.getElementById('canvas'), { width, height });
        else await engine.decode(latent, width, height);
        const { gpu, wasm } = await engine.memory();
        globalThis.gc?.();
        return { gpu: gpu.current, wasm, heap: performance.memory.usedJSHeapSize };
      }, i);
      samples.push({ ...at, resident: resident() });
      if (i % 20 === 0) note(`soak ${i}: ${JSON.stringify(samples.at(-1))}`);
    }
    const mean = (from, to, key) => samples.slice(from, to).reduce((sum, s) => sum + s[key], 0) / (to - from);
    const third = Math.floor(decodes / 3);
    const growth = (key) => mean(2 * third, 3 * third, key) - mean(third, 2 * third, key);
    const summary = Object.fromEntries(['gpu', 'wasm', 'heap', 'resident'].map((key) => [key, { middle: mean(third, 2 * third, key), growth: growth(key) }]));
    note(`soak of ${decodes} decodes: ${JSON.stringify(summary)}`);
    await writeFile(path.join(work, 'soak.json'), JSON.stringify({ summary, samples }));
    assert.equal(samples.at(-1).wasm, samples[third].wasm, 'wasm memory does not grow');
    assert(growth('heap') < 1 << 20, 'the page holds nothing more');
    assert(growth('gpu') < 1 << 20, 'the GPU holds nothing more');
    if (mode === 'soak') assert(growth('resident') < 24, `the browser grew by ${growth('resident')} MiB`);
    await page.close();
  },
};

let failed = null;
const shared = {};
try {
  await mkdir(work, { recursive: true });
  for (const [name, check] of Object.entries(checks)) {
    if (mode === 'soak' ? name !== 'memory stays flat' : mode !== 'test' && !mode.split('|').some((part) => name.includes(part))) continue;
    note(`-- ${name}`);
    try {
      await check.call(shared);
    } catch (error) {
      throw new Error(`${name}: ${error.message}`, { cause: error });
    }
  }
  note('all checks passed');
} catch (error) {
  failed = error;
  console.error(error);
} finally {
  await browser.close();
  server.close();
  server.closeAllConnections();
  await rm(site, { recursive: true, force: true });
  await rm(profile, { recursive: true, force: true, maxRetries: 5 });
}
process.exit(failed ? 1 : 0);
