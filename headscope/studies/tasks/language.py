"""Language: the next byte of English prose, by a small causal transformer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headscope.errors import InputError
from headscope.studies.tasks import TASKS, WIDTH, Learner, Task
from headscope.text.batches import Batch
from headscope.text.corpus import text_batches
from headscope.text.splits import split_documents
from headscope.text.texts import Texts

__all__ = ["Language"]

_BEGIN, _PAD, _VOCABULARY = 256, 257, 258
_LEAST_DOCUMENTS = 8
_HELD_OUT, _HELD_OUT_ROWS = 0.1, 128  # share of the documents, and windows of them
_FOR_CHANCE = 200  # batches whose bytes are counted


@TASKS.register("language")
class Language(Task):
    """The next byte, from up to 63 bytes before it, in documents that were not trained on.

    Args:
        texts: what to learn; the documentation of the running Python without it, as everywhere.
        width: see `Task`.

    The error is the cross-entropy in nats a byte.

    Raises:
        InputError: the text has too few documents to hold some out.
    """

    n_layers: ClassVar[int] = 2
    steps: ClassVar[int] = 1000
    rows: ClassVar[int] = 16
    length: ClassVar[int] = 64
    unit: ClassVar[str] = "nats/byte"
    question: ClassVar[str] = "Does prose, in which near and far words matter at once, want few heads or many?"

    def __init__(self, texts: Texts | None = None, *, width: int = WIDTH) -> None:
        super().__init__(width=width)
        corpus = text_batches(_Bytes(), texts, length=self.length, size=self.rows, windows=None)
        documents = len({window.document for window in corpus.windows})
        if documents < _LEAST_DOCUMENTS:
            raise InputError(
                f"a language is learnt from {_LEAST_DOCUMENTS} documents at the least, some of them held out; there "
                f"{'is' if documents == 1 else 'are'} {documents}: bring more, or split what is there (--split)"
            )
        rest, *held_out = split_documents(corpus, _HELD_OUT)
        self._trained, *tuning = split_documents(rest, _HELD_OUT)
        most = -(-_HELD_OUT_ROWS // self.rows)
        self._held_out, self._tuning = held_out[0][:most], tuning[0][:most]

    @property
    def chance(self) -> float:
        """The entropy of bytes drawn by how often they come, where the bytes before them are not looked at."""
        counts = torch.ones(_VOCABULARY, dtype=torch.float64)
        for batch in self._trained[:: max(1, len(self._trained) // _FOR_CHANCE)]:
            counts += _bytes(batch).bincount(minlength=_VOCABULARY)
        frequencies = counts / counts.sum()
        held_out = torch.cat([_bytes(batch) for batch in self._held_out])
        return float(-frequencies[held_out].log().mean())

    def learner(self, n_heads: int, head_dim: int) -> nn.Module:
        """Two causal blocks between embeddings of bytes and a softmax over them."""
        embed, readout = _Embedded(self.width, self.length), nn.Linear(self.width, _VOCABULARY, bias=False)
        return Learner(embed, readout, self.width, self.n_layers, n_heads, head_dim, causal=True)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Every window once, in an order drawn anew each time round."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            for number in torch.randperm(len(self._trained), generator=generator).tolist():
                yield self._trained[number]

    def held_out(self, tuning: bool = False) -> Sequence[Batch]:
        """128 windows of documents that are never trained on; 128 of others for tuning."""
        return self._tuning if tuning else self._held_out

    def loss(self, output: Float[Tensor, "row token byte"], batch: Batch) -> Float[Tensor, " row"]:
        """Cross-entropy of the next byte, nats a byte, the mean over a row's bytes."""
        kept = batch["attention_mask"][:, 1:].to(output.dtype)
        nats = cross_entropy(output[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
        return (nats * kept).sum(1) / kept.sum(1)


def _bytes(batch: Batch) -> Int[Tensor, " byte"]:
    """What is to be told of a batch: its tokens but the first of each row, which is told nothing before it."""
    found: Tensor = batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:].bool()]
    return found


class _Bytes:
    """UTF-8 bytes as tokens, and one that begins a text."""

    bos_token_id, pad_token_id = _BEGIN, _PAD

    def __call__(self, text: str, **settings: Any) -> Mapping[str, Any]:
        ids = list(text.encode("utf-8"))
        return {"input_ids": [_BEGIN, *ids] if settings.get("add_special_tokens", True) else ids}


class _Embedded(nn.Module):
    """Embeddings of bytes and of their places; padding stands behind the text, where nothing causal sees it."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(_VOCABULARY, width)
        self.positions = nn.Embedding(length, width)

    def forward(
        self, input_ids: Int[Tensor, "row token"], attention_mask: Tensor | None = None
    ) -> Float[Tensor, "row token width"]:
        places: Tensor = self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        embedded: Tensor = self.tokens(input_ids)
        return embedded + places
