// A static file server for the demo and the tests: ranges, types, no caching by the browser. scripts/serve-web runs it.

import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.mjs': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.json': 'application/json',
  '.wasm': 'application/wasm',
  '.png': 'image/png',
  '.jpg': 'image/jpeg',
  '.svg': 'image/svg+xml',
};

/** Serves `root`; `intercept(request, response, file, size)` may answer instead and then returns true. */
export function serve(root, { port = 0, host = '127.0.0.1', intercept = () => false } = {}) {
  const server = createServer(async (request, response) => {
    try {
      const url = new URL(request.url, 'http://localhost');
      let file = path.join(root, path.normalize(decodeURIComponent(url.pathname)));
      let facts = await stat(file);
      if (facts.isDirectory()) {
        file = path.join(file, 'index.html');
        facts = await stat(file);
      }
      if (await intercept(request, response, file, facts.size)) return;
      const headers = {
        'Content-Type': TYPES[path.extname(file)] ?? 'application/octet-stream',
        'Cache-Control': 'no-cache',
        'Accept-Ranges': 'bytes',
        ETag: `"${facts.size}-${Math.round(facts.mtimeMs)}"`,
      };
      if (request.headers['if-none-match'] === headers.ETag) {
        response.writeHead(304, headers).end();
        return;
      }
      const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
      const fresh = !request.headers['if-range'] || request.headers['if-range'] === headers.ETag;
      if (range && fresh) {
        const start = Number(range[1]);
        const end = range[2] ? Math.min(Number(range[2]), facts.size - 1) : facts.size - 1;
        if (start > end) {
          response.writeHead(416, { 'Content-Range': `bytes */${facts.size}` }).end();
          return;
        }
        response.writeHead(206, { ...headers, 'Content-Range': `bytes ${start}-${end}/${facts.size}`, 'Content-Length': end - start + 1 });
        createReadStream(file, { start, end }).pipe(response);
        return;
      }
      response.writeHead(200, { ...headers, 'Content-Length': facts.size });
      createReadStream(file).pipe(response);
    } catch (error) {
      response.writeHead(error.code === 'ENOENT' ? 404 : 500).end();
    }
  });
  return new Promise((resolve, reject) => {
    server.on('error', reject);
    server.listen(port, host, () => resolve(server));
  });
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [root, port = '8080'] = process.argv.slice(2);
  const server = await serve(path.resolve(root), { port: Number(port) });
  console.log(`http://localhost:${server.address().port}/ (Ctrl-C stops)`);
}
