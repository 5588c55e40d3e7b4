"""Makes dark.jpg, the sample picture: a still life at night, path-traced and badly exposed.

    python samples/render.py                     writes dark.jpg beside this file
    python samples/render.py --bright well.png   writes the scene as it should look, instead
    python samples/render.py --passes 8          is quicker and rougher

Needs numpy and Pillow. The same numbers come out each time. Everything in the picture is made
here, so it may be used and shared like the rest of the project.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 640, 427
BOUNCES = 4
STRAY = 0.8  # the most that one path past the first hit may bring, or it leaves a bright dot
EYE, TARGET, LENS = np.float32([0.12, -3.7, 1.2]), np.float32([0.03, 0.25, 0.47]), 0.335

# Surfaces: (N, 3) points in the object's own coordinates (-1 to 1) -> (N, 3) linear reflectance.


def rgb(red, green, blue):
    """An sRGB colour, 0 to 255, as one linear reflectance for all points."""
    colour = (np.float32([red, green, blue]) / 255) ** 2.2
    return lambda p: np.broadcast_to(colour, p.shape)


def hashed(*cells):
    """A number in [0, 1) for each cell of a lattice."""
    mixed = sum(np.floor(c) * k for c, k in zip(cells, (12.9898, 78.233, 37.719), strict=False))
    return np.mod(np.sin(mixed) * 43758.547, 1).astype(np.float32)


def noise(x, y):
    """Smooth noise in [0, 1) from a lattice of hashed numbers."""
    a, b = np.mod(x, 1), np.mod(y, 1)
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    low = hashed(x, y) * (1 - a) + hashed(x + 1, y) * a
    high = hashed(x, y + 1) * (1 - a) + hashed(x + 1, y + 1) * a
    return low * (1 - b) + high * b


def mix(share, first, second):
    return first + np.clip(share, 0, 1)[:, None] * (np.float32(second) - np.float32(first))


def wood(p):
    plank = np.floor(p[:, 1] * 4)
    grain = noise(p[:, 0] * 4 + plank * 7, p[:, 1] * 70) * 0.6
    grain += noise(p[:, 0] * 30 + plank * 3, p[:, 1] * 260) * 0.4
    colour = mix(grain, [0.30, 0.14, 0.06], [0.56, 0.31, 0.14])
    shade = (0.75 + 0.4 * hashed(plank, plank)) * np.where(np.mod(p[:, 1] * 4, 1) < 0.02, 0.35, 1)
    return colour * shade[:, None]


def wall(p):
    x, z = p[:, 0] * 22, p[:, 2] * 16
    stripe = (np.mod(x, 2) < 1) * 0.16
    motif = (np.hypot(np.mod(x, 1) - 0.5, np.mod(z, 1) - 0.5) < 0.16) * (np.mod(x, 2) < 1)
    colour = mix(stripe + 0.1 * noise(x * 40, z * 40), [0.36, 0.43, 0.40], [0.62, 0.62, 0.52])
    return mix(motif * 0.55, colour, [0.70, 0.62, 0.40])


def painting(p):
    """Hills, a lake and a low sun."""
    x, z = p[:, 0], p[:, 2]
    colour = mix((z + 0.2) * 0.9, [0.86, 0.42, 0.16], [0.12, 0.26, 0.60])
    colour = mix((np.hypot(x * 1.4 - 0.35, z - 0.22) < 0.2) * 1.0, colour, [0.95, 0.75, 0.25])
    for k, shade in enumerate(([0.22, 0.20, 0.42], [0.10, 0.24, 0.20], [0.05, 0.16, 0.06])):
        ridge = 0.18 - 0.2 * k + 0.5 * (noise(x * (1.6 + k) + 9 * k, x * 0 + k) - 0.5)
        colour = mix((z < ridge) * 1.0, colour, shade)
    waves = 0.5 + 0.5 * np.sin(z * 60 + 3 * noise(x * 6, z * 20))
    return mix((z < -0.55) * (0.6 + 0.4 * waves), colour, [0.18, 0.34, 0.44])


def cloth(p):
    x, y = p[:, 0] * 6, p[:, 1] * 5
    check = (np.mod(x, 1) < 0.5) * 0.5 + (np.mod(y, 1) < 0.5) * 0.5
    weave = 0.88 + 0.12 * np.sin(x * 75) * np.sin(y * 75)
    return mix(check, [0.80, 0.79, 0.75], [0.06, 0.16, 0.42]) * weave[:, None]


def book(red, green, blue):
    def surface(p):
        bands = np.abs(np.abs(p[:, 0]) - 0.72) < 0.035
        letters = (np.abs(p[:, 2]) < 0.3) & (np.abs(p[:, 0]) < 0.5) & (hashed(p[:, 0] * 17) > 0.3)
        gold = (bands | letters) & (p[:, 1] < -0.99)  # on the spine
        colour = mix(gold * 1.0, rgb(red, green, blue)(p), [0.8, 0.62, 0.22])
        paper = (p[:, 0] > 0.99) & (np.abs(p[:, 2]) < 0.8)
        return mix(paper * (0.75 + 0.25 * np.sin(p[:, 2] * 90)), colour, [0.75, 0.70, 0.58])

    return surface


def fruit(low, high, spots):
    """Two colours from side to side, with fine spots."""
    first, second = (np.float32(c) / 255 for c in (low, high))

    def surface(p):
        turn = noise(p[:, 0] * 2 + p[:, 2], p[:, 1] * 2 + 5) * 1.2 - 0.1
        fleck = noise(p[:, 0] * 24, p[:, 2] * 24 + p[:, 1] * 9) > 0.8
        return mix(fleck * spots, mix(turn, first**2.2, second**2.2), [0.7, 0.55, 0.3])

    return surface


def greys(p):
    """A photographer's card: six greys."""
    step = np.clip(np.floor((p[:, 0] + 0.96) * 3.125), 0, 5)
    patch = (np.abs(p[:, 2]) < 0.88) & (np.abs(p[:, 0]) < 0.96)
    value = np.where(patch, 0.04 * 1.86**step, 0.02)
    return np.repeat(value[:, None], 3, 1).astype(np.float32)


