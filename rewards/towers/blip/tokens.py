"""The prompt as ImageReward's BERT reads it: bert-base-uncased's words, padded to 35."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...base import RewardError
from ..texts import Tokens

LENGTH = 35
PAD = 0  # [PAD] in bert-base-uncased
ADDED = ("[DEC]", "[ENC]")  # BLIP's two, which make 30522 words 30524
FILES = ("tokenizer.json", "vocab.txt")


def load_tokenizer(folder: Path, words: int, reward: str) -> Any:
    """The tokenizer of the `tokenizers` library in `folder`, for a model of that many words.

    Raises RewardError.
    """
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise RewardError(
            f"{reward}: there is neither {' nor '.join(FILES)} in {folder}. "
            "Put one of them there: it comes with bert-base-uncased."
        )
    try:
        if path.suffix == ".json":
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = BertWordPieceTokenizer(str(path), lowercase=True)
    except Exception as error:  # the library raises nothing narrower for a spoilt file
        raise RewardError(
            f"{reward}: {path} cannot be read ({error}). "
            "Put bert-base-uncased's file of that name there."
        ) from error
    tokenizer.add_special_tokens(list(ADDED))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.get_vocab_size() != words or tokenizer.token_to_id("[PAD]") != PAD:
        raise RewardError(
            f"{reward}: {path} has {tokenizer.get_vocab_size()} words, the model {words}. "
            "Put bert-base-uncased's file of that name there."
        )
    return tokenizer


def tokenise(tokenizer: Any, prompt: str) -> Tokens:
    """[CLS] words [SEP] [PAD] ...: 35 ids; what does not fit between the first two is left out."""
    encoding = tokenizer.encode(prompt)
    ids: list[int] = encoding.ids
    if len(ids) <= LENGTH:
        return Tokens(ids + [PAD] * (LENGTH - len(ids)), LENGTH)
    first = encoding.offsets[LENGTH - 1][0]
    return Tokens([*ids[: LENGTH - 1], ids[-1]], LENGTH, prompt[first:].strip())
