"""Pictures of a report's page at three widths, light and dark: ``python docs/pictures.py`` makes them in Chromium.

The model is a small decoder with random weights: what is shown is the page, not a result.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune

#: Where the pictures are.
PICTURES = Path(__file__).parent / "pictures"

#: (width, height) of what is seen, in pixels.
SIZES = ((360, 2500), (768, 1900), (1200, 1800))


def write_page(path: Path) -> None:
    """Writes the page of a decoder of 24 layers without 40 % of its parameters."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = LlamaConfig(vocab_size=256, num_hidden_layers=24, max_position_embeddings=64, **sizes)
    model = LlamaForCausalLM(config).eval()
    data = [{"input_ids": torch.randint(256, (4, 32))} for _ in range(8)]
    fxprune.write_html(fxprune.compile(model, data, 0.6, progress=False), path)


def shoot(chromium: str, page: Path, picture: Path, size: tuple[int, int], *, dark: bool) -> None:
    """Takes a picture of the top of a page.

    Args:
        chromium: the browser's binary.
        page: an HTML file.
        picture: the PNG file to write.
        size: (width, height) in pixels.
        dark: whether the reader prefers dark pages.

    Raises:
        subprocess.CalledProcessError: the browser fails.
    """
    flags = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--disable-lcd-text", "--disable-dev-shm-usage"]
    flags += ["--force-dark-mode"] if dark else []
    flags += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    # no window is as narrow as a phone: the page lies in a frame of that width
    frame = page.with_name("frame.html")
    style = f"border:0;width:{size[0]}px;height:{size[1]}px"
    scheme = "dark" if dark else "light"
    frame.write_text(
        f'<meta name="color-scheme" content="{scheme}"><body style="margin:0"><iframe src="{page.name}" style="{style}"></iframe>'
    )
    window = f"--window-size={max(size[0], 600)},{size[1]}"
    command = [chromium, *flags, window, f"--screenshot={picture}", frame.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(picture) as whole:
        whole.convert("RGB").crop((0, 0, *size)).quantize(256).save(picture, optimize=True)


def main() -> int:
    """Makes all pictures; returns 1 without a Chromium."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("pictures: expected chromium on the path, got none: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_page(page)
        PICTURES.mkdir(exist_ok=True)
        for size in SIZES:
            for dark in (False, True):
                name = f"page-{size[0]}-{'dark' if dark else 'light'}.png"
                shoot(chromium, page, PICTURES / name, size, dark=dark)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