# Objects: shape, place, half size, turn about the vertical (degrees), surface, gloss, light,
# taper (how much a cylinder widens towards its top).
OBJECTS = []


def add(shape, place, size, surface, turn=0.0, gloss=0.0, light=None, taper=0.0):
    turn = np.deg2rad(turn)
    rotation = [[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    matrix = np.float32(rotation) / np.float32(size)[:, None]  # world to object
    OBJECTS.append((shape, np.float32(place), matrix, surface, gloss, light, taper))


def set_the_table():
    white, dark, brass = rgb(232, 230, 224), rgb(52, 34, 26), rgb(170, 140, 70)
    glass, glow = rgb(20, 74, 150), np.float32([13, 9.2, 5.4])
    add("box", [0, 1.25, 1], [4, 0.05, 2.2], wall)
    add("box", [0, 0, -0.05], [1.9, 1.15, 0.05], wood, gloss=0.5)
    add("box", [-0.08, -0.42, 0.004], [0.78, 0.44, 0.004], cloth, turn=-4)
    add("box", [-0.62, 1.17, 1.0], [0.52, 0.03, 0.37], rgb(120, 84, 40), gloss=0.3)  # frame
    add("box", [-0.62, 1.15, 1.0], [0.46, 0.03, 0.31], painting)
    add("ball", [1.02, 0.62, 0.76], [0.17, 0.17, 0.17], white, light=glow)  # lamp
    add("tube", [1.02, 0.62, 0.31], [0.028, 0.028, 0.29], brass, gloss=0.6)
    add("tube", [1.02, 0.62, 0.02], [0.15, 0.15, 0.02], brass, gloss=0.6, taper=-0.25)
    add("box", [-0.98, 0.45, 0.065], [0.33, 0.24, 0.065], book(150, 28, 30), turn=8, gloss=0.15)
    add("box", [-0.95, 0.46, 0.185], [0.30, 0.22, 0.055], book(24, 84, 62), turn=-6, gloss=0.15)
    add("box", [-0.99, 0.47, 0.285], [0.27, 0.20, 0.045], book(32, 52, 120), turn=14, gloss=0.15)
    add(
        "tube", [-0.99, 0.45, 0.43], [0.10, 0.10, 0.10], rgb(222, 176, 60), gloss=0.5, taper=0.15
    )  # pot
    for k in range(14):  # a plant
        a, r = 2.4 * k, 0.05 + 0.012 * k
        height = 0.58 + 0.02 * (k % 5) + 0.1 * (k % 3 == 0)
        place = [-0.99 + r * np.cos(a), 0.45 + r * np.sin(a), height]
        green = rgb(40 + 9 * (k % 4), 118 + 8 * (k % 3), 48)
        add("ball", place, [0.085, 0.03, 0.055], green, turn=137 * k, gloss=0.2)
    add("tube", [-0.36, 0.42, 0.27], [0.11, 0.11, 0.27], glass, gloss=0.9, taper=-0.06)  # bottle
    add("ball", [-0.36, 0.42, 0.54], [0.103, 0.103, 0.09], glass, gloss=0.9)
    add("tube", [-0.36, 0.42, 0.67], [0.038, 0.038, 0.09], glass, gloss=0.9)
    add("box", [0.62, -0.74, 0.085], [0.19, 0.008, 0.085], greys, turn=9)
    add("tube", [0.22, -0.16, 0.08], [0.30, 0.30, 0.08], white, gloss=0.5, taper=0.4)  # bowl
    for x, y, z, r, kind in (
        (0.10, -0.28, 0.20, 0.125, 0),
        (0.36, -0.26, 0.20, 0.12, 1),
        (0.22, -0.02, 0.21, 0.13, 2),
        (0.25, -0.2, 0.345, 0.11, 0),
        (-0.22, -0.62, 0.125, 0.118, 2),
        (-0.46, -0.5, 0.115, 0.107, 1),
    ):
        surface = (
            fruit([176, 20, 28], [206, 150, 46], 0.25),  # apple
            fruit([236, 128, 18], [242, 142, 24], 0.15),  # orange
            fruit([104, 150, 34], [170, 184, 50], 0.3),  # green apple
        )[kind]
        add("ball", [x, y, z], [r, r, r * 0.94], surface, turn=70 * x, gloss=0.35)
        add("tube", [x + 0.005, y, z + r * 0.98], [0.006, 0.006, 0.03], dark)
    add(
        "tube", [0.88, -0.22, 0.12], [0.115, 0.115, 0.12], rgb(196, 52, 60), gloss=0.5, taper=0.12
    )  # mug
    add("tube", [0.88, -0.22, 0.2395], [0.113, 0.113, 0.002], rgb(44, 24, 14), gloss=0.9, taper=0)
    add("box", [-0.02, -0.72, 0.014], [0.2, 0.008, 0.006], rgb(210, 206, 60), turn=12)  # pencil
    add(
        "ball", [-2.3, -4.4, 3.0], [1.2, 1.2, 1.2], white, light=np.float32([1.6, 1.95, 2.5])
    )  # window


# Tracing. Rays are (N, 3) origins and unit directions in single precision.


def hit_shape(shape, taper, o, d):
    """Distance to a unit shape (infinite for a miss) from rays in its own coordinates."""
    near = np.float32(1e-3)
    with np.errstate(divide="ignore", invalid="ignore"):
        if shape == "box":
            a, b = (-1 - o) / d, (1 - o) / d
            enter, leave = np.minimum(a, b).max(1), np.maximum(a, b).min(1)
            t = np.where(enter > near, enter, leave)
            return np.where((leave >= enter) & (t > near), t, np.inf)
        if shape == "ball":
            a, b, c = (d * d).sum(1), (o * d).sum(1), (o * o).sum(1) - 1
            ends, caps = (1, -1), ()
        else:  # x^2 + y^2 = (1 + taper z)^2 between z = -1 and 1
            w, s = 1 + taper * o[:, 2], taper * d[:, 2]
            a = d[:, 0] ** 2 + d[:, 1] ** 2 - s * s
            b = o[:, 0] * d[:, 0] + o[:, 1] * d[:, 1] - w * s
            c = o[:, 0] ** 2 + o[:, 1] ** 2 - w * w
            ends, caps = (1, -1), (1, -1)
        root = np.sqrt(b * b - a * c)
        best = np.full(len(o), np.inf, np.float32)
        for sign in ends:
            t = (-b - sign * root) / a
            good = (t > near) & (np.abs(o[:, 2] + t * d[:, 2]) <= 1)
            best = np.where(good & (t < best), t, best)
        for z in caps:
            t = (z - o[:, 2]) / d[:, 2]
            r = np.hypot(o[:, 0] + t * d[:, 0], o[:, 1] + t * d[:, 1])
            best = np.where((t > near) & (r <= 1 + taper * z) & (t < best), t, best)
    return best


def normal_of(shape, taper, p):
    if shape == "ball":
        return p
    if shape == "box":
        return np.where(np.abs(p) >= np.abs(p).max(1, keepdims=True), np.sign(p), 0)
    side = np.stack((p[:, 0], p[:, 1], -taper * (1 + taper * p[:, 2])), 1)
    cap = np.float32([0, 0, 1]) * np.sign(p[:, 2:])
    return np.where(np.abs(p[:, 2:]) > 0.9995, cap, side)


def nearest(o, d):
    distance, which = np.full(len(o), np.inf, np.float32), np.full(len(o), -1)
    for index, (shape, place, matrix, *_, taper) in enumerate(OBJECTS):
        t = hit_shape(shape, taper, (o - place) @ matrix.T, d @ matrix.T)
        closer = t < distance
        distance[closer], which[closer] = t[closer], index
    return distance, which


def unit(v):
    return v / np.sqrt((v * v).sum(-1, keepdims=True))


def trace(o, d, rng):
    """Linear light that comes back along each ray: (N, 3)."""
    light = np.zeros_like(o)
    weight, ray = np.ones_like(o), np.arange(len(o))
    lamps = [entry for entry in OBJECTS if entry[5] is not None]
    seen = np.ones(len(o), bool)  # lamps count at the eye and in reflections, else by sampling
    for bounce in range(BOUNCES):
        distance, which = nearest(o, d)
        light[ray[which < 0]] += weight[which < 0] * np.float32([0.02, 0.022, 0.026])
        keep = which >= 0
        o, d, weight, ray, seen, which = (v[keep] for v in (o, d, weight, ray, seen, which))
        point = o + distance[keep, None] * d
        normal, colour, gloss = np.zeros_like(o), np.zeros_like(o), np.zeros(len(o), np.float32)
        for index in np.unique(which):
            shape, place, matrix, surface, shine, glow, taper = OBJECTS[index]
            here = which == index
            own = (point[here] - place) @ matrix.T
            normal[here] = unit(normal_of(shape, taper, own) @ matrix)
            colour[here], gloss[here] = surface(own), shine
            if glow is not None:
                found = weight[here & seen] * glow
                light[ray[here & seen]] += found if bounce == 0 else np.minimum(found, STRAY)
                colour[here] = 0
        normal *= -np.sign((normal * d).sum(1, keepdims=True))
        o = point + 2e-3 * normal

        # A coat mirrors a little, more at a grazing angle; the rest goes into the colour.
        facing = np.clip(-(normal * d).sum(1), 0, 1)
        mirrored = rng.random(len(o)) < gloss * (0.05 + 0.95 * (1 - facing) ** 5)
        rough = unit(normal + unit(rng.normal(size=o.shape).astype(np.float32)) * 0.999)
        reflected = d + 2 * facing[:, None] * normal
        weight = np.where(mirrored[:, None], weight, weight * colour)
        for _, place, matrix, _, _, glow, _ in lamps:
            radius = 1 / np.float32(np.abs(matrix).max())
            toward = unit(place + radius * unit(rng.normal(size=o.shape).astype(np.float32)) - o)
            away = np.sqrt(((place - o) ** 2).sum(1))
            solid = 2 * (1 - np.sqrt(np.clip(1 - (radius / away) ** 2, 0, 1)))  # over pi
            use = ~mirrored & ((toward * normal).sum(1) > 0)
            blocked = nearest(o[use], toward[use])[1]
            clear = np.array([entry[5] is glow for entry in OBJECTS])[blocked] & (blocked >= 0)
            share = clear * solid[use] * (toward[use] * normal[use]).sum(1)
            light[ray[use]] += np.minimum(weight[use] * glow * share[:, None], STRAY)
        d = np.where(mirrored[:, None], unit(reflected + 0.03 * rough), rough)
        seen = mirrored
    return light


def render(passes, rng):
    """The scene in linear light, (HEIGHT, WIDTH, 3)."""
    forward = unit(TARGET - EYE)
    right = unit(np.cross(forward, [0, 0, 1]).astype(np.float32))
    up = np.cross(right, forward)
    total = np.zeros((HEIGHT * WIDTH, 3), np.float64)
    y, x = np.divmod(np.arange(HEIGHT * WIDTH), WIDTH)
    for _ in range(passes):
        u = ((x + rng.random(len(x))) / WIDTH - 0.5) * 2 * LENS
        v = (0.5 - (y + rng.random(len(y))) / HEIGHT) * 2 * LENS * HEIGHT / WIDTH
        d = unit((forward + u[:, None] * right + v[:, None] * up).astype(np.float32))
        total += trace(np.broadcast_to(EYE, d.shape), d, rng)
    return (total / passes).reshape(HEIGHT, WIDTH, 3)


def develop(linear):
    """Linear light -> 8-bit sRGB with a soft shoulder, as cameras have one."""
    linear = np.where(linear < 0.7, linear, 0.7 + 0.3 * np.tanh((linear - 0.7) / 0.3))
    linear = np.clip(linear, 0, 1)
    coded = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(coded * 255).astype(np.uint8)


def photograph(linear, exposure, rng):
    """A short exposure: photons that come one by one, then noise of reading them out."""
    full = 14000.0  # electrons of a full pixel
    electrons = rng.poisson(np.clip(linear * exposure, 0, 1) * full)
    electrons = electrons + rng.normal(0, 4.5, linear.shape)
    return develop(np.clip(electrons / full, 0, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passes", type=int, default=48, help="rays a pixel")
    parser.add_argument("--exposure", type=float, default=0.07, help="of the dark picture")
    parser.add_argument("--bright", type=Path, help="write the well-lit scene here instead")
    options = parser.parse_args()
    rng = np.random.default_rng(2024)
    set_the_table()
    linear = render(options.passes, rng)
    if options.bright:
        Image.fromarray(develop(2.6 * linear)).save(options.bright)
        return
    dark = photograph(linear, options.exposure, rng)
    target = Path(__file__).with_name("dark.jpg")
    Image.fromarray(dark).save(target, quality=92, subsampling=0)
    print(f"{target}: {target.stat().st_size} bytes, mean {dark.mean() / 255:.3f}")


if __name__ == "__main__":
    main()
