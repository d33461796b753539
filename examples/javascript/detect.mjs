// Runs a bundle of HEAT, exported with --format onnx, in Node.
//
//     npm install
//     node detect.mjs BUNDLE IMAGE.ppm
//
// Prints one line of JSON: boxes in pixels of the image, scores, names. PPM is what any image tool
// writes; a program that has an image library gives its RGB bytes to letterbox() instead.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { letterbox } from "./letterbox.mjs";

process.env.ORT_DISABLE_TELEMETRY ??= "1";  // before it is loaded
const ort = await import("onnxruntime-node");

const DEFAULT_THRESHOLD = 0.3;
const SAME_OBJECT = 0.4;

function readPpm(path) {
  const bytes = readFileSync(path);
  const head = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.subarray(0, 64).toString("latin1"));
  if (!head) throw new Error(`${path} is no binary PPM (P6) of 8 bits`);
  const [width, height] = [Number(head[1]), Number(head[2])];
  const rgb = bytes.subarray(head[0].length, head[0].length + width * height * 3);
  if (rgb.length < width * height * 3) throw new Error(`${path} ends early`);
  return { height, width, rgb };
}

export async function load(bundle) {
  const card = JSON.parse(readFileSync(join(bundle, "card.json"), "utf8"));
  if (card.raw) throw new Error(`${bundle} is raw: its graph ends before the boxes`);
  if (card.model_format !== "onnx") throw new Error(`${bundle} is ${card.model_format}: export onnx`);
  const session = await ort.InferenceSession.create(join(bundle, card.model), {
    intraOpNumThreads: card.threads,
    executionProviders: ["cpu"],
  });
  return { card, session };
}

export async function detect({ card, session }, image) {
  const { height, width, pad_rgb: pad } = card.input;
  const { input, factors } = letterbox(image, height, width, pad);
  const outputs = await session.run({ image: new ort.Tensor("uint8", input, [1, height, width, 3]) });
  const [boxes, scores, labels] = Object.keys(card.outputs).map((name) => outputs[name].data);
  const found = [];
  scores.forEach((score, i) => {
    const name = card.names[Number(labels[i])];
    const least = Math.fround(card.thresholds?.[name] ?? DEFAULT_THRESHOLD); // float32, as scores are
    if (score <= 0 || score < least) return;
    const box = Array.from(boxes.subarray(i * 4, i * 4 + 4), (side, axis) =>
      Math.min(Math.max(side / factors[axis % 2], 0), axis % 2 ? image.height : image.width));
    found.push({ box, score, name });
  });
  const kept = once(found);
  return {
    boxes_xyxy_px: kept.map((each) => each.box),
    scores: kept.map((each) => each.score),
    names: kept.map((each) => each.name),
  };
}

/** Each object once: of boxes that overlap, whatever their classes, the best; best first. */
function once(found) {
  const kept = [];
  for (const object of found.sort((a, b) => b.score - a.score)) {
    if (kept.every((better) => overlap(better.box, object.box) <= SAME_OBJECT)) kept.push(object);
  }
  return kept;
}

function overlap(a, b) {
  const wide = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const tall = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  const shared = Math.max(wide, 0) * Math.max(tall, 0);
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return shared / Math.max(area(a) + area(b) - shared, 1e-9);
}

const [bundle, path] = process.argv.slice(2);
if (path === undefined) {
  console.error("usage: node detect.mjs BUNDLE IMAGE.ppm");
  process.exit(2);
}
try {
  console.log(JSON.stringify(await detect(await load(bundle), readPpm(path))));
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exit(2);
}
