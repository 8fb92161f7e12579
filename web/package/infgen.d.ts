// Latents to pictures of any size in the browser, through WebGPU.

/** What can be read from: a URL (relative to the page), a file, or bytes. */
export type Source = string | URL | Blob | ArrayBuffer | ArrayBufferView;

/** A latent as diffusion pipelines hand it on (diffusers' `output_type="latent"`): scaled. */
export interface Latent {
  /** Row-major values in the order of `shape`. */
  data: Float32Array;
  /** `[C, h, w]`, or `[B, C, h, w]` of a batch, which `decode` refuses. */
  shape: number[];
  /** `sd`, `sdxl`, ...; null where it is not known. */
  space?: string | null;
}

export interface Progress {
  /** Share of the work that is done, 0 to 1. */
  done: number;
  /** The layer that was submitted last; `weights` while weights arrive. */
  layer: string;
}

export interface CallOptions {
  /** Stops the call within about 100 ms; it rejects with the code `Cancelled`. */
  signal?: AbortSignal;
  onProgress?: (progress: Progress) => void;
}

export interface LoadOptions extends CallOptions {
  /** Stands for the source in messages. */
  name?: string;
  /** 64 hexadecimal digits; a file with another SHA-256 is refused. */
  sha256?: string;
  /** Keep what comes from a URL in the origin private file system, and go on with it after an interruption. Default: true. */
  cache?: boolean;
}

export type ErrorCode =
  | 'Io' | 'Malformed' | 'Pickle' | 'MissingTensor' | 'TensorShape' | 'TensorType' | 'NonFiniteTensor' | 'F16Range' | 'Config'
  | 'NoBuiltin' | 'UnknownModel' | 'Invalid' | 'NonFinite' | 'NoAdapter' | 'MemoryCeiling' | 'HostMemory' | 'BufferTooLarge' | 'OutOfMemory'
  | 'DeviceLost' | 'Gpu' | 'Cancelled'
  /** The worker has died; create a new engine. */
  | 'Internal';

/** Every rejection: the messages are those of the native library. `name` is `AbortError` where `code` is `Cancelled`. */
export class InfgenError extends Error {
  readonly code: ErrorCode;
  /** Bytes that would be needed, and what is allowed: `MemoryCeiling`, `BufferTooLarge`. */
  readonly needed?: number;
  readonly limit?: number;
}

/** How the cache served a load. */
export interface CacheUse {
  /** `hit`: all of it was there; `resumed`: a part was; `stored`: all of it came from the network and is kept; `off`: nothing is
   * kept, for `reason`; `none`: the source was no URL. */
  state: 'hit' | 'resumed' | 'stored' | 'off' | 'none';
  reason?: string;
}

export interface Device {
  name: string;
  backend: string;
  kind: 'discrete' | 'integrated' | 'virtual' | 'software' | 'other';
  f16: boolean;
  max_buffer: number;
  max_binding: number;
  timestamps: boolean;
}

export interface DecoderFacts {
  model: string;
  latentChannels: number;
  /** Pixels a latent value side, at the latent's native size. */
  scale: number;
  latentSpace: string | null;
  /** Whether it decodes to any size, or to `scale` times the latent only. */
  anySize: boolean;
  maxStepScale: number;
  /** GPU memory of its weights. */
  weightsBytes: number;
  /** Largest side of a picture in pixels. */
  maxSide: number;
}

export interface EncoderFacts {
  model: string;
  latentChannels: number;
  scale: number;
  latentSpace: string | null;
}

export interface EngineOptions {
  /** Storage of weights and activations; sums are f32 in both. Default: `f16`. */
  dtype?: 'f16' | 'f32';
  /** Ceiling on GPU memory in bytes: what does not fit is refused before it starts. */
  memory?: number;
  /** Ask the device for no more than WebGPU's default limits, and for no `shader-f16`. */
  defaultLimits?: boolean;
  /** Where `infgen-worker.js` is, if not beside this module. */
  workerUrl?: string | URL;
  signal?: AbortSignal;
}

