"""Serve an exported model over HTTP.

    python serve.py model.onnx [--port 8000]

POST the bytes of an image to /predict. Needs NumPy, ONNX Runtime and Pillow, not featkit or torch.
"""

import argparse
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

MAX_BYTES = 50_000_000
Image.MAX_IMAGE_PIXELS = 50_000_000  # Pillow refuses images of twice as many
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB, as featkit does.

    Grey of 16 bits is divided by 257, so that white stays white; Pillow's own conversion makes
    everything above 255 white. Transparent pixels are composited on white.

    Raises:
        ValueError: if the mode does not define which value is white.
    """
    if image.mode.startswith("I;16"):
        grey = np.rint(np.asarray(image, np.float64) / 257)
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} does not say which value is white")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


class Model:
    """An exported run: network, head, temperature, class names and preprocessing in one file."""

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        properties = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {
            key: json.loads(text) for key, text in properties.items() if "." not in key
        }

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return pixels ``(1, 3, h, w)`` from 0 to 1, resized and cropped as featkit does."""
        preprocessing = self.metadata["preprocessing"]
        image = to_rgb(ImageOps.exif_transpose(image))
        size = preprocessing["resize"]
        if isinstance(size, int):  # of the shorter edge
            shorter = min(image.size)
            size = [
                size if edge == shorter else int(size * edge / shorter) for edge in image.size[::-1]
            ]
        image = image.resize(tuple(size[::-1]), FILTERS[preprocessing["interpolation"]])
        height, width = preprocessing["crop"] or size
        margins = image.width - width, image.height - height
        left, top = (round(each / 2) if each > 0 else int(each / 2) for each in margins)
        pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32)
        return pixels.transpose(2, 0, 1)[None] / 255

    def predict(self, content: bytes) -> dict[str, object]:
        """Return class, confidence and whether the image is rejected as unknown.

        With several labels per image: those that reach their threshold, and all probabilities.
        """
        pixels = self.prepare(Image.open(io.BytesIO(content)))
        scores = self.session.run(None, {"images": pixels})[0][0]
        classes, thresholds = self.metadata["classes"], self.metadata.get("thresholds")
        if thresholds is not None:
            probabilities = [round(float(score), 6) for score in scores]
            return {
                "labels": [classes[place] for place in np.flatnonzero(scores >= thresholds)],
                "probabilities": dict(zip(classes, probabilities, strict=True)),
            }
        threshold = self.metadata.get("threshold")
        return {
            "predicted": classes[scores.argmax()],
            "confidence": round(float(scores.max()), 6),
            "rejected": bool(threshold is not None and scores.max() < threshold),
        }


def make_server(model: Model, host: str, port: int) -> ThreadingHTTPServer:
    """Return the server; ``serve_forever`` answers one request per thread."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds without data from a client

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/predict" or not length.isdecimal() or int(length) > MAX_BYTES:
                return self.answer(
                    400, {"error": f"POST an image of at most {MAX_BYTES} bytes to /predict"}
                )
            try:
                self.answer(200, model.predict(self.rfile.read(int(length))))
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                self.answer(400, {"error": f"not an image that can be read: {error}"})

        def answer(self, status: int, content: dict[str, object]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer((host, port), Handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    make_server(Model(options.model), options.host, options.port).serve_forever()
