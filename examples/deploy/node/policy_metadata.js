// The metadata of an ONNX file, which ONNX Runtime's JavaScript interface does not hand out.
//
// An ONNX file is one protobuf message: fields one after another, each a tag (number << 3 | wire type) and
// its content. Field 14 of it, metadata_props, repeats messages of a key (field 1) and a value (field 2).

const METADATA_PROPS = 14;
const UTF8 = new TextDecoder();

/** Return {key: value} of the file's metadata; throws where the bytes are no whole protobuf message. */
export function readMetadata(bytes) {
  const metadata = {};
  for (const { number, content } of fields(bytes)) {
    if (number !== METADATA_PROPS) continue;
    const entry = [...fields(content)];
    const text = (wanted) => UTF8.decode(entry.find((field) => field.number === wanted)?.content);
    metadata[text(1)] = text(2);
  }
  return metadata;
}

/** Yield number and content of each field; content is empty for fields that are plain numbers. */
function* fields(bytes) {
  let place = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (place >= bytes.length || scale > 2 ** 63) throw new Error("truncated, or no ONNX file");
      const byte = bytes[place++];
      value += (byte & 127) * scale; // exact as far as sizes of files go
      if (byte < 128) return value;
    }
  };
  while (place < bytes.length) {
    const tag = varint();
    const [number, type] = [Math.floor(tag / 8), tag % 8];
    let size = 0;
    if (type === 0) varint();
    else if (type === 1) size = 8;
    else if (type === 2) size = varint();
    else if (type === 5) size = 4;
    else throw new Error("truncated, or no ONNX file");
    if (place + size > bytes.length) throw new Error("truncated, or no ONNX file");
    yield { number, content: bytes.subarray(place, place + (type === 2 ? size : 0)) };
    place += size;
  }
}