export interface Rect {
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface CanvasOptions extends CallOptions {
  /** Size of the picture, which becomes the canvas's. Default: the canvas's own. */
  width?: number;
  height?: number;
}

export interface EncodeOptions extends CallOptions {
  /** Size that the picture is resized to first, rounded down to steps of the encoder's `scale`. Default: its own. */
  width?: number;
  height?: number;
  /** Stands for the picture in messages. */
  name?: string;
}

/** A PNG, JPEG or WebP file, or whatever `createImageBitmap` takes. */
export type Picture = Source | ImageData | ImageBitmapSource;

/** A GPU device in a worker. One GPU call runs at a time; others wait for it. */
export class Engine {
  static create(options?: EngineOptions): Promise<Engine>;
  readonly device: Device;
  /** Loads a decoder (InfGen, AutoencoderKL or TAESD), which `decode` then uses; without a source the one that ships. */
  loadDecoder(source?: Source, options?: LoadOptions): Promise<Decoder>;
  /** Loads an encoder, which `encode` then uses; without a source the one that ships. */
  loadEncoder(source?: Source, options?: LoadOptions): Promise<Encoder>;
  /** Reads a `.safetensors` (tensor `latent`) or `.npy` file. */
  loadLatent(source: Source, options?: CallOptions & { name?: string }): Promise<Latent>;
  /** The bytes of a `.safetensors` file. */
  saveLatent(latent: Latent): Promise<Uint8Array>;
  encode(image: Picture, options?: EncodeOptions): Promise<Latent>;
  /** The picture at exactly `width` x `height` pixels. */
  decode(latent: Latent, width: number, height: number, options?: CallOptions): Promise<ImageData>;
  /** RGB values `[height, width, 3]`, -1 to 1 before clamping and rounding. */
  decodeFloat(latent: Latent, width: number, height: number, options?: CallOptions): Promise<Float32Array>;
  /** Draws the picture on a canvas without reading it back. The canvas belongs to this engine from then on. */
  decodeToCanvas(latent: Latent, canvas: HTMLCanvasElement | OffscreenCanvas, options?: CanvasOptions): Promise<void>;
  /** Computes what is global to a decode, of which `region` then gives any rectangle. */
  prepare(latent: Latent, width: number, height: number, options?: CallOptions): Promise<Decoding>;
  /** What a decode will need, before it runs. */
  estimate(latent: Latent, width: number, height: number): Promise<{ peakBytes: number; flops: number }>;
  /** Bytes of GPU memory now and at most, and of wasm memory. */
  memory(): Promise<{ gpu: { current: number; peak: number }; wasm: number }>;
  /** Frees the buffers that are kept from the last decode for the next. */
  trim(): Promise<void>;
  /** Removes all cached weights of this origin. */
  clearCache(): Promise<void>;
  /** Ends the worker and frees everything. */
  dispose(): void;
}

/** Weights on the GPU. Freed with `free()`, or when the page has dropped it and the garbage is collected. */
export class Decoder {
  readonly facts: DecoderFacts;
  readonly cache: CacheUse;
  decode(latent: Latent, width: number, height: number, options?: CallOptions): Promise<ImageData>;
  decodeFloat(latent: Latent, width: number, height: number, options?: CallOptions): Promise<Float32Array>;
  decodeToCanvas(latent: Latent, canvas: HTMLCanvasElement | OffscreenCanvas, options?: CanvasOptions): Promise<void>;
  prepare(latent: Latent, width: number, height: number, options?: CallOptions): Promise<Decoding>;
  estimate(latent: Latent, width: number, height: number): Promise<{ peakBytes: number; flops: number }>;
  free(): void;
}

export class Encoder {
  readonly facts: EncoderFacts;
  readonly cache: CacheUse;
  encode(image: Picture, options?: EncodeOptions): Promise<Latent>;
  free(): void;
}

/** A decode from which rectangles are taken, each equal to that crop of the whole. */
export class Decoding {
  readonly width: number;
  readonly height: number;
  region(rect: Rect, options?: CallOptions): Promise<ImageData>;
  /** Draws a rectangle on a canvas, which takes its size. */
  regionToCanvas(rect: Rect, canvas: HTMLCanvasElement | OffscreenCanvas, options?: CallOptions): Promise<void>;
  free(): void;
}
