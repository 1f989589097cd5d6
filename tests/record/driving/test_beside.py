"""Models that must be given a picture, or what an encoder made, beside the tokens of a text."""

import pytest
import torch
from torch import nn

from kvtrace.record.driving.choose import choose_drive
from kvtrace.record.driving.ways.roles import signature_of
from kvtrace.record.driving.wish import Wish
from kvtrace.verify.plans import plans

PROMPT = tuple(range(3, 12))


class Decoder(nn.Module):
    """Two layers that look at their own rows and at what stands beside them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.embed, self.head = nn.Embedding(64, 16), nn.Linear(16, 64)
        self.layers = nn.TransformerDecoder(layer, 2)

    def decode(self, ids, rows):
        hidden = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.layers(self.embed(ids), rows, tgt_mask=hidden))


class OfMemory(Decoder):
    def forward(self, tgt, memory):
        return self.decode(tgt, memory)


class OfStates(Decoder):
    def forward(self, x, encoder_hidden_states):
        return self.decode(x, encoder_hidden_states)


class OfPictures(Decoder):
    def __init__(self, image_size=24):
        super().__init__()
        self.image_size = image_size
        self.patches = nn.Conv2d(1, 16, 8, 8)
        self.mix = nn.Linear((image_size // 8) ** 2, 4)

    def forward(self, images, captions):
        return self.decode(captions, self.mix(self.patches(images).flatten(2)).mT)


class PicturesFirst(OfPictures):
    """The picture's rows stand before those of the text, and have logits as well."""

    def forward(self, images, captions):
        rows = self.mix(self.patches(images).flatten(2)).mT
        x = torch.cat((rows, self.embed(captions)), 1)
        hidden = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.layers(x, x[:, :1], tgt_mask=hidden))


SAID = {
    OfMemory: "model(tgt [1, all], memory=features [1, 5, 16])",
    OfStates: "model(x [1, all], encoder_hidden_states=features [1, 5, 16])",
    OfPictures: "model(captions [1, all], images=a picture [1, 1, 24, 24])",
    PicturesFirst: "model(captions [1, all], images=a picture [1, 1, 24, 24])",
}


@pytest.mark.parametrize("kind", SAID)
def test_what_is_read_beside_a_text_is_given_at_every_call(kind):
    model = kind().eval()
    driven = choose_drive(model, Wish(PROMPT, vocabulary=64))
    assert driven.call == SAID[kind]
    first, again = (driven.drive.step(PROMPT) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape[-1] == 64


def test_captions_are_ids_though_something_else_comes_first():
    assert signature_of(OfPictures()).ids.name == "captions"


def test_no_plan_is_made_where_nobody_knows_the_tokens():
    made = plans(nn.Linear(2, 2), [], lambda *_: pytest.fail("nothing to start with"))
    assert {one.drive for one in made} == {None}
    assert "not known" in made[0].why_not
