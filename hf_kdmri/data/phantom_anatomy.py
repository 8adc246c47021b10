"""Draw one generated slice: a head with skull, brain and ventricles, and a lesion of one of the three classes.

Coordinates are those of the image in [-1, 1], x to the right and y down. Intensities are in [0, about 1] until the
scan's gain, bias field and noise are applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

PLANES = ("axial", "coronal", "sagittal")
_INNER_SKULL = 0.84  # head radius at which the brain ends; 1 is the skin
_ANGLES = np.linspace(-np.pi, np.pi, 65)


@dataclass
class Lesion:
    """What is the same for one tumour over all slices of a patient.

    Attributes:
        label: 0 meningioma, 1 glioma, 2 pituitary.
        radius: Largest radius, in half image widths.
        offset: Per plane, where the centre lies (two numbers whose meaning depends on the class).
        harmonics: (7, 2) cosine and sine amplitudes of the outline, relative to the radius.
        brightness: Intensity of the enhancing part.
        core: Intensity inside the ring.
        solid: 1 for homogeneous enhancement, 0 for a thin ring around a core.
    """

    label: int
    radius: float
    offset: np.ndarray
    harmonics: np.ndarray
    brightness: float
    core: float
    solid: float


@dataclass
class Anatomy:
    """What is the same over all slices of a patient."""

    aspect: float
    scalp: float
    ventricles: float
    sulci: float
    grey: float
    contrast: float
    texture: np.ndarray = field(repr=False)  # (4, N, N) band-passed noise


@dataclass
class Scan:
    """What is the same over all slices of one PID: the scanner's side."""

    gain: float
    gamma: float
    noise: float
    bias: np.ndarray
    zoom: float
    rotation: float
    shift: np.ndarray


def draw_anatomy(rng: Generator, size: int) -> Anatomy:
    """Draw a patient's head, with texture for `size` x `size` pixels."""
    return Anatomy(
        aspect=rng.uniform(0.92, 1.08),
        scalp=rng.uniform(0.45, 1.0),
        ventricles=rng.uniform(0.6, 1.6),
        sulci=rng.uniform(0.08, 0.2),
        grey=rng.uniform(0.3, 0.42),
        contrast=rng.uniform(0.01, 0.06),
        texture=np.stack([_band_noise(rng, size, frequency) for frequency in (9, 9, 3, 16)]),
    )


def draw_scan(rng: Generator) -> Scan:
    """Draw a scan's gain, bias field, noise and head position."""
    return Scan(
        gain=rng.uniform(500, 6000),
        gamma=rng.uniform(0.9, 1.1),
        noise=rng.uniform(0.008, 0.03),
        bias=rng.normal(0, 0.08, 3),
        zoom=rng.uniform(0.95, 1.1),
        rotation=rng.normal(0, 0.06),
        shift=rng.normal(0, 0.025, 2),
    )


def draw_lesion(rng: Generator, label: int) -> Lesion:
    """Draw a patient's tumour; one in twenty looks somewhat like another class, as real ones do."""
    unusual = rng.random() < 0.05
    waviness = (0.05, 0.11, 0.045)[label]
    harmonics = rng.normal(0, waviness, (7, 2)) / np.sqrt(np.arange(1, 8))[:, None]
    radius = rng.uniform(*((0.18, 0.3), (0.18, 0.34), (0.09, 0.15))[label])
    if label == 1:
        solid = rng.uniform(0.5, 0.9) if unusual else rng.uniform(0, 0.4)
        brightness, core = rng.uniform(0.55, 0.9), rng.uniform(0.08, 0.25)
    else:
        solid = rng.uniform(0.2, 0.6) if unusual else rng.uniform(0.85, 1)
        brightness, core = rng.uniform(*((0.75, 1.0) if label == 0 else (0.6, 0.85))), rng.uniform(0.2, 0.4)
    # per plane: angle and depth (0 at the skull, 1 at the centre) for the first two classes, a shift for the third
    if label == 2:
        offset = rng.normal(0, 0.03, (3, 2))
    else:
        depth = rng.uniform(0.0, 0.12, 3) if label == 0 else rng.uniform(0.15, 0.85, 3)
        offset = np.stack([rng.uniform(-np.pi, np.pi, 3), depth], axis=1)
    return Lesion(label, radius, offset, harmonics, brightness, core, solid)


