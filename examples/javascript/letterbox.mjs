// Fits an image into the network input as HEAT does: keep the ratio, pad right and bottom.
// An image is {height, width, rgb}, rgb a Uint8Array [height, width, 3].

/** Rounds halves to even, as Python does. */
export function round(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
}

/** For each output cell of a side: the first input cell that it takes, and how much of each. */
function taken(from, to) {
  const ratio = from / to;
  return Array.from({ length: to }, (_, cell) => {
    if (ratio > 1) {  // area averaging
      const begin = cell * ratio, end = Math.min((cell + 1) * ratio, from);
      const first = Math.floor(begin);
      const last = Math.min(from, Math.ceil(end - 1e-6));
      const weights = [];
      for (let index = first; index < last; ++index) {
        weights.push((Math.min(index + 1, end) - Math.max(index, begin)) / (end - begin));
      }
      return { first, weights };
    }
    const centre = Math.min(Math.max((cell + 0.5) * ratio - 0.5, 0), from - 1);  // linear
    const first = Math.min(Math.floor(centre), Math.max(0, from - 2));
    return { first, weights: from === 1 ? [1] : [1 - (centre - first), centre - first] };
  });
}

export function resized(image, height, width) {
  if (image.height === height && image.width === width) return image;
  const rows = taken(image.height, height), columns = taken(image.width, width);
  const rgb = new Uint8Array(height * width * 3);
  for (let y = 0; y < height; ++y) {
    for (let x = 0; x < width; ++x) {
      for (let channel = 0; channel < 3; ++channel) {
        let sum = 0;
        rows[y].weights.forEach((down, i) => columns[x].weights.forEach((across, j) => {
          const at = (rows[y].first + i) * image.width + columns[x].first + j;
          sum += down * across * image.rgb[at * 3 + channel];
        }));
        rgb[(y * width + x) * 3 + channel] = Math.min(255, Math.max(0, round(sum)));
      }
    }
  }
  return { height, width, rgb };
}

/** Returns the input, and the factors from image to network pixels, across and down. */
export function letterbox(image, height, width, pad) {
  const scale = Math.min(height / image.height, width / image.width);
  const h = Math.min(height, Math.max(1, round(image.height * scale)));
  const w = Math.min(width, Math.max(1, round(image.width * scale)));
  const small = resized(image, h, w);
  const rgb = Uint8Array.from({ length: height * width * 3 }, (_, i) => pad[i % 3]);
  for (let y = 0; y < h; ++y) rgb.set(small.rgb.subarray(y * w * 3, (y + 1) * w * 3), y * width * 3);
  return { input: rgb, factors: [w / image.width, h / image.height] };
}
