"""Videos whose frames carry their own numbers, so that a test can tell which frame it was given."""

from fractions import Fraction

import av
import numpy as np
import pytest

WIDTH, HEIGHT = 64, 48  # eight bars of 8 pixels
GOP_OF_12 = {"g": "12", "bf": "2", "sc_threshold": "0"}


def numbered(number: int) -> np.ndarray:
    """A frame (HEIGHT, WIDTH, 3) with its number as eight black or white bars."""
    bars = [255 * (number >> bit & 1) for bit in range(8)]
    return np.broadcast_to(np.repeat(np.uint8(bars), WIDTH // 8)[None, :, None], (HEIGHT, WIDTH, 3))


def number_of(frame: np.ndarray) -> int:
    """The number that a frame shows, whatever a codec did to its colours."""
    bars = frame.astype(float).mean(axis=(0, 2)).reshape(8, -1).mean(axis=1)
    return sum(int(bar > 127) << bit for bit, bar in enumerate(bars))


def write_video(path, num_frames=60, codec="libx264", options=None, times_ms=None):
    """Writes a video of numbered frames, 10 a second or at the times that are given."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or GOP_OF_12)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if times_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(i)), format="rgb24")
            if times_ms:
                frame.pts, frame.time_base = times_ms[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def copy_packets(source, target, change=lambda packets: packets, options=None):
    """Writes the packets of `source` anew, as `change` makes them of the list of packets."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options or {}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        new.start_encoding()  # writes the header even where no packet follows
        for packet in change([packet for packet in old.demux(video=0) if packet.size]):
            packet.stream = stream
            new.mux(packet)
    return target


def packet_positions(path) -> list[tuple[int, int]]:
    """Offset and size in bytes of each packet of the video stream."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