def draw_slice(
    rng: Generator, anatomy: Anatomy, scan: Scan, lesion: Lesion, plane: int, depth: float, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one slice.

    Args:
        rng: Source of this slice's own noise.
        anatomy: The patient.
        scan: The PID.
        lesion: The patient's tumour.
        plane: Index into `PLANES`.
        depth: Distance of the slice from the tumour's middle, -1 to 1 tumour radii.
        size: Side in pixels.

    Returns:
        The (size, size) int16 image and the (K, 2) outline of the tumour as x, y in pixels.
    """
    x, y = _head_grid(scan, size)
    head = _Head(anatomy, plane, depth)
    image = head.paint(x, y, anatomy, rng)
    centre = _lesion_centre(lesion, plane, head, rng)
    radius = lesion.radius * np.sqrt(1 - (0.8 * depth) ** 2)
    outline = _outline(lesion, radius, centre, head)
    image = _paint_lesion(image, x, y, centre, outline, lesion, anatomy.texture[3])
    points = centre + outline[:-1, None] * np.stack([np.cos(_ANGLES[:-1]), np.sin(_ANGLES[:-1])], axis=1)
    return _acquire(image, x, y, scan, rng), np.clip(_to_pixels(points, scan, size), 0, size - 1)


class _Head:
    """Shape of the head in one plane: an ellipse for the skull, and face or neck below it."""

    def __init__(self, anatomy: Anatomy, plane: int, depth: float) -> None:
        rx, ry = ((0.66, 0.82), (0.66, 0.66), (0.8, 0.66))[plane]
        self.plane = plane
        self.depth = depth
        self.rx, self.ry = rx * anatomy.aspect, ry / anatomy.aspect
        self.cy = (0.0, -0.2, -0.2)[plane]

    def radius(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """0 at the centre of the head, 1 at the skin."""
        return np.hypot(x / self.rx, (y - self.cy) / self.ry)

    def paint(self, x: np.ndarray, y: np.ndarray, anatomy: Anatomy, rng: Generator) -> np.ndarray:
        """The head without its lesion."""
        soft = 3.0 / x.shape[0]
        r = self.radius(x, y) + 0.02 * anatomy.texture[2]
        turn = 1.2 * self.depth  # neighbouring slices resemble each other
        gyri = np.cos(turn) * anatomy.texture[0] + np.sin(turn) * anatomy.texture[1]
        fine = anatomy.texture[3]
        brain = anatomy.grey + anatomy.contrast * np.tanh(2 * gyri) + 0.02 * fine
        brain -= anatomy.sulci * np.exp(-((gyri / 0.3) ** 2)) * np.clip(r / 0.84, 0, 1) ** 2
        image = brain * _below(r, _INNER_SKULL, soft)
        self._carve_ventricles(image, x, y, anatomy, soft)
        image = self._paint_vessels(image, x, y, rng)
        scalp = anatomy.scalp * (1 + 0.25 * fine)
        image += scalp * (_below(r, 1.0, soft) - _below(r, 0.92, soft)) + 0.06 * _below(r, 0.92, soft)
        if self.plane:
            tissue = np.clip(0.32 + 0.16 * gyri + 0.1 * fine, 0.02, anatomy.scalp)
            image = self._paint_below(image, x, y, r, tissue, soft)
        elif self.depth < -0.2:
            image = self._paint_orbits(image, x, y, anatomy.scalp, soft)
        return np.maximum(image, 0)

    def _carve_ventricles(self, image: np.ndarray, x: np.ndarray, y: np.ndarray, anatomy: Anatomy, soft: float) -> None:
        size = anatomy.ventricles * (1 - 0.5 * self.depth**2)
        if self.plane == 2:
            arc = np.abs(np.hypot(x, (y - self.cy) * 1.3) - 0.22) / (0.045 * size)
            dark = _below(arc, 1, 0.4) * _below(y - self.cy, 0.02, soft * 2)
        else:
            lobes = np.hypot((np.abs(x) - 0.09) / (0.05 * size), (y - self.cy) / (0.2 * size))
            dark = _below(lobes, 1, 0.3)
            dark = np.maximum(dark, 0.5 * np.exp(-((x / 0.012) ** 2)) * (np.abs(y - self.cy) > 0.25))
        image -= 0.75 * image * dark

    def _paint_vessels(self, image: np.ndarray, x: np.ndarray, y: np.ndarray, rng: Generator) -> np.ndarray:
        spots = int(rng.integers(2, 6))
        angle, distance = rng.uniform(-np.pi, np.pi, spots), rng.uniform(0.1, 0.8, spots)
        sinus = [(0.0, self.cy - 0.8 * self.ry, 0.03), (0.0, self.cy + 0.62 * self.ry, rng.uniform(0.02, 0.06))]
        vessels = [
            (d * np.cos(a) * self.rx, self.cy + d * np.sin(a) * self.ry, s)
            for a, d, s in zip(angle, distance, rng.uniform(0.01, 0.03, spots), strict=True)
        ]
        for vx, vy, s in sinus + vessels:
            image = image + rng.uniform(0.05, 0.3) * np.exp(-((x - vx) ** 2 + (y - vy) ** 2) / s**2)
        return image

    def _paint_below(
        self, image: np.ndarray, x: np.ndarray, y: np.ndarray, r: np.ndarray, tissue: np.ndarray, soft: float
    ) -> np.ndarray:
        """Face, skull base and neck: bright fat, grey muscle, dark air."""
        base = self.cy + 0.5 * self.ry
        width = (0.76 if self.plane == 1 else 0.78) * self.rx
        middle = 0.0 if self.plane == 1 else -0.12 + 0.25 * (y - base)
        inside = _below(np.abs(x - middle), width * (1 - 0.35 * np.clip(y - base, 0, 1)), soft)
        inside = inside * _below(base - y, 0, soft) * (1 - _below(r, 0.92, soft))
        return image * (1 - inside) + tissue * inside

    def _paint_orbits(self, image: np.ndarray, x: np.ndarray, y: np.ndarray, fat: float, soft: float) -> np.ndarray:
        eye = np.hypot(np.abs(x) - 0.24, y + 0.6)
        socket, globe = _below(eye, 0.17, soft), _below(eye, 0.11, soft)
        return (image * (1 - socket) + 0.8 * fat * socket) * (1 - globe) + 0.15 * globe


def _lesion_centre(lesion: Lesion, plane: int, head: _Head, rng: Generator) -> np.ndarray:
    first, second = lesion.offset[plane]
    if lesion.label == 2:  # the sella: midline at the base, in front of the centre
        home = ((0.0, -0.2), (0.0, head.cy + 0.5 * head.ry), (-0.14, head.cy + 0.5 * head.ry))[plane]
        return np.array(home) + np.array([first, second]) + rng.normal(0, 0.01, 2)
    if lesion.label == 0:  # rests on the inner side of the skull
        distance = _INNER_SKULL - second - 0.6 * lesion.radius / head.rx
    else:
        distance = (_INNER_SKULL - lesion.radius / head.rx) * (1 - second)
    angle = first + rng.normal(0, 0.05)
    return np.array([distance * np.cos(angle) * head.rx, head.cy + distance * np.sin(angle) * head.ry])


def _outline(lesion: Lesion, radius: float, centre: np.ndarray, head: _Head) -> np.ndarray:
    """Radius at each of `_ANGLES`, flattened where it would leave the skull."""
    orders = np.arange(1, 8)[:, None] * _ANGLES
    waves = (lesion.harmonics[:, :1] * np.cos(orders) + lesion.harmonics[:, 1:] * np.sin(orders)).sum(axis=0)
    reach = radius * np.clip(1 + waves, 0.4, 1.6)
    inside, outside = np.zeros_like(reach), reach.copy()
    for _ in range(10):
        middle = (inside + outside) / 2
        fits = head.radius(centre[0] + middle * np.cos(_ANGLES), centre[1] + middle * np.sin(_ANGLES)) < _INNER_SKULL
        inside, outside = np.where(fits, middle, inside), np.where(fits, outside, middle)
    return np.maximum(inside, 0.25 * radius)


def _paint_lesion(
    image: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    centre: np.ndarray,
    outline: np.ndarray,
    lesion: Lesion,
    fine: np.ndarray,
) -> np.ndarray:
    dx, dy = x - centre[0], y - centre[1]
    distance = np.hypot(dx, dy) / np.interp(np.arctan2(dy, dx), _ANGLES, outline)  # 1 on the outline
    if lesion.label == 1:  # oedema around it
        image = image * (1 - 0.3 * np.exp(-(((distance - 1) / 0.5) ** 2)))
    uneven = 1 + (0.3 if lesion.label == 1 else 0.06) * fine
    ring = np.exp(-(((distance - 0.85) / 0.16) ** 2))
    enhancement = np.maximum(ring, lesion.solid) * uneven
    tissue = lesion.core + (lesion.brightness - lesion.core) * enhancement
    inside = _below(distance, 1, 0.12)
    return image * (1 - inside) + tissue * inside


def _acquire(image: np.ndarray, x: np.ndarray, y: np.ndarray, scan: Scan, rng: Generator) -> np.ndarray:
    """Contrast, bias field, Rician noise and gain, as int16."""
    field_map = np.exp(scan.bias[0] * x + scan.bias[1] * y + scan.bias[2] * (x * x + y * y))
    noise = rng.normal(0, scan.noise, (2, *image.shape))
    signal = np.hypot(np.maximum(image, 0) ** scan.gamma * field_map + noise[0], noise[1])
    return np.clip(np.rint(signal * scan.gain), 0, 32767).astype(np.int16)


def _head_grid(scan: Scan, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Head coordinates of every pixel."""
    axis = np.linspace(-1, 1, size)
    x, y = axis[None, :] - scan.shift[0], axis[:, None] - scan.shift[1]
    cos, sin = np.cos(scan.rotation) / scan.zoom, np.sin(scan.rotation) / scan.zoom
    return cos * x + sin * y, cos * y - sin * x


def _to_pixels(points: np.ndarray, scan: Scan, size: int) -> np.ndarray:
    """Head coordinates (K, 2) to pixels: the inverse of `_head_grid`."""
    cos, sin = np.cos(scan.rotation) * scan.zoom, np.sin(scan.rotation) * scan.zoom
    x = cos * points[:, 0] - sin * points[:, 1] + scan.shift[0]
    y = sin * points[:, 0] + cos * points[:, 1] + scan.shift[1]
    return (np.stack([x, y], axis=1) + 1) / 2 * (size - 1)


def _below(values: np.ndarray, edge: float | np.ndarray, softness: float) -> np.ndarray:
    """1 where values lie below the edge, 0 above it, with a ramp of the given width."""
    return np.clip((edge - values) / softness + 0.5, 0, 1)


def _band_noise(rng: Generator, size: int, frequency: float) -> np.ndarray:
    """Noise of unit variance around `frequency` cycles per image width, (size, size)."""
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(size) * size, np.fft.rfftfreq(size) * size, indexing="ij"))
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) * np.exp(-(((f - frequency) / (0.35 * frequency)) ** 2))
    noise = np.fft.irfft2(spectrum, s=(size, size))
    return noise / noise.std()
