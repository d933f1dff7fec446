"""Small models that the tests make: real ones, of the architecture of BERT, with random weights."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

# As mixedbread-ai/mxbai-embed-large-v1 has it.
QUERY_PROMPT = "Represent this sentence for searching relevant passages: "
MAX_TOKENS = 64
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer():
    """WordPiece with a vocabulary of letters and a few words, so that texts have many tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-"
    words = ["the", "robot", "robots", "left", "earth", "heist", "goes", "wrong", "passage"]
    vocabulary = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]
    ids = {token: number for number, token in enumerate(vocabulary)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def make(
    directory, *, size=32, pooling="cls", modules=(), prompts=None, include_prompt=True, seed=1
):
    """A model in a directory, like mxbai-embed-large-v1 but for its size."""
    torch.manual_seed(seed)
    words = tokenizer()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=size,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * size,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=size**-0.5,  # so that texts differ, though nothing has been learnt
    )
    part = directory / "part"
    BertModel(config).eval().save_pretrained(part)
    words.save_pretrained(part)
    transformer = Transformer(str(part), max_seq_length=MAX_TOKENS)
    pooled = Pooling(size, pooling, include_prompt=include_prompt)
    model = SentenceTransformer(
        modules=[transformer, pooled, *modules],
        prompts={"query": QUERY_PROMPT, "document": ""} if prompts is None else prompts,
        device="cpu",
    )
    made = directory / "model"
    model.save(str(made))
    return str(made)
