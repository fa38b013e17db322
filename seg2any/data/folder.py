"""A data set in a folder: photos, and layouts in any format that infer.py reads."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from seg2any.data.dataset import Annotation, MaskStack, Sample, SampleError
from seg2any.data.left_out import LeftOut, check_left_out
from seg2any.data.pictures import check_photo, photo_digest, pictures_by_stem, read_photo, sizes_differ
from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError, check_overlap
from seg2any.system.errors import UserError

TURNS = "photos are turned as their EXIF says, so draw the masks on the turned photo"


class FolderDataset:
    """Layouts in `layout_root` and photos of the same names in `image_root`.

    A layout is a file, or a folder with one JSON. Photos are as people see them, see `read_photo`; so are their masks.

    All files are read when the data set is opened, so it is meant for thousands of samples. `left_out` lists what
    cannot be used: photos or layouts without the other, of different sizes, damaged.

    overlap  what masks that overlap mean, see `Layout`: whatever the files say, the default is that of all data sets

    Raises UserError if a folder is missing or no sample can be used, and for the first bad one if `on_error` is "fail".
    """

    def __init__(self, image_root: Path, layout_root: Path, on_error: str = "skip", overlap: str = "share"):
        check_overlap("data set folder", overlap)
        self.overlap = overlap
        photos = pictures_by_stem("folder", Path(image_root))
        layouts = _layouts_by_name(layout_root)
        left_out = [LeftOut(key, f"{photos[key]}: no layout has its name") for key in photos.keys() - layouts.keys()]
        digest = hashlib.sha256()
        self._pairs: list[tuple[Path, Path]] = []
        self._photo_digests: list[str] = []
        for key, path in tqdm(layouts.items(), desc="read layouts", unit="layout", disable=len(layouts) < 1000):
            if key not in photos:
                left_out.append(LeftOut(key, f"{path}: no photo {key}.* in {image_root}"))
                continue
            try:
                layout = self._read(path, key)
                if (size := check_photo(photos[key])) != layout.size:
                    raise SampleError(sizes_differ(path, layout.size, photos[key], size, TURNS))
                digest.update(f"{key} {layout.digest()}\n".encode())
                self._pairs.append((photos[key], path))
                self._photo_digests.append(photo_digest(photos[key]))
            except SampleError as error:
                left_out.append(LeftOut(key, str(error)))
        self.left_out = tuple(sorted(left_out, key=lambda one: one.key))
        check_left_out("folder", self.left_out, len(photos.keys() | layouts.keys()), on_error)
        self._fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        photo, path = self._pairs[index]
        return Sample(read_photo(photo), self._read(path, photo.stem))

    def key(self, index: int) -> str:
        """Return the file name of the photo without suffix."""
        return self._pairs[index][0].stem

    def annotation(self, index: int) -> Annotation:
        layout = self._read(self._pairs[index][1], self.key(index))
        return Annotation(layout.name, MaskStack(layout.masks), layout.captions, layout.caption)

    def photo_digest(self, index: int) -> str:
        return self._photo_digests[index]

    def fingerprint(self) -> str:
        """Return a digest of names, masks and captions."""
        return self._fingerprint

    def _read(self, path: Path, key: str) -> Layout:
        """Read a layout whose masks are what is visible of each region, so that none has to be hidden later."""
        try:
            layout = replace(Layout.read(path), name=key, overlap=self.overlap)
        except LayoutError as error:
            raise SampleError(str(error)) from None
        return replace(layout, masks=layout.visible, overlap="share")


def _layouts_by_name(folder: Path) -> dict[str, Path]:
    """Find the layouts: name -> file or folder. Raises UserError for two of one name."""
    found: dict[str, Path] = {}
    for path in Layout.find(folder):
        key = path.name if path.is_dir() else path.stem
        if key in found:
            raise UserError(f"{path}: {found[key].name} has the same name; remove or move one of them")
        found[key] = path
    return found
