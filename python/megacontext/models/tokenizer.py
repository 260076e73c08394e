"""A base's tokenizer as MegaContext uses it: ids as uint32 arrays, exact bytes, chat parts.

Content is tokenised with control tokens switched off, so that a document holding "<|im_end|>" stays
a document. Knows nothing of the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from megacontext.models.token_bytes import TextStream, TokenBytes
from megacontext_ext.errors import Unsupported

TokenArray = NDArray[np.uint32]

# Stand for the caller's texts while a chat template is rendered; templates never contain them.
_CONTENT = "\u27e6content\u27e7"


@dataclass(frozen=True, slots=True)
class EncodedPiece:
    """Tokens of one piece of text, and the character at which each begins."""

    tokens: TokenArray
    char_starts: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class ChatParts:
    """Token runs around the content of one user turn, ready for the assistant to speak."""

    before: TokenArray
    after: TokenArray


class TextTokenizer:
    """The tokenizer of one base. Thread-safe: encoding keeps no state."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, extra_end_tokens: Sequence[int] = ()):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise Unsupported(
                "[tokenizer] must be a fast tokenizer (tokenizer.json), "
                f"got {type(tokenizer).__name__}"
            )
        self._tokenizer = tokenizer
        serialized = backend.to_str()
        # Two views of one vocabulary: templates may hold control tokens, content may not.
        self._content = Tokenizer.from_str(serialized)
        self._content.no_truncation()
        self._content.no_padding()
        self._content.encode_special_tokens = True
        self.hash = hashlib.sha256(serialized.encode("utf-8")).hexdigest()
        self.vocabulary_tokens = backend.get_vocab_size(with_added_tokens=True)
        ends = {tokenizer.eos_token_id, *extra_end_tokens}
        self.end_tokens = frozenset(int(token) for token in ends if token is not None)
        pad = tokenizer.pad_token_id
        self.pad_token = int(pad) if pad is not None else min(self.end_tokens, default=0)
        begin = tokenizer.bos_token_id
        # Stands before a text that has nothing before it.
        self.start_token = int(begin) if begin is not None else self.pad_token

    @cached_property
    def token_bytes(self) -> TokenBytes:
        backend = self._content
        special = [
            token for token, added in backend.get_added_tokens_decoder().items() if added.special
        ]
        byte_level = "ByteLevel" in type(backend.decoder).__name__
        return TokenBytes.of_vocabulary(backend.get_vocab(), special, byte_level=byte_level)

    @cached_property
    def begin_tokens(self) -> TokenArray:
        """What the tokenizer itself puts before every text: one token or none."""
        ids = self._tokenizer("", add_special_tokens=True)["input_ids"]
        return np.asarray(ids[:1] if ids and ids[0] == self.start_token else [], dtype=np.uint32)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str) -> TokenArray:
        """Ids of content; no control token, none added."""
        return np.asarray(self._content.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def encode_pieces(self, pieces: Sequence[str]) -> list[EncodedPiece]:
        """Ids and character starts of several pieces, each tokenised by itself (in parallel)."""
        encoded = self._content.encode_batch(list(pieces), add_special_tokens=False)
        return [_piece(encoding) for encoding in encoded]

    def encode_template(self, text: str) -> TokenArray:
        """Ids of trusted text in which control tokens are control tokens."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.uint32)

    def decode(self, tokens: TokenArray) -> str:
        """Text of content tokens; control tokens are left out."""
        return self.token_bytes.text(tokens.tolist())

    def stream(self) -> TextStream:
        return TextStream(self.token_bytes)

    def chat_parts(self, system: str | None = None) -> ChatParts:
        """What stands before and after the content of one user turn.

        A base without a chat template gets a beginning-of-text token, if it has one.
        """
        if not self.has_chat_template:
            begin = self._tokenizer.bos_token_id
            before = [] if begin is None else [begin]
            empty = np.zeros(0, dtype=np.uint32)
            return ChatParts(np.asarray(before, dtype=np.uint32), empty)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": _CONTENT})
        rendered = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        before_text, found, after_text = str(rendered).partition(_CONTENT)
        if not found:
            raise Unsupported(
                "[tokenizer] chat template must show the user's content, it dropped it"
            )
        return ChatParts(self.encode_template(before_text), self.encode_template(after_text))


def _piece(encoding: Any) -> EncodedPiece:
    offsets = np.asarray(encoding.offsets, dtype=np.uint64).reshape(-1, 2)
    return EncodedPiece(np.asarray(encoding.ids, dtype=np.uint32), offsets[:, 0])
