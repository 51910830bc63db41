// Questions to the server: JSON, and frames (columns and pixels of images in one message).

const KEPT = 24; // frames
const frames = new Map();

function query(name, parameters) {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) {
    for (const part of [value].flat()) if (part !== null && part !== undefined && part !== "") search.append(key, part);
  }
  return `api/${name}?${search}`;
}

async function asked(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The viewer does not answer: is it still running?");
  }
  if (!response.ok) {
    const content = await response.json().catch(() => ({}));
    throw new Error(content.error ?? `The viewer answered with status ${response.status}.`);
  }
  return response;
}

export async function ask(name, parameters = {}, options = {}) {
  return (await asked(query(name, parameters), options)).json();
}

export const begin = (name, parameters) => ask(name, parameters, { method: "POST" });

// A frame: {columns, shape: [C, H, W], pixels, …}. Frames that were asked for last are kept.
export function frame(name, parameters) {
  const address = query(name, parameters);
  const entry = frames.get(address) ?? { bank: parameters.bank, version: null };
  frames.delete(address);
  frames.set(address, entry);
  entry.promise ??= asked(address).then(response => response.arrayBuffer()).then(buffer => {
    const found = decode(buffer);
    entry.version = found.version ?? null;
    if (found.version) renew(parameters.bank, found.version);
    return found;
  });
  entry.promise.catch(() => frames.get(address) === entry && frames.delete(address));
  while (frames.size > KEPT) frames.delete(frames.keys().next().value);
  return entry.promise;
}

// A bank that has grown or was measured: what is kept of it is out of date.
export function renew(bank, version) {
  for (const [address, entry] of frames) {
    if (entry.bank === bank && entry.version !== null && entry.version !== version) frames.delete(address);
  }
}

function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return { ...head, pixels: new Uint8Array(buffer, 4 + length) };
}

// Draw images of a frame onto a canvas, pixel for pixel, `columns` beside each other; CSS enlarges it.
export function paint(canvas, found, places, columns = 1) {
  const [channels, height, width] = found.shape;
  const picture = new ImageData(width * columns, height * Math.ceil(places.length / columns));
  const target = new Uint32Array(picture.data.buffer);
  const area = height * width;
  const [green, blue] = channels === 1 ? [0, 0] : [area, 2 * area];
  const source = found.pixels;
  places.forEach((place, number) => {
    let at = place * channels * area;
    let to = (Math.floor(number / columns) * height * columns + (number % columns)) * width;
    for (let row = 0; row < height; row++, to += width * (columns - 1)) {
      for (let column = 0; column < width; column++, at++, to++) {
        target[to] = 0xff000000 | (source[at + blue] << 16) | (source[at + green] << 8) | source[at];
      }
    }
  });
  if (canvas.width !== picture.width || canvas.height !== picture.height) [canvas.width, canvas.height] = [picture.width, picture.height];
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(picture, 0, 0);
}
