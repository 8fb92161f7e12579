"""Freely licensed pictures from Debian's archive, to train on beside DATA/train: what the wallpapers and portraits there lack.

  python pictures.py OUT [--eval DIR] [--known DIR ...] [--only PACKAGE ...]

Each package of PACKAGES is fetched with `apt-get download` into a temporary folder of OUT (nothing is installed; packages of `main` only, so that all
of it is free to use and pass on), its pictures of at least 512 px on the short side are judged, at most `most` unlike ones are kept, reduced to about
1.2 megapixels (never enlarged), written as WebP to OUT with rows in OUT/manifest.csv; Debian's copyright file, with licence and authors per
file, goes to OUT/copyright/PACKAGE. Then the package is deleted. What lies within 10 of 64 bits (perceptual hash, also of the centre square and mirrored)
of a picture in --eval, --known or OUT is left out. The choice follows from the packages' contents alone: no chance, no clock. A run that was stopped
goes on with the first package that has no copyright file in OUT. Wants Debian 12 or later, or a system like it, with an up-to-date package list (`apt-get update`).
"""
import argparse
import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

# Globs of lower-case paths: classical test pictures, and what is no picture to look at.
NEVER = ("*lena*", "*lenna*", "*baboon*", "*mandril*", "*barbara*", "*cameraman*", "*kodim*", "*kodak*", "*astronaut*", "*peppers*", "*goldhill*", "*zelda*",
         "*airplane*", "*butterfly*", "*normal*", "*_nrm*", "*_nor.*", "*_norm.*", "*_nm.*", "*_n.*", "*height*", "*specular*", "*_spec*", "*_gloss*", "*bump*", "*mask*",
         "*displace*", "*sprite*", "*tileset*",
         "*atlas*", "*lightmap*", "*_luma*", "*font*", "*cursor*", "*/icons/*", "*/models/*", "*/skins/*", "*/players/*", "*/units/*", "*_uv*", "*favicon*", "*_glow*", "*roughness*")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".tga", ".tif", ".tiff", ".bmp", ".avif")
ARCHIVES = (".zip", ".pk3", ".pk4", ".wz", ".ora", ".kra", ".bundle", ".otp", ".odp", ".ott", ".odt", ".sdg", ".jar", ".sh3f", ".sh3t", ".ykpack")

# A line: kind, most pictures of each package, packages, + globs of paths to take, - globs of paths to leave. Licences: of `main`, thus free; per file in the manifest.
# Looked at and left out: lebiniou-data (grey), flare-game, fillets-ng-data, plee-the-bear-data (sprite sheets), krita-data, sweethome3d-furniture (parts); texlive-*-doc
# (parts show commercial pictures). opencv-doc holds Lena: only what is named is taken.
PACKAGES = """
photo 20 kphotoalbum
photo 10 python3-skimage - *camera* *moon* *brick* *grass* *gravel*
photo 12 opencv-doc + */examples/data/* */html/building* */html/starry* */html/yolo* */html/corridor* */html/detect_test* - *aloe* *leuven* *fruits* *detect_blob* *shape* *home* *box* *graf*
photo 60 gcompris-qt-data
photo 40 mate-backgrounds gnome-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 ukui-wallpapers
photo 60 endless-sky-high-dpi + */land/* */scene/*
photo 15 python-kivy-examples sway-backgrounds palapeli-data breeze
photo 20 lxqt-themes - *debug*
photo 20 plasma-workspace-wallpapers - *720x1440* *1080x1920* *1622x* *x3840*
photo 25 stellarium-data + */landscapes/* */textures/* */nebulae/* - *lmc_* *smc_* *hurricane* *gl4* *trees_512* *rho-* *ldn* *n2359*
photo 50 openclipart-png - */flags/[!a]* */flags/am* */flags/as* */flags/au* *silhouette*
photo 30 tuxpaint-data tuxpaint-stamps-default - *_usa-*
photo 2 linuxcnc-doc-en
photo 8 expeyes-doc-en
photo 10 calligrastage-data - *configure*
photo 20 libreoffice-common
photo 20 mandelbulber2-data - *envmap2* *envmap4* *occlusion* *transparency*
photo 10 renpy-thequestion qtdeclarative5-examples qtquickcontrols5-examples qtbase5-examples gthumb-data imagination-common hugin-data
photo 15 wmaker-common fvwm-crystal fotoxx-common
drawing 15 supertux-data
drawing 60 wesnoth-1.16-data
drawing 20 wesnoth-1.16-httt wesnoth-1.16-trow wesnoth-1.16-low wesnoth-1.16-tsg wesnoth-1.16-nr wesnoth-1.16-sof wesnoth-1.16-sota wesnoth-1.16-did wesnoth-1.16-ei
drawing 20 naev-data freeorion-data freecol unknown-horizons
map 40 kgeography-data
map 15 marble-data kstars-data gpredict xplanet-images
screen 15 debian-handbook
screen 30 gimp-help-en
screen 12 python-sklearn-doc - *face* *recognition*
screen 12 kicad-doc-en freedombox-doc-en povray-doc
screen 6 gnucash-docs kdenlive-data debian-edu-doc-en wireshark-doc qtcreator-doc imagemagick-6-doc
game 40 renpy-demo
screen 12 desktop-base debian-edu-artwork-softwaves debian-edu-artwork-spacefun
game 40 warzone2100-data + *drops/*
game 40 supertuxkart-data + *screenshot* */gui/* */sign_*
game 40 ufoai-data + */pics/* - */hud/* */ui/* */pics/base/* */sfx/*
drawing 25 hedgewars-data warmux-data
texture 20 colobot-common-textures - *effect0* *button* */objects/*
texture 20 ufoai-textures
texture 20 nexuiz-textures - *flag* *pickups* *ldar* *fborange* *shock* *mulder* *pyria* *pomp* *_alien*
texture 10 openarena-081-textures mypaint-data-extras
game 20 widelands-data - */tribes/* */worlds/*
game 20 freedroidrpg-data + */backgrounds/*
game 20 brainparty-data pokerth-data lincity-ng-data extremetuxracer-data
game 15 pingus-data freeciv-data tuxmath-data tuxtype-data - *tiles.png *cities.png
game 10 starfighter-data foobillardplus-data - *camin*
"""
Image.MAX_IMAGE_PIXELS = None  # candidate() looks at the size
SHORT, AREA, NEAR = 512, 1.2e6, 10  # least short side; pixels that larger pictures are reduced to; bits
FIELDS = ("file", "width", "height", "package", "version", "source_path", "licence")


