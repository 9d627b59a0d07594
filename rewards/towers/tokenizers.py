"""Texts to token ids, as each family of models was trained on them."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .texts import Tokenize, Tokens

BUNDLED_VOCABULARY = 49408  # CLIP's own byte pairs, which open_clip brings along


def transformers_tokens(tokenizer: Any, limit: int, siglip: bool) -> Tokenize:
    """By a tokenizer of transformers. siglip: in lower case and filled up to the limit.

    SigLIP 2 was trained so, which its tokenizers leave to the caller in most releases.
    """

    def tokenize(text: str) -> Tokens:
        text = text.lower() if siglip else text
        whole = tokenizer(text, verbose=False)["input_ids"]
        content = tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"]
        ids = tokenizer(
            text,
            padding="max_length" if siglip else False,
            truncation=True,
            max_length=limit,
            verbose=False,
        )["input_ids"]
        room = limit - (len(whole) - len(content))
        return Tokens(list(ids), limit, tokenizer.decode(content[room:]).strip())

    return tokenize


def siglip_tokens(pieces: Path, limit: int) -> Tokenize:
    """By the sentence pieces of the first SigLIP, as its training did (big_vision).

    Lower case, no punctuation, single spaces; an end token; the rest is filled with more of them.
    transformers' own tokenizer does the same, but needs the package protobuf.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(pieces))
    end = processor.piece_to_id("</s>")
    bare = str.maketrans("", "", string.punctuation)

    def tokenize(text: str) -> Tokens:
        content = processor.encode(" ".join(text.lower().translate(bare).split()))
        kept = content[: limit - 1]
        ids = [*kept, *[end] * (limit - len(kept))]
        return Tokens(ids, limit, processor.decode(content[limit - 1 :]).strip())

    return tokenize


def clip_tokens(limit: int, padded: bool) -> Tokenize:
    """By CLIP's own byte pairs. Without padding the last token is the end of the text."""
    return open_clip_tokens(_bundled(limit), limit, padded)


def open_clip_tokens(tokenizer: Any, limit: int, padded: bool = True) -> Tokenize:
    """By a tokenizer of open_clip, whichever it is."""
    find_left_out = _left_out_by(tokenizer, limit)

    def tokenize(text: str) -> Tokens:
        ids = tokenizer([text])[0].tolist()
        if not padded:
            ids = ids[: ids.index(tokenizer.eot_token_id) + 1]
        return Tokens(ids, limit, find_left_out(text))

    return tokenize


def _bundled(limit: int) -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=limit)


def _left_out_by(tokenizer: Any, limit: int) -> Callable[[str], str]:
    inner = getattr(tokenizer, "tokenizer", None)  # of transformers, inside open_clip's
    if inner is not None:
        clean = getattr(tokenizer, "clean_fn", str)
        by_transformers = transformers_tokens(inner, limit, siglip=False)
        return lambda text: by_transformers(clean(text)).left_out
    return lambda text: tokenizer.decode(tokenizer.encode(text)[limit - 2 :]).strip()
