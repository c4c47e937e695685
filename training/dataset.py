"""Datasets of pictures and captions on disk, in MAGMA's format (`utils.dataset_files`)."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from training.samples import Sample, encode
from utils.dataset_files import picture_path, read_record, sample_files
from utils.errors import UserError
from utils.images import load_image, preprocess

if TYPE_CHECKING:
    from PIL import Image
    from transformers import GPT2Tokenizer

_log = logging.getLogger(__name__)

Transform = Callable[["Image.Image"], Any]


class ImgCptDataset(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pictures with captions, read from disk as they are asked for.

    Attributes:
        bad: a line for each sample that was left out.
    """

    def __init__(
        self,
        data_dir: str | Path,
        tokenizer: GPT2Tokenizer,
        transforms: Transform | int,
        seq_len: int = 2048,
        load_data_in_memory: bool = False,
        skip_bad: bool = False,
    ) -> None:
        """Opens a dataset and checks every sample's JSON and that its picture is there.

        Args:
            data_dir: the root folder.
            tokenizer: for the captions.
            transforms: makes (1, 3, y, x) of a picture; a number stands for CLIP's preprocessing
                to a square of that side.
            seq_len: ids of a caption, padded or cut.
            load_data_in_memory: keep what the JSON files say, rather than read them each time.
            skip_bad: leave samples out that are bad, instead of stopping.

        Raises:
            UserError: no dataset or an empty one; bad samples, unless ``skip_bad``.
        """
        self._root = Path(data_dir)
        self._tokenizer = tokenizer
        self._transforms = transforms
        self._seq_len = seq_len
        files = sample_files(self._root)
        self.bad: list[str] = []
        self._paths: list[Path] = []
        self._pictures: list[Path] = []
        self._records: dict[Path, dict[str, Any]] | None = {} if load_data_in_memory else None
        for path in tqdm(files, desc=f"checking {self._root}", unit="sample", disable=None):
            try:
                record = read_record(path)
                picture = picture_path(self._root, path, record)
            except UserError as error:
                self.bad.append(str(error))
                continue
            self._paths.append(path)
            self._pictures.append(picture)
            if self._records is not None:
                self._records[path] = record
        self._report(len(files), skip_bad)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._paths)

    def name(self, index: int) -> str:
        """The sample's file."""
        return str(self._paths[index])

    def picture(self, index: int) -> Path:
        """The sample's picture, which others may share."""
        return self._pictures[index]

    def sample(self, index: int, rng: random.Random) -> Sample:
        """The caption's ids without padding, and the picture; ``rng`` chooses the caption.

        Raises:
            UserError: the sample cannot be read.
        """
        path = self._paths[index]
        record = read_record(path) if self._records is None else self._records[path]
        caption = rng.choice(record["captions"])
        try:
            image = load_image(self._pictures[index])
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return Sample(encode(self._tokenizer, caption, self._seq_len), self._pixels(image))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The picture (1, 3, y, x), and ids (1, seq_len) of one of its captions, padded.

        Python's global generator chooses the caption.
        """
        ids, pixels = self.sample(index, random.Random(random.random()))
        padded = torch.full((1, self._seq_len), self._tokenizer.pad_token_id)
        padded[0, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        assert pixels is not None
        return pixels, padded

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        if isinstance(self._transforms, int):
            return torch.from_numpy(preprocess(image, self._transforms))
        return torch.as_tensor(self._transforms(image))

    def _report(self, total: int, skip_bad: bool) -> None:
        if not self.bad:
            return
        counted = f"{self._root}: {len(self.bad)} of {total} samples are bad"
        if not skip_bad:
            raise UserError(f"{counted}, the first: {self.bad[0]}; mend them, or use skip_bad")
        _log.warning("%s and left out", counted)
        for line in self.bad:
            _log.warning("left out: %s", line)
        if not self._paths:
            raise UserError(f"{counted}; nothing is left")
