"""Attention as an explanation, to compare with: how much the pieces that are pooled look at each
token in the last layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from spacy.tokens import Doc

from spacy_distil.component.shim import EncoderShim
from spacy_distil.trust.explanations.pieces import PieceOwners


class Attention:
    """The weights of attention in the last layer, averaged over heads and pooled pieces."""

    def __init__(self, encoder: EncoderShim) -> None:
        """encoder: on the torch engine. Other implementations of attention keep no weights, so this
        copies the model.
        """
        engine: Any = encoder.engine
        self._encoder, self._original = encoder, engine.model
        config = transformers.AutoConfig.for_model(**self._original.config.to_dict())
        self._model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
        # A model that classifies nothing has no pooler.
        self._model.load_state_dict(self._original.state_dict(), strict=False)
        self._model.to(engine.device)

    @torch.inference_mode()
    def __call__(self, doc: Doc) -> np.ndarray:
        """Sum the weights of the pieces of each token: (n_tokens,) float64."""
        encoded, batches = self._encoder.prepare([doc])
        by_row = np.zeros(encoded.pooling.n_rows)
        is_pooled = np.zeros(encoded.pooling.n_rows)
        is_pooled[encoded.pooling.columns] = 1
        for batch in batches:
            ids, mask = (
                torch.from_numpy(x).to(self._model.device) for x in (batch.ids, batch.mask)
            )
            found = self._model(input_ids=ids, attention_mask=mask, output_attentions=True)
            expected = self._original(input_ids=ids, attention_mask=mask).last_hidden_state
            torch.testing.assert_close(
                found.last_hidden_state[mask == 1], expected[mask == 1], rtol=1e-3, atol=1e-3
            )
            pooled = np.zeros(batch.ids.shape)
            pooled.flat[batch.positions] = is_pooled[batch.rows]
            weights = found.attentions[-1].mean(dim=1).cpu().numpy()  # (n_windows, from, to)
            n_pooled = np.maximum(pooled.sum(axis=1, keepdims=True), 1)
            looks = np.einsum("wf,wft->wt", pooled, weights) / n_pooled
            by_row[batch.rows] = looks.ravel()[batch.positions]
        return PieceOwners(self._encoder, encoded).sum_by_token(by_row)