def table():
    """(kind, most, package, include, exclude) of each package."""
    for line in PACKAGES.strip().splitlines():
        line, _, exclude = line.partition(" - ")
        line, _, include = line.partition(" + ")
        kind, most, *packages = line.split()
        for p in packages:
            yield kind, int(most), p, tuple(include.split() or ("*",)), tuple(exclude.lower().split())


def carved(data, suffix):
    """(offset, bytes) of pictures in a Qt resource file, where each file follows its length (4 bytes, big end first), or of the JPEG pictures in a PDF."""
    if suffix == ".rcc":
        for m in re.finditer(rb"(?s)(?=(....)(\x89PNG\r\n|\xff\xd8\xff|RIFF))", data):
            at, n = m.start(2), int.from_bytes(m[1], "big")
            if 10000 < n <= len(data) - at:
                yield at, data[at:at + n]
    else:
        for m in re.finditer(rb"(?s)/DCTDecode.{0,1000}?stream\r?\n(\xff\xd8\xff)", data):
            yield m.start(1), data[m.start(1):data.find(b"endstream", m.end())]


def members(deb):
    """(path, bytes) of each picture in a package, also of those in archives inside it; and its copyright file."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as p, tarfile.open(fileobj=p.stdout, mode="r|") as tar:
        for m in tar:
            suffix, path = Path(m.name).suffix.lower(), m.name.removeprefix("./").encode(errors="replace").decode()
            if not m.isfile() or suffix not in IMAGES + ARCHIVES + (".rcc", ".pdf") and not path.endswith("/copyright"):
                continue
            data = tar.extractfile(m).read()
            if suffix in ARCHIVES and zipfile.is_zipfile(io.BytesIO(data)):
                with zipfile.ZipFile(io.BytesIO(data)) as z:
                    yield from ((f"{path}!/{n}", z.read(n)) for n in z.namelist() if n.lower().endswith(IMAGES))
            elif suffix in (".rcc", ".pdf"):
                yield from ((f"{path}!/{n}", d) for n, d in carved(data, suffix))
            else:
                yield path, data


def candidate(path, data, include, exclude):
    low = path.lower()
    if not any(fnmatch(path, g) for g in include) or any(fnmatch(low, g) for g in NEVER + exclude):
        return False
    try:
        im = Image.open(io.BytesIO(data))
    except Exception:  # Pillow's decoders raise all sorts of things
        return False
    w, h = im.size
    return im.mode != "CMYK" and min(w, h) >= SHORT and max(w, h) <= 3 * min(w, h) and w * h < 9e7


def load(f, name):
    """The picture as RGB in sRGB, reduced; None where too little of it is opaque."""
    im = ImageOps.exif_transpose(Image.open(f))
    profile = im.info.get("icc_profile")
    if "transparency" in im.info or im.mode in ("LA", "PA", "La", "RGBa"):
        im = im.convert("RGBA")
    if im.mode == "RGBA":
        alpha = np.asarray(im.getchannel("A"))
        if alpha.mean() < 0.35 * 255:
            return None
        if alpha.min() < 255:  # on white, or on a colour that follows from the name
            rgb = hashlib.sha256(name.encode()).digest()[:3]
            im = Image.alpha_composite(Image.new("RGBA", im.size, (255, 255, 255) if rgb[0] % 2 else tuple(rgb)), im)
    if profile and im.mode in ("RGB", "RGBA"):
        try:
            im = ImageCms.profileToProfile(im.convert("RGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"))
        except ImageCms.PyCMSError:  # a profile that is broken, or not of RGB
            pass
    im = im.convert("RGB")
    k = max((AREA / (im.width * im.height)) ** 0.5, SHORT / min(im.size))
    return im.resize((round(im.width * k), round(im.height * k)), Image.LANCZOS, reducing_gap=3) if k < 0.92 else im


def licence(text, path, package):
    """Licence of an installed file: that of the last paragraph of a machine-readable copyright file that fits an end of its path, else all of them."""
    found, names = None, []
    parts = path.replace("@2x", "").split("/")
    tails = ["/".join(parts[i:]) for i in range(len(parts))]
    for paragraph in text.split("\n\n"):
        fields = {k.lower(): v for k, v in re.findall(r"^([A-Za-z-]+):((?:.*\n?)(?:[ \t].*\n?)*)", paragraph, re.M)}
        names += [line for line in fields.get("license", "").strip().split("\n")[:1] if line and "files" in fields]
        if names and "files" in fields and any(fnmatch(t, g) for g in fields["files"].split() for t in tails):
            found = names[-1]
    if found is None or "!/" in path:  # files inside others have no path of the source
        found = " / ".join(dict.fromkeys(names))[:200]
    return found or f"free; see copyright/{package}"


def hashes(im):
    """64 bits as +-1 from the lowest frequencies, of the picture and its centre square, both also mirrored: [4,64]."""
    s, D = min(im.size), np.cos(np.pi / 32 * (np.arange(32) + 0.5) * np.arange(8)[:, None])  # D: the eight lowest of a DCT
    l, t = (im.width - s) // 2, (im.height - s) // 2
    out = []
    for box in ((0, 0) + im.size, (l, t, l + s, t + s)):
        a = np.asarray(im.convert("L").resize((32, 32), Image.BOX, box=box), np.float64)
        for b in (a, a[:, ::-1]):
            c = (D @ b @ D.T).ravel()
            out.append(np.where(c > np.median(c[1:]), 1, -1))
    return np.array(out, np.int8)


def file_hashes(f):
    with Image.open(f) as im:
        return hashes(im.convert("RGB"))


def near(h, others):
    """Whether picture or centre square of h lies within NEAR bits of any of others [n,64]."""
    return len(others) > 0 and (64 - (h[::2].astype(np.int32) @ others.T.astype(np.int32)).max()) / 2 <= NEAR


def judge(job):
    """(why it is unfit or None, hashes, coarse colours) of a candidate."""
    f, name, kind = job
    try:
        im = load(f, name)
    except Exception as e:
        return f"unreadable ({type(e).__name__})", None, None
    if im is None:
        return "transparent", None, None
    a = np.asarray(im.reduce(2), np.float32)
    grey = a.mean(2)
    colours = np.unique((a // 16).astype(np.int64) @ (1, 16, 256), return_counts=True)[1]
    r, g, b = a.mean((0, 1))
    why = None
    if abs(r - 128) < 30 and abs(g - 128) < 30 and b > 190 and a[..., 2].std() < 40:
        why = "normal map"
    elif grey.std() < 12 or colours.max() > (0.75 if kind != "screen" else 0.88) * grey.size:
        why = "uniform"
    elif (a.max(2) - a.min(2)).mean() < 4 and kind != "screen":
        why = "grey"
    elif np.abs(grey[1:-1, 1:-1] * 4 - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]).mean() < 1.0:
        why = "soft"
    return why, hashes(im), np.asarray(im.resize((4, 4), Image.BOX), np.float32).ravel() / 255


def spread(found, most):
    """At most `most` of (..., hashes, colours), each the one least like those before it."""
    keep, rest = found[:1], found[1:]
    distance = [np.inf] * len(rest)
    while rest and len(keep) < most:
        h, c = keep[-1][-2:]
        distance = [min(d, (64 - int(q[-2][0].astype(int) @ h[0])) / 64 + float(np.abs(q[-1] - c).mean()) * 2) for d, q in zip(distance, rest)]
        i = int(np.argmax(distance))
        keep, rest, distance = keep + [rest[i]], rest[:i] + rest[i + 1:], distance[:i] + distance[i + 1:]
    return keep


def store(job):
    """Writes a picture: lossless where that takes less than a byte per pixel (drawings, screens), else at quality 95. Its size."""
    f, name, out = job
    im = load(f, name)
    buf = io.BytesIO()
    im.save(buf, "WEBP", lossless=True, quality=40, method=3, exact=True)
    if buf.tell() > im.width * im.height:
        buf = io.BytesIO()
        im.save(buf, "WEBP", quality=95, method=4, use_sharp_yuv=True)
    tmp = out.with_suffix(".tmp")
    tmp.write_bytes(buf.getvalue())
    tmp.rename(out)
    return im.size


def collect(row, out, tmp, known, pool):
    """Adds one package; returns its manifest rows and the hashes of what was kept."""
    kind, most, package, include, exclude = row
    r = subprocess.run(["apt-get", "download", "-q", package], cwd=tmp, capture_output=True, text=True)
    deb = next(tmp.glob("*.deb"), None)
    if r.returncode or deb is None:
        raise OSError((r.stderr.strip() or "no .deb").splitlines()[-1])
    version = subprocess.run(["dpkg-deb", "-f", deb, "Version"], capture_output=True, text=True, check=True).stdout.strip()
    found, copyright = [], b""
    for path, data in members(deb):
        if path == f"usr/share/doc/{package}/copyright":
            copyright = data
        elif candidate(path, data, include, exclude):
            f = tmp / str(len(found))
            f.write_bytes(data)
            found.append((hashlib.sha256(path.encode()).hexdigest(), path, f))
    deb.unlink()
    found = sorted(found)[:8 * most]  # in an order that has nothing to do with their names
    reasons, fit, taken = {}, [], known
    for (_, path, f), (why, h, c) in zip(found, pool.map(judge, [(f, path, kind) for _, path, f in found], chunksize=4)):
        why = why or ("known or alike" if near(h, taken) else None)
        if why:
            reasons[why] = reasons.get(why, 0) + 1
        else:
            fit.append((path, f, h, c))
            taken = np.concatenate([taken, h])
    keep = spread(fit, most)
    names = [f"{kind}_{package}_{hashlib.sha256(path.encode()).hexdigest()[:8]}.webp" for path, *_ in keep]
    sizes = pool.map(store, [(f, path, out / n) for n, (path, f, *_) in zip(names, keep)])
    text = copyright.decode(errors="replace")
    rows = [dict(zip(FIELDS, (n, *size, package, version, path, licence(text, path, package)))) for n, size, (path, *_) in zip(names, sizes, keep)]
    print(f"{package}: {len(rows)} of {len(found)} kept; " + ", ".join(f"{n} {w}" for w, n in sorted(reasons.items())), flush=True)
    return rows, np.concatenate([np.zeros((0, 64), np.int8)] + [q[2] for q in keep]), copyright


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", type=Path)
    ap.add_argument("--eval", type=Path, help="pictures that must never be trained on, nor any like them")
    ap.add_argument("--known", type=Path, nargs="*", default=[], help="folders of pictures that are there already")
    ap.add_argument("--only", nargs="*", help="these packages of the table only")
    ap.add_argument("--jobs", type=int, default=2)
    a = ap.parse_args()
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            sys.exit(f"pictures.py: {tool} not found: this wants Debian or a system like it")
    (a.out / "copyright").mkdir(parents=True, exist_ok=True)
    manifest = a.out / "manifest.csv"
    rows = list(csv.DictReader(manifest.open(newline="", encoding="utf-8"))) if manifest.exists() else []
    rows = [r for r in rows if (a.out / "copyright" / r["package"]).exists()]
    with ProcessPoolExecutor(a.jobs) as pool:
        files = [f for d in [a.eval, *a.known] if d for f in sorted(d.iterdir()) if f.suffix.lower() in IMAGES] + [a.out / r["file"] for r in rows]
        known = np.concatenate([np.zeros((0, 64), np.int8), *pool.map(file_hashes, files, chunksize=8)])
        for row in table():
            package = row[2]
            note = a.out / "copyright" / package
            if note.exists() or a.only and package not in a.only:
                continue
            rows = [r for r in rows if r["package"] != package]
            with tempfile.TemporaryDirectory(dir=a.out, prefix=".tmp-") as tmp:
                try:
                    got = collect(row, a.out, Path(tmp), known, pool)
                except (OSError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, subprocess.CalledProcessError) as e:
                    print(f"{package}: left out: {e}", file=sys.stderr, flush=True)
                    continue
            rows, known = rows + got[0], np.concatenate([known, got[1]])
            tmp = manifest.with_suffix(f".{os.getpid()}.tmp")
            with open(tmp, "w", newline="", encoding="utf-8") as f:
                w = csv.DictWriter(f, FIELDS, lineterminator="\n")
                w.writeheader()
                w.writerows(rows)
            tmp.rename(manifest)
            note.write_bytes(got[2])  # last: a package with this file is done
    print(f"{len(rows)} pictures in {a.out}")


if __name__ == "__main__":
    main()
