"""Small real parts for the Python tests: a trained tokenizer, tiny bases, the real SmolLM2."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megacontext.models import TextTokenizer, TransformersBase, load

_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINING_TEXT = """A store that survives a power cut keeps a log of what it promised. Every record
has a checksum, so a torn write is seen and cut away. The lighthouse keeper of Skagen wrote the
number 48213 in the book on 12 March 1931, and the harbour master read it aloud to the crew of the
Astrid. Où est la bibliothèque? 日本語のテキスト。 Numbers and dates must not be confused. """


@pytest.fixture(scope="session")
def transformers_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TRAINING_TEXT] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=special,
        chat_template=_CHAT,
    )


@pytest.fixture(scope="session")
def text_tokenizer(transformers_tokenizer: PreTrainedTokenizerFast) -> TextTokenizer:
    return TextTokenizer(transformers_tokenizer)


def tiny_llama(vocabulary_tokens: int, trained_tokens: int = 512) -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocabulary_tokens,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=trained_tokens,
        initializer_range=0.3,  # large enough that logits differ clearly between places
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tiny_base(text_tokenizer: TextTokenizer) -> TransformersBase:
    return TransformersBase(
        tiny_llama(text_tokenizer.vocabulary_tokens), text_tokenizer, "tiny-llama"
    )


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory, transformers_tokenizer: PreTrainedTokenizerFast
) -> str:
    """A model folder as a user has it on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_llama(len(transformers_tokenizer)).save_pretrained(folder)
    transformers_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def smollm2() -> Callable[[str], TransformersBase]:
    """The real SmolLM2-135M-Instruct by dtype, loaded once for each."""
    loaded: dict[str, TransformersBase] = {}

    def base(dtype: str = "float32") -> TransformersBase:
        if dtype not in loaded:
            loaded[dtype] = load("smollm2", dtype=dtype)  # type: ignore[arg-type]
        return loaded[dtype]

    return base
